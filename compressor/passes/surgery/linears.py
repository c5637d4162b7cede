"""The linear modules of a block, grouped by the input that they share, and the names of modules in the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.architectures import Family
    from compressor.model.folder import ModelFolder


@dataclass(frozen=True)
class Sharing:
    """Linear modules of a block that read one input.

    Attributes:
        name: `attention`, `attention_output`, `ffn` or `ffn_writer`.
        paths: the modules, in the order of the family's table.
        norm: path of the norm whose output they read; None where the input is not normed.
    """

    name: str
    paths: tuple[str, ...]
    norm: str | None = None


def attention_sharings(family: Family) -> tuple[Sharing, ...]:
    """Return the groups of the attention half, in the order in which they are computed."""
    attention = family.attention
    norm = attention.norm if family.residual != "post" else None
    return (
        Sharing("attention", attention.readers, norm),
        Sharing("attention_output", (attention.output,)),
    )


def ffn_sharings(family: Family) -> tuple[Sharing, ...]:
    """Return the groups of the feed-forward half."""
    norm = family.ffn.norm if family.residual != "post" else None
    return (Sharing("ffn", family.ffn.reader_paths, norm), Sharing("ffn_writer", (family.ffn.writer,)))


def linear_paths(family: Family) -> tuple[str, ...]:
    """Return the paths of all linear modules of a block, in the order in which they are computed."""
    return tuple(path for s in (*attention_sharings(family), *ffn_sharings(family)) for path in s.paths)


def block_names(source: ModelFolder) -> list[str]:
    """Return the module names of all linear modules of all blocks, in the order in which they are computed."""
    from compressor.model.modules import base_prefix

    prefix = f"{base_prefix(source.skeleton())}{source.family.blocks}"
    return [f"{prefix}.{i}.{path}" for i in range(len(source.shapes.layers)) for path in linear_paths(source.family)]


def embedding_name(source: ModelFolder) -> str | None:
    """Return the module name of the token embedding; None for image models."""
    if source.family.inputs == "pixels":
        return None
    model = source.skeleton()
    wanted = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def head_name(source: ModelFolder) -> str | None:
    """Return the module name of the output head over the vocabulary; None without one, or if it is the embedding."""
    if source.task != "text-generation" or source.blueprint.tied:
        return None
    model = source.skeleton()
    wanted = model.get_output_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is wanted)
