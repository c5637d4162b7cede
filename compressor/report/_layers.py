"""What the passes changed, read out of their `layers` lists: dimensions by layer, and the quality after each pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from compressor.report import _format as show
from compressor.report.schema import Report

_LABELS = {
    "intermediate_size": "FFN channels",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "KV heads",
    "residual": "hidden width",
    "bits": "bits per weight",
}
"""What people call the dimensions whose own names are not plain words; any other is shown under its own name."""


@dataclass(frozen=True)
class Row:
    """One layer of one dimension, before and after a pass."""

    index: int
    before: float
    after: float

    @property
    def changed(self) -> bool:
        """Whether the pass changed it."""
        return self.before != self.after


@dataclass(frozen=True)
class Dimension:
    """One dimension that a pass changed.

    Attributes:
        name: what it is, for people.
        rows: the layers, in order.
    """

    name: str
    rows: list[Row]

    @property
    def uniform(self) -> bool:
        """Whether every layer had the same figure before and has the same after."""
        return len({(row.before, row.after) for row in self.rows}) == 1

    @property
    def summary(self) -> str:
        """The dimension in one line, such as `FFN channels 1536 → 960–1248`."""
        spans = (_span([row.before for row in self.rows]), _span([row.after for row in self.rows]))
        return f"{self.name} {' → '.join(spans)}"


@dataclass(frozen=True)
class Step:
    """One link of the quality chain: `label` moved the metric from `before` to `after`."""

    label: str
    before: float
    after: float


def dimensions(layers: Sequence[Mapping[str, Any]]) -> list[Dimension]:
    """Return the dimensions that a pass changed in at least one layer, in the order of the report.

    The entries themselves say what there is: every `NAME_before` with a `NAME_after`. Dimensions whose figures are the
    same in every layer (often query and KV heads) become one, under all their names.
    """
    rows: dict[str, list[Row]] = {}
    for position, layer in enumerate(layers):
        index = layer.get("index", position)
        for name, before, after in _pairs(layer):
            rows.setdefault(name, []).append(Row(index if isinstance(index, int) else position, before, after))
    names: dict[tuple[Row, ...], list[str]] = {}
    for name, found in rows.items():
        if any(row.changed for row in found):
            names.setdefault(tuple(found), []).append(dimension_label(name))
    return [Dimension(" and ".join(labels), list(found)) for found, labels in names.items()]


def dimension_label(name: str) -> str:
    """Return what people call a dimension."""
    return _LABELS.get(name, name)


def quality_chains(report: Report) -> dict[str, list[Step]]:
    """Return, by metric, how the quality went from the dense model through each pass to the exported artifact.

    Metrics that not every pass reports are left out, since a loss could not be told from a gap. Comparisons with the
    dense model (KL, agreement, cosine) start at the value that the dense model itself would have. Where the passes were
    measured on data of their own (`quality_dense`), the chain ends at the last pass: the artifact's figure would not
    compare.
    """
    if not report.passes or not all(entry.quality_after for entry in report.passes):
        return {}
    own = report.passes[0].quality_dense
    chains: dict[str, list[Step]] = {}
    for name in dict.fromkeys([*show.metric_names(report), *report.passes[0].quality_after]):
        start = (own or report.dense.metrics).get(name)
        values = [start if start is not None else show.metric(name).ideal]
        values += [entry.quality_after.get(name) for entry in report.passes]
        labels = [entry.label for entry in report.passes]
        if not own:
            values.append(report.compressed.metrics.get(name))
            labels.append("export")
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            chains[name] = [Step(label, known[i], known[i + 1]) for i, label in enumerate(labels)]
    return chains


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value is a figure; a flag is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pairs(layer: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield (name, before, after) of each dimension that a layer's entry states."""
    for key, before in layer.items():
        name = key.removesuffix("_before")
        after = layer.get(f"{name}_after")
        if name != key and is_number(before) and is_number(after):
            yield name, float(before), float(after)


def _span(values: Sequence[float]) -> str:
    low, high = show.number(min(values)), show.number(max(values))
    return low if low == high else f"{low}–{high}"
