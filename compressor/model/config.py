"""config.json of a model that a pass has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.model.blueprint import SECTION, Blueprint, compression_section
from compressor.storage.grids import SECTION as GRIDS

if TYPE_CHECKING:
    from compressor.model.folder import ModelFolder

QUANTIZATION = "quantization_config"
"""Key of config.json by which transformers knows a checkpoint whose weights are codes."""


def config_for(source: ModelFolder, blueprint: Blueprint, grids: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the config.json of a model like `source` as a blueprint has it.

    Where the family's own keys can state the widths, they do, and stock transformers loads the model; otherwise the
    `compression` section states them beside unchanged stock keys. It also states every change of computation.

    Args:
        source: the model before.
        blueprint: of the model after.
        grids: the section on grids (`compressor.storage.grids.section`), None for a float model.
    """
    config = source.stated
    for key in (SECTION, GRIDS, QUANTIZATION):
        config.pop(key, None)
    if grids is not None:
        config[GRIDS] = grids
    family, shapes = source.family, blueprint.shapes
    if source.store_dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = source.store_dtype
    if "lm_head" in family.heads:
        config["tie_word_embeddings"] = blueprint.tied
    same_hidden = shapes.hidden_size == int(source.config.hidden_size)
    stock_widths = shapes.uniform and (family.explicit_head_dim or same_hidden)
    if family.ffn_width is not None:
        stock_widths = stock_widths and shapes.layers[0].intermediate_size == family.ffn_width
    if stock_widths:
        layer = shapes.layers[0]
        if family.ffn_width is None:
            config[family.width_key] = layer.intermediate_size
        config["hidden_size"] = shapes.hidden_size
        config["num_attention_heads"] = layer.num_attention_heads
        if hasattr(source.config, "num_key_value_heads"):
            config["num_key_value_heads"] = layer.num_key_value_heads
        if family.explicit_head_dim:
            config["head_dim"] = shapes.head_dim
    if family.own or not (stock_widths and blueprint.computes_as_stock):
        config[SECTION] = compression_section(blueprint)
    return config
