"""Reductions of texts: shares instead of counts, and the parts that text encoders take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.errors import ModelError, UsageError
from compressor.passes.tokens._schedule import WHOLE, text_schedule

if TYPE_CHECKING:
    from compressor.model.blueprint import Reduction
    from compressor.model.folder import ModelFolder
    from compressor.passes.tokens._options import TokenOptions

_COVERED = {
    "select": ("topk", "bipartite"),
    "dropped": ("drop", "merge"),
    "score": ("received", "cls_attn", "value_norm", "cascade", "random", "mean_key"),
    "heads": ("mean", "max", "rms"),
}


def text_reductions(name: str, options: TokenOptions, source: ModelFolder) -> tuple[Reduction, ...]:
    """Return the reductions of a text encoder.

    Raises:
        UsageError: options are for images, or the schedule does not fit the model.
        ModelError: no token would go.
    """
    from compressor.model.blueprint import Reduction

    _check(name, options, source.family.name)
    found, before = [], WHOLE
    for block, share in text_schedule(name, options, len(source.shapes.layers)).items():
        share = max(share, -(-before // 2)) if options.select == "bipartite" else share
        if share < before:
            found.append(
                Reduction(
                    block,
                    0,
                    options.score,
                    options.select,
                    options.dropped,
                    "log_size" if options.proportional else "none",
                    heads=options.heads,
                    share=share,
                    beyond=options.beyond,
                    closing=1,
                )
            )
            before = share
    if not found:
        raise ModelError(f"{name}: with these shares no token of a text goes")
    return tuple(found)


def _check(name: str, options: TokenOptions, family: str) -> None:
    """Raise UsageError where options are for images alone."""
    for key in ("tokens", "r", "counts", "flops"):
        if getattr(options, key) is not None:
            raise UsageError(
                f"{name}.{key}: texts have lengths of their own (family {family})",
                hint="Give keep or shares: shares of each text's tokens.",
            )
    if options.head_only:
        raise UsageError(f"{name}.head_only: it is for image classifiers (family {family})", hint="Leave it out.")
    if options.keep_norm:
        raise UsageError(
            f"{name}.keep_norm: it is for images (family {family}): texts have norms behind the sums",
            hint="Leave it out.",
        )
    if options.full_length:
        raise UsageError(f"{name}.full_length: texts have their full length anyway", hint="Leave it out.")
    for key, covered in _COVERED.items():
        if (value := getattr(options, key)) not in covered:
            raise UsageError(
                f"{name}: {key} {value} is for images (family {family}); of texts: {', '.join(covered)}",
                hint="Methods for texts are tome, received, power-bert, spatten and random-tokens.",
            )
    if options.merged < 1:
        raise UsageError(
            f"{name}: merged {options.merged:g} is for images (family {family}); of texts all that go are merged",
            hint="Set merged: 1, or take tome.",
        )
