"""Models of several towers, of which each can be compressed by itself: where it lies in the whole, what it is alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from compressor.architectures.tasks import TASKS


@dataclass(frozen=True)
class Tower:
    """One tower of a model.

    Attributes:
        model_type: of the tower by itself; a family covers it. None: that of its config.
        architecture: class that is the tower by itself, with what makes its embeddings. None: the one that transformers
            has for text generation with its config.
        config: key of config.json under which the whole model states the tower's config.
        graph: file of its graph in an artifact of the whole model, as transformers.js calls it.
        embeddings: file of the graph that embeds tokens for that one; None where that one embeds them itself.
        beside: what the names of all other tensors of the whole model begin with.
        features: method of the whole model that gives the tower's hidden states, and embeddings as `pooler_output`;
            `forward` where the whole model does what the tower by itself does.
        embedding: name of the output of the tower by itself that holds its embeddings.
        module: the module of the whole model that is the tower by itself; None where that has parts beside it.
        inherits: keys that the whole model states for its towers.
        takes: more of these, where the whole model has them elsewhere: key, and its place in the whole config.
        kinds: values of `model_type` in the tower's config that are covered; none: any.
        whole: class of transformers that loads the whole model; None: the Auto class of the task.
        parts: modules of the tower by itself, and what the whole model calls them; none: as `module` says.
        renames: what names of tensors begin with in the whole checkpoint, as patterns, and in the tower's.
        depth: key of the whole config that says which block's output is read; blocks behind it are left out.
    """

    model_type: str | None
    architecture: str | None
    config: str
    graph: str
    beside: tuple[str, ...]
    features: str
    embedding: str = "pooler_output"
    module: str | None = None
    inherits: tuple[str, ...] = ()
    takes: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()
    whole: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    depth: str | None = None
    embeddings: str | None = None

    @property
    def own(self) -> bool:
        """Whether the tower by itself is of a class of ours, and its config in the whole model one of another type."""
        return bool(self.kinds) and self.model_type is not None and self.model_type not in self.kinds

    def named(self, stored: str) -> str:
        """Return what the tower by itself calls a tensor of the whole checkpoint."""
        for pattern, begins in self.renames:
            if match := re.match(pattern, stored):
                return begins + stored[match.end() :]
        return stored


@dataclass(frozen=True)
class Joined:
    """What the towers of a model make together.

    Attributes:
        task: a name in `compressor.architectures.tasks.TASKS`.
        scalars: tensors of one number each by which the towers' embeddings are joined.
        image_token: key of the whole config that states the token whose places in a prompt image features take; None
            where embeddings of whole samples are joined.
    """

    task: str
    scalars: tuple[str, ...]
    image_token: str | None = None


_CLIP_VISION, _CLIP_TEXT = ("vision_model.", "visual_projection."), ("text_model.", "text_projection.")
(_LLAVA,) = TASKS["image-text-to-text"].endings
TOWERS: Mapping[str, Mapping[str, Tower]] = {
    "clip": {
        "vision": Tower(
            model_type="clip_vision_model",
            architecture="CLIPVisionModelWithProjection",
            config="vision_config",
            graph="vision_model.onnx",
            beside=(*_CLIP_TEXT, "logit_scale"),
            features="get_image_features",
            embedding="image_embeds",
            inherits=("projection_dim",),
        ),
        "text": Tower(
            model_type="clip_text_model",
            architecture="CLIPTextModelWithProjection",
            config="text_config",
            graph="text_model.onnx",
            beside=(*_CLIP_VISION, "logit_scale"),
            features="get_text_features",
            embedding="text_embeds",
            inherits=("projection_dim",),
        ),
    },
    "llava": {
        "vision": Tower(
            model_type="llava_vision",
            architecture="LlavaVisionEncoder",
            config="vision_config",
            graph="vision_encoder.onnx",
            beside=("language_model.", "model.language_model.", "lm_head.", "vision_tower.post_layernorm."),
            features="get_image_features",
            embedding="last_hidden_state",
            inherits=("projector_hidden_act", "multimodal_projector_bias", "vision_feature_select_strategy"),
            takes=(("projection_size", "text_config.hidden_size"),),
            kinds=("clip_vision_model",),
            whole=_LLAVA,
            parts=(
                ("vision_tower", "model.vision_tower"),
                ("multi_modal_projector", "model.multi_modal_projector"),
            ),
            renames=(
                (r"(model\.)?vision_tower\.(vision_model\.)?", "vision_tower."),
                (r"model\.multi_modal_projector\.", "multi_modal_projector."),
            ),
            depth="vision_feature_layer",
        ),
        "language": Tower(
            model_type=None,
            architecture=None,
            config="text_config",
            graph="decoder_model_merged.onnx",
            beside=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
            features="forward",
            kinds=("llama", "mistral", "qwen2", "qwen3"),
            whole=_LLAVA,
            parts=(("model", "model.language_model"), ("lm_head", "lm_head")),
            embeddings="embed_tokens.onnx",
            renames=(
                (r"language_model\.(?=model\.|lm_head\.)", ""),
                (r"model\.language_model\.(model\.)?", "model."),
            ),
        ),
    },
    "siglip": {
        "vision": Tower(
            model_type="siglip_vision_model",
            architecture="SiglipVisionModel",
            config="vision_config",
            graph="vision_model.onnx",
            beside=("text_model.", "logit_scale", "logit_bias"),
            features="get_image_features",
            module="vision_model",
        ),
        "text": Tower(
            model_type="siglip_text_model",
            architecture="SiglipTextModel",
            config="text_config",
            graph="text_model.onnx",
            beside=("vision_model.", "logit_scale", "logit_bias"),
            features="get_text_features",
            module="text_model",
        ),
    },
}
"""`model_type` of a model of several towers -> its towers, by the name of the part."""

JOINED: Mapping[str, Joined] = {
    "llava": Joined("image-text-to-text", (), "image_token_id"),
    "clip": Joined("zero-shot-image-classification", ("logit_scale",)),
    "siglip": Joined("zero-shot-image-classification", ("logit_scale", "logit_bias")),
}
"""`model_type` of a model of several towers that can be taken whole -> what they make together."""
PARTS = tuple(dict.fromkeys(name for towers in TOWERS.values() for name in towers))
"""Names of all parts."""
GRAPHS = tuple(dict.fromkeys(tower.graph for towers in TOWERS.values() for tower in towers.values()))
"""Names of the graphs in artifacts of several."""
EMBEDDINGS = {
    tower.graph: tower.embeddings for towers in TOWERS.values() for tower in towers.values() if tower.embeddings
}
"""Names of graphs that take embeddings in the place of tokens -> of the graphs that embed tokens for them."""
