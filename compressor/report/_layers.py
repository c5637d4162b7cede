"""What the passes changed, read out of their `layers` lists: widths per layer, and the quality after each pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.report import _format as show
from compressor.report.schema import PassEntry, Report

_NAMES = {
    "intermediate_size": "FFN width",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key/value heads",
    "hidden_size": "hidden width",
    "residual": "residual width",
    "head_dim": "head width",
    "bits": "bits per weight",
}


@dataclass(frozen=True)
class Row:
    """One layer of one dimension, before and after a pass."""

    index: int
    before: float
    after: float


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


@dataclass(frozen=True)
class Step:
    """One link of the quality chain: `label` moved the metric from `before` to `after`."""

    label: str
    before: float
    after: float


def dimensions(entry: PassEntry) -> list[Dimension]:
    """Return the dimensions that a pass changed in at least one layer, in the order of the report."""
    rows: dict[str, list[Row]] = {}
    for position, layer in enumerate(entry.layers):
        index = layer.get("index", position)
        for name, before, after in _changes(layer):
            rows.setdefault(name, []).append(Row(index if isinstance(index, int) else position, before, after))
    changed: list[Dimension] = []
    for name, found in rows.items():
        twin = any(found == other.rows for other in changed)  # the residual stream has one width at several places
        if not twin and any(row.before != row.after for row in found):
            changed.append(Dimension(_label(name), found))
    return changed


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
        labels = [entry.name for entry in report.passes]
        if not own:
            values.append(report.compressed.metrics.get(name))
            labels.append("export")
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            chains[name] = [Step(label, known[i], known[i + 1]) for i, label in enumerate(labels)]
    return chains


def _changes(layer: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield (name, before, after) from `<name>_before`/`<name>_after` keys or from `before` and `after` objects."""
    before, after = layer.get("before"), layer.get("after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        pairs = [(str(name), before[name], after.get(name)) for name in before]
    else:
        stems = [key.removesuffix("_before") for key in layer if key.endswith("_before")]
        pairs = [(stem, layer[f"{stem}_before"], layer.get(f"{stem}_after")) for stem in stems]
    for name, old, new in pairs:
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            nested = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(old, new, strict=True))]
        else:
            nested = [(name, old, new)]
        yield from ((key, float(a), float(b)) for key, a, b in nested if _is_number(a) and _is_number(b))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(name: str) -> str:
    stem, _, position = name.rstrip("]").partition("[")
    label = _NAMES.get(stem, stem.replace("_", " "))
    return f"{label}, place {int(position) + 1}" if position not in ("", "0") else label
