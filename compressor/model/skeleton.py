"""Modules of the true shapes, without weights.

A skeleton is the stock transformers module with its parameters on the meta device, resized by the family's table to the
shapes that the blueprint states. Modules of ours stand where it changes the computation: blocks with shortcuts
(SliceGPT, rotation per layer), blocks in which tokens become fewer, linear modules that leave silent inputs out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from compressor.architectures import Family, LayerShape
from compressor.architectures.tasks import class_of
from compressor.errors import ModelError
from compressor.model.blocks import ShortcutBlock
from compressor.model.blueprint import Blueprint
from compressor.model.gated import GatedActivation, GatedLinear
from compressor.model.llm_block import LlmBlock
from compressor.model.modules import base_of, optional_submodules, set_vector, set_weight, submodule
from compressor.model.reduced import ReducedBlock, Tracks
from compressor.model.token_output import install_output_reduction


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While active, modules register their parameters on the meta device; buffers stay real."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_skeleton(config: PretrainedConfig, family: Family, task: str, blueprint: Blueprint) -> PreTrainedModel:
    """Return the model of `config` as the blueprint has it, with meta parameters, in eval mode.

    Raises:
        ModelError: the blueprint asks for what the family cannot be built with.
    """
    with parameters_on_meta(), no_init_weights():  # to initialise what has no contents takes most of the time
        kind = class_of(config, family, task)
        make = kind.from_config if kind.__name__.startswith("Auto") else kind._from_config
        model: PreTrainedModel = make(config, attn_implementation="sdpa")
    model.requires_grad_(False)
    _check_norms(model, family)
    resize(model, family, blueprint)
    if blueprint.tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    blocks, tracks = submodule(base_of(model), family.blocks), Tracks()
    for index in range(len(blocks)):
        blocks[index] = built_block(blocks[index], family, blueprint, index, tracks)
    if (output := blueprint.output_reduction) is not None:
        install_output_reduction(model, family, output, tracks)
    if blueprint.reductions and family.inputs == "tokens":
        base_of(model).register_forward_pre_hook(tracks.hear, with_kwargs=True)
    install_gates(model, blueprint)
    model.eval()
    return model


def _check_norms(model: PreTrainedModel, family: Family) -> None:
    """Raise ModelError where norms have no weights: passes and exporters read and change these."""
    base = base_of(model)
    blocks = [f"{family.blocks}.0.{path}" for path in (family.attention.norm, family.ffn.norm)]
    for path in (*blocks, *((family.final_norm,) if family.final_norm else ())):
        if any(module.weight is None for module in optional_submodules(base, (path,))):
            keys = [key for key, value in vars(model.config).items() if "elementwise_affine" in key and value is False]
            raise ModelError(
                f"config.json{f': {keys[0]} is false' if keys else ''}: the norms of the model have no weights"
                f" ({path}), which passes and exporters need",
                hint="Norms with weights of 1 and biases of 0 compute the same: store these and announce them.",
            )


def built_block(block: nn.Module, family: Family, blueprint: Blueprint, index: int, tracks: Tracks) -> nn.Module:
    """Return a stock block of the true widths as the blueprint has it: itself, or a block of ours with its children.

    Raises:
        ModelError: the family's blocks cannot be changed so.
    """
    if blueprint.shapes.shortcuts and not hasattr(block, "attention_shortcut"):
        block = ShortcutBlock(block, family, blueprint.shapes.layers[index])
    if blueprint.in_prompts_at(index):
        return LlmBlock(block, family, blueprint, index, tracks)
    if blueprint.reduced_at(index):
        return ReducedBlock(block, family, blueprint, index, tracks)
    return block


def install_gates(root: nn.Module, blueprint: Blueprint, prefix: str = "") -> None:
    """Put gates into the modules below `root`, which the model knows as `prefix`, that have any.

    Raises:
        ModelError: a gate is for what is neither a linear module nor the activation of an FFN.
    """
    for name, gate in blueprint.gates.items():
        if not name.startswith(prefix):
            continue
        parent, _, leaf = name.removeprefix(prefix).rpartition(".")
        holder = root.get_submodule(parent)
        module = getattr(holder, leaf, None)
        if isinstance(module, GatedLinear | GatedActivation) and module.gate == gate:
            continue
        if isinstance(module, nn.Linear) and not gate.per_channel:
            setattr(holder, leaf, GatedLinear(module, gate))
        elif isinstance(module, GatedActivation) or (module is not None and not any(True for _ in module.parameters())):
            index = next(int(part) for part in name.split(".") if part.isdigit())
            channels = blueprint.shapes.layers[index].intermediate_size
            setattr(holder, leaf, GatedActivation(module, gate, channels))
        else:
            raise ModelError(
                f"config.json: {name} has a gate and is neither a linear module nor an activation",
                hint="The folder was edited.",
            )


def _resized(module: Any, dims: tuple[int | None, int | None]) -> None:
    """Give a module a meta weight of (out, in); None keeps a side. Norms and embeddings take their one width first."""
    out, inner = dims
    weight = module.weight
    shape = list(weight.shape)
    if isinstance(module, nn.Embedding):
        shape[1] = out if out is not None else shape[1]
    else:
        shape[0] = out if out is not None else shape[0]
        if inner is not None:
            shape[1] = inner
    if shape == list(weight.shape):
        return
    bias = getattr(module, "bias", None)
    meta = torch.empty(shape, device="meta", dtype=weight.dtype)
    new_bias = None if bias is None else torch.empty(shape[0], device="meta", dtype=bias.dtype)
    set_weight(module, meta, new_bias)


def resize(model: PreTrainedModel, family: Family, blueprint: Blueprint) -> None:
    """Bring every weight of a skeleton to the blueprint's shapes, in place.

    Raises:
        ModelError: the family stacks matrices in a way that per-layer widths cannot describe.
    """
    base, shapes = base_of(model), blueprint.shapes
    first = shapes.layers[0].residual[0] if shapes.layers else shapes.hidden_size
    last = shapes.layers[-1].residual[2] if shapes.layers else shapes.hidden_size
    for module in optional_submodules(base, family.embeddings):
        _resized(module, (first, None))
    for path in family.embedding_biases:
        _resize_vector(base, path, first)
    if family.final_norm:
        _resized(submodule(base, family.final_norm), (last, None))
    for module in optional_submodules(model, family.heads):
        if not blueprint.tied and not family.projected:
            _resized(module, (None, last * family.head_reads))
    blocks = submodule(base, family.blocks)
    for index, layer in enumerate(shapes.layers):
        resize_block(blocks[index], family, layer, shapes.head_dim)


def _resize_vector(base: nn.Module, path: str, width: int) -> None:
    parent, _, name = path.rpartition(".")
    holder = base.get_submodule(parent)
    vector = getattr(holder, name, None)
    if vector is not None and vector.shape[-1] != width:
        set_vector(base, path, torch.empty((*vector.shape[:-1], width), device="meta", dtype=vector.dtype))


def resize_block(block: nn.Module, family: Family, layer: LayerShape, head_dim: int) -> None:
    """Bring one block's weights to the widths of `layer`; head counts are told to the attention module."""
    attention, ffn = family.attention, family.ffn
    before, middle, after = layer.residual
    norms = (before, middle) if family.residual != "post" else (middle, after)
    _resized(submodule(block, attention.norm), (norms[0], None))
    _resized(submodule(block, ffn.norm), (norms[1], None))
    heads, groups = layer.num_attention_heads, layer.num_key_value_heads
    if attention.layout != "separate" or any(slot.parts > 1 for slot in ffn.readers):
        raise ModelError(f"family {family.name}: fused projections cannot be resized per layer yet")
    for slot, count in ((attention.query, heads), (attention.key, groups), (attention.value, groups)):
        _resized(submodule(block, slot.path), (count * head_dim, before))
    _resized(submodule(block, attention.output), (middle, heads * head_dim))
    for path in ffn.reader_paths:
        _resized(submodule(block, path), (layer.intermediate_size, middle))
    _resized(submodule(block, ffn.writer), (after, layer.intermediate_size))
    for scale, width in ((attention.scale, middle), (ffn.scale, after)):
        if scale is not None:
            _resize_vector(block, scale, width)
    module = submodule(block, attention.module)
    if hasattr(module, "num_key_value_groups"):
        module.num_key_value_groups = heads // groups
    if family.head_count_attributes[0] and hasattr(module, family.head_count_attributes[0]):
        setattr(module, family.head_count_attributes[0], heads)
