"""The image part of a LLaVA model by itself: CLIP's image tower up to one of its blocks, then the projector.

Transformers has no class for it. It runs inside `LlavaForConditionalGeneration`; here it is a module of its own, which
transformers' Auto classes know wherever this file has been imported. What stands below the mark is also part of the
modelling file of an artifact, so it imports transformers and torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_MAPPING


# --- from here on, a part of the modelling file ---
class LlavaVisionConfig(CLIPVisionConfig):
    """CLIP's image tower with as many blocks as run, and what LLaVA's own config says of the projector."""

    model_type = "llava_vision"
    projection_size: int = 4096
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_select_strategy: str = "default"


class LlavaProjector(nn.Module):
    """Two linear modules and an activation, from the width of the image tower to that of the language model."""

    def __init__(self, config: LlavaVisionConfig) -> None:
        """Build what a config describes."""
        super().__init__()
        width, bias = config.projection_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.hidden_size, width, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [batch, tokens, width of the language model] of hidden states [batch, tokens, width]."""
        return torch.as_tensor(self.linear_2(self.act(self.linear_1(hidden))))


class LlavaVisionEncoder(PreTrainedModel):
    """Makes image features of pixels: what takes the places of the image tokens in a prompt."""

    config_class = LlavaVisionConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer"]

    def __init__(self, config: LlavaVisionConfig) -> None:
        """Build what a config describes."""
        super().__init__(config)
        self.vision_tower = CLIPVisionModel._from_config(config)
        del self.vision_tower.post_layernorm  # stands before the class token's embedding, which LLaVA does not read
        self.multi_modal_projector = LlavaProjector(config)
        self.select_tokens = nn.Identity()
        self.select_features: nn.Module | None = None
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that makes tokens of pixels."""
        return torch.nn.Module.get_submodule(self, "vision_tower.embeddings.patch_embedding")

    def forward(
        self, pixel_values: torch.Tensor, text_features: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Return image features [batch, tokens, width of the language model] as `last_hidden_state`.

        Args:
            pixel_values: [batch, channels, height, width].
            text_features: the language model's embeddings of a question's tokens [batch, tokens, width of the language
                model], zeros where a shorter question is padded; read only where features are chosen by them.
            **kwargs: settings of what is returned; there are no others than the above.
        """
        tower = self.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        hidden = self.select_tokens(tower.encoder(inputs_embeds=hidden).last_hidden_state)
        if self.config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        features = self.multi_modal_projector(hidden)
        if self.select_features is not None:
            features = self.select_features(features, text_features)
        return BaseModelOutput(last_hidden_state=features)


# --- up to here ---
AutoConfig.register(LlavaVisionConfig.model_type, LlavaVisionConfig)
MODEL_MAPPING.register(LlavaVisionConfig, LlavaVisionEncoder)  # type: ignore[arg-type]
