"""Writing the residual stream in other coordinates: the modules that write it and those that read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.passes.numerics.rotation import Projection, fold_scale
from compressor.passes.surgery import slots

if TYPE_CHECKING:
    import torch

    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Walk
else:
    torch = lazy("torch")


def rotatable(source: ModelFolder) -> bool:
    """Tell whether a model's residual stream can be carried in other coordinates without changing what it computes.

    An encoder gives out hidden states themselves: no matrix behind them could turn them back.
    """
    family = source.family
    if source.task == "feature-extraction":
        return False
    plain = family.residual == "pre" and family.final_norm is not None and not family.norm_offset
    return plain and not family.projected and family.attention.layout == "separate"


def set_readers(norm: Any, readers: Sequence[Any], matrix: torch.Tensor, frame: Projection) -> None:
    """Multiply readers behind a norm by `matrix` [d, k], so that they read the narrow stream; fold scale and shift in.

    A reader of several vectors of the stream side by side [out, n·d] becomes [out, n·k].

    The shift goes into the readers' biases. Where a reader has none, the norm's shift becomes 1 for all of them, and a
    constant c is added to each row of a reader: normed tokens have mean zero before the shift, so c adds just k·c.
    """
    from compressor.model.modules import set_weight

    scale: torch.Tensor = norm.weight.double()
    shift: torch.Tensor | None = getattr(norm, "bias", None)
    biases = [slots.read_bias(reader, "") for reader in readers]
    folds = shift is None or all(bias is not None for bias in biases)
    for reader, bias in zip(readers, biases, strict=True):
        old, shifted = slots.read(reader, ""), None
        vectors = old.reshape(-1, len(scale))  # [out · vectors read side by side, d]
        weight = (fold_scale(vectors, scale) @ matrix).reshape(len(old), -1)
        if shift is not None:
            wanted = (vectors.double() @ shift.double()).reshape(len(old), -1).sum(1)
            if folds and bias is not None:
                shifted = bias.double() + wanted
            else:
                weight = weight + (wanted - weight.sum(1))[:, None] / weight.shape[1]
        slots.write(reader, "", weight, shifted)
    kept = None if shift is None else torch.full((frame.width,), 0.0 if folds else 1.0, device=scale.device)
    set_weight(norm, frame.norm_weight().to(scale.device).float(), kept)


def set_stem(walk: Walk, frame: Projection) -> None:
    """Let embeddings, positions, patches and class tokens write in the coordinates of `frame`."""
    from compressor.model.modules import base_of, optional_submodules, set_weight

    base, family = base_of(walk.model), walk.source.family
    for module in optional_submodules(base, family.embeddings):
        weight: Any = module.weight.data
        if isinstance(module, torch.nn.Embedding):
            set_weight(module, frame.stream(weight.double()).float())
            continue
        bias = getattr(module, "bias", None)
        written = frame.writer(weight.flatten(1)).float().reshape(frame.width, *weight.shape[1:])
        set_weight(module, written, None if bias is None else frame.stream(bias.double()).float())
    for path in family.embedding_biases:
        parent, _, name = path.rpartition(".")
        holder = base.get_submodule(parent)
        vector = getattr(holder, name, None)
        if vector is not None:
            setattr(holder, name, torch.nn.Parameter(frame.stream(vector.data.double()).float(), requires_grad=False))


def rotate_block(block: BlockView, frame: Projection) -> None:
    """Let a block read and write in the coordinates of `frame`; norms' scales go into the readers."""
    attention, ffn = block.family.attention, block.family.ffn
    halves = ((attention.norm, attention.readers, attention.output), (ffn.norm, ffn.reader_paths, ffn.writer))
    for norm, readers, writer in halves:
        parts = [block.module.get_submodule(path) for path in readers]
        set_readers(block.module.get_submodule(norm), parts, frame.matrix, frame)
        bias = slots.read_bias(block.module, writer)
        rotated = None if bias is None else frame.stream(bias.double())
        slots.write(block.module, writer, frame.writer(slots.read(block.module, writer)), rotated)


def rotate_tail(walk: Walk, frame: Projection) -> None:
    """Let the heads read in the coordinates of `frame`."""
    from compressor.model.modules import base_of, optional_submodules

    norm = base_of(walk.model).get_submodule(str(walk.source.family.final_norm))
    set_readers(norm, optional_submodules(walk.model, walk.source.family.heads), frame.matrix, frame)
