"""Models of several towers, of which each can be compressed by itself: where it lies in the whole, what it is alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """One tower of a model.

    Attributes:
        model_type: of the tower by itself; a family covers it.
        architecture: class of transformers that is the tower by itself, with what makes its embeddings.
        config: key of config.json under which the whole model states the tower's config.
        graph: file of its graph in an artifact of the whole model, as transformers.js calls it.
        beside: what the names of all other tensors of the whole model begin with.
        features: method of the whole model that gives the tower's hidden states, and embeddings as `pooler_output`.
        embedding: name of the output of the tower by itself that holds its embeddings.
        module: the module of the whole model that is the tower by itself; None where that has parts beside it.
        inherits: keys that the whole model states for its towers.
    """

    model_type: str
    architecture: str
    config: str
    graph: str
    beside: tuple[str, ...]
    features: str
    embedding: str = "pooler_output"
    module: str | None = None
    inherits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Joined:
    """What the towers of a model make together.

    Attributes:
        task: a name in `compressor.architectures.tasks.TASKS`.
        scalars: tensors of one number each by which the towers' embeddings are joined.
    """

    task: str
    scalars: tuple[str, ...]


_CLIP_VISION, _CLIP_TEXT = ("vision_model.", "visual_projection."), ("text_model.", "text_projection.")
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
    "clip": Joined("zero-shot-image-classification", ("logit_scale",)),
    "siglip": Joined("zero-shot-image-classification", ("logit_scale", "logit_bias")),
}
"""`model_type` of a model of several towers that can be taken whole -> what they make together."""
PARTS = tuple(dict.fromkeys(name for towers in TOWERS.values() for name in towers))
"""Names of all parts."""
GRAPHS = tuple(dict.fromkeys(tower.graph for towers in TOWERS.values() for tower in towers.values()))
"""Names of the graphs in artifacts of several."""
