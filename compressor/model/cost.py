"""What a model costs on paper: parameters, bytes and FLOPs, counted on the skeleton, without weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from compressor.model.folder import UNBUILDABLE, ModelFolder, unbuildable
from compressor.storage.packed import checkpoint_bytes, grid_bytes

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True)
class Cost:
    """Theoretical size and work of a model.

    Attributes:
        parameters: all parameters, tied ones once.
        bytes: bytes of those parameters as they are stored: in a dtype, or as codes and scales.
        flops: floating-point operations of one forward pass over one sample (`length` tokens, or one image).
    """

    parameters: int
    bytes: int
    flops: int


def count_flops(model: ModelFolder, length: int) -> int:
    """Return the FLOPs of one forward pass over one sample: matrix products, convolutions and attention.

    A multiplication and an addition count as two. For images `length` is ignored.

    Raises:
        ModelError: config.json describes modules that do not fit together.
    """
    skeleton = model.skeleton()
    torch.nn.Module.to(skeleton, "meta")  # transformers wraps `to` without types
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            skeleton(**_meta_inputs(model, length))
    except UNBUILDABLE as error:
        raise unbuildable(error) from error
    return int(counter.get_total_flops())


def _meta_inputs(model: ModelFolder, length: int) -> dict[str, torch.Tensor]:
    if model.family.inputs == "pixels":
        size = model.config.image_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.empty(1, model.config.num_channels, height, width, device="meta")}
    return {"input_ids": torch.zeros(1, length, dtype=torch.long, device="meta")}


def count_cost(model: ModelFolder, length: int, dtype: str = "float32", *, graph: bool = True) -> Cost:
    """Return all three figures for parameters stored as `dtype`, but for those that lie on grids."""
    return Cost(model.parameters, stored_bytes(model, _DTYPE_BYTES[dtype], graph=graph), count_flops(model, length))


def stored_bytes(model: ModelFolder, itemsize: int, *, graph: bool = True) -> int:
    """Return the bytes of all parameters: `itemsize` each, but for weights on grids, which are codes and scales.

    Args:
        model: plain, compressed, or planned.
        itemsize: bytes of a parameter without a grid.
        graph: packed as the operators of a graph read them; else as a checkpoint has them.
    """
    total = model.parameters * itemsize
    if not model.grids:
        return total
    skeleton = model.skeleton()
    tied = skeleton.get_input_embeddings() if model.blueprint.tied else None
    for name, spec in model.grids.items():
        module = skeleton.get_submodule(name)
        outputs, inputs = skeleton.get_parameter(f"{name}.weight").shape
        linear = isinstance(module, torch.nn.Linear)
        packed = spec.bytes(outputs, inputs) if graph else checkpoint_bytes(spec, outputs, inputs, linear=linear)
        total += packed - outputs * inputs * itemsize
        if module is tied and not graph:
            total += grid_bytes(spec, outputs, inputs)  # the head shares the codes and has a copy of their grid
    return total


def image_grid(model: ModelFolder) -> tuple[int, int]:
    """Return the patches of one image: rows and columns."""
    size, patch = model.config.image_size, model.config.patch_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    rows, columns = (patch, patch) if isinstance(patch, int) else tuple(patch)
    return int(height // rows), int(width // columns)


def image_tokens(model: ModelFolder) -> int:
    """Return the tokens of one image before the first block: its patches, and what stands before them."""
    rows, columns = image_grid(model)
    return rows * columns + model.family.leading_tokens


def layer_dimensions(model: ModelFolder) -> list[dict[str, int]]:
    """Return for every block its widths and, for an image model, `tokens`: how many tokens of one image leave it."""
    tokens = image_tokens(model) if model.family.inputs == "pixels" else None
    found = []
    for index, layer in enumerate(model.shapes.layers):
        sizes = {**asdict(layer), "residual": layer.residual[0]}
        reduction = model.blueprint.reduction_at(index)
        if tokens is not None:
            tokens = sizes["tokens"] = tokens if reduction is None else reduction.keep
        found.append(sizes)
    return found


def kept_share(model: ModelFolder) -> float | None:
    """Return the share of the tokens of an image that leave a block, mean over all blocks; None where none goes.

    Where tokens are selected behind the last block, it is the share that is handed on.
    """
    if not model.blueprint.reductions or model.family.inputs != "pixels":
        return None
    if (output := model.blueprint.output_reduction) is not None:
        return output.keep / image_tokens(model)
    left = [sizes["tokens"] for sizes in layer_dimensions(model)]
    return sum(left) / len(left) / image_tokens(model)


def recorded_layers(model: ModelFolder) -> list[dict[str, Any]]:
    """Return what compression.json records of every block: its dimensions, with all widths of its residual stream."""
    layers = zip(layer_dimensions(model), model.shapes.layers, strict=True)
    return [{**sizes, "residual": list(layer.residual)} for sizes, layer in layers]


def layers_before_and_after(before: ModelFolder, after: ModelFolder) -> list[dict[str, Any]]:
    """Return for every block its index and each of its dimensions, as NAME_before and NAME_after."""
    entries = []
    for index, (old, new) in enumerate(zip(layer_dimensions(before), layer_dimensions(after), strict=True)):
        entry = {"index": index}
        for name in old:
            entry |= {f"{name}_before": old[name], f"{name}_after": new[name]}
        entries.append(entry)
    return entries


def default_length(model: ModelFolder, wanted: int | None) -> int:
    """Return the tokens per sample: what is wanted, at most what the model's positions allow (512 when not stated)."""
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 512)
    return min(wanted or 512, limit)
