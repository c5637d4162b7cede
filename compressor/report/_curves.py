"""Curves of quality over cost: what other values of an option would have given, and which of them are worth a choice.

A point is on the front if no other one is at least as good at no more cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.report import _format as show
from compressor.report._plots import HEIGHT
from compressor.report.pass_schema import Trial
from compressor.report.schema import Report
from compressor.report.sweep_schema import SweepPoint

MARGIN = 0.06
"""Of the width, beside the outermost points."""
_SHOWN = 2


@dataclass(frozen=True)
class Point:
    """What a dot stands for.

    Attributes:
        cost: drawn to the right.
        value: drawn upwards.
        title: both in words.
        label: beside it; empty for none.
        chosen: whether it is what was taken.
        dense: whether it is the dense model.
    """

    cost: float
    value: float
    title: str
    label: str
    chosen: bool = False
    dense: bool = False


@dataclass(frozen=True)
class Dot:
    """One point of a curve.

    Attributes:
        x: in shares of the width.
        y: pixels from the top.
        title: its figures in words.
        label: beside it; empty for none.
        kind: `front`, `behind` or `dense`.
        chosen: whether it is the artifact.
    """

    x: float
    y: float
    title: str
    label: str
    kind: str
    chosen: bool = False


@dataclass(frozen=True)
class Curve:
    """A plot of one metric over cost.

    Attributes:
        metric: what is drawn upwards.
        cost: what is drawn to the right.
        ends: figures at the top, at the bottom, at the left and at the right.
        dots: all points.
        front: lines (x, y, x, y) between those on the front, as dots have them.
        rises: whether more is better.
    """

    metric: str
    cost: str
    ends: tuple[str, str, str, str]
    dots: list[Dot]
    front: list[tuple[float, float, float, float]]
    rises: bool


@dataclass(frozen=True)
class Row:
    """One line of the table: the point, and whether it is on the front of the first curve."""

    point: SweepPoint
    front: bool


def on_front(costs: Sequence[float], losses: Sequence[float]) -> list[bool]:
    """Return which points no other one beats: none has a lower cost and loss, one of the two being equal at most."""
    points = list(zip(costs, losses, strict=True))
    return [not any(a <= cost and b <= loss and (a, b) != (cost, loss) for a, b in points) for cost, loss in points]


def sweep_phase(report: Report) -> str | None:
    """Return the phase over whose time a sweep is drawn: `prefill`, or the first that all have; None for FLOPs."""
    points = report.sweep.points if report.sweep is not None else []
    timed = [phase for phase in report.dense.latency_ms if all(point.latency_ms.get(phase) for point in points)]
    return "prefill" if "prefill" in timed else timed[0] if timed else None


def sweep_curves(report: Report) -> list[Curve]:
    """Return the curves of a sweep: of the task's own metric, and of one that compares with the dense model."""
    if report.sweep is None:
        return []
    points, phase = report.sweep.points, sweep_phase(report)
    known = [name for name in show.metric_names(report) if all(point.metrics.get(name) is not None for point in points)]
    known = [name for name in known if name != "kept_tokens"]
    chosen = [
        *[name for name in known if show.metric(name).ideal is None][:1],
        *[name for name in known if show.metric(name).ideal is not None][:1],
    ]
    return [_curve(report, points, name, phase) for name in chosen[:_SHOWN]]


def sweep_rows(report: Report) -> list[Row]:
    """Return the points of a sweep, the dearest first."""
    curves = sweep_curves(report)
    if report.sweep is None:
        return []
    kinds = [dot.kind for dot in curves[0].dots[1:]] if curves else ["behind"] * len(report.sweep.points)
    rows = [Row(point, kind == "front") for point, kind in zip(report.sweep.points, kinds, strict=True)]
    return sorted(rows, key=lambda row: -(row.point.flops or 0.0))


def search_curves(report: Report) -> list[tuple[str, Curve]]:
    """Return for each pass that has searched its label and the curve of what it tried."""
    return [(entry.label, _of_trials(entry.trials)) for entry in report.passes if entry.trials]


def _of_trials(trials: Sequence[Trial]) -> Curve:
    def told(trial: Trial) -> str:
        what = trial.name or ("taken" if trial.chosen else "tried")
        return f"{what}: {trial.divergence:.4f} nats at {show.ratio(trial.flops)}"

    shown = ["taken" if trial.chosen else trial.name for trial in trials]
    points = [
        Point(trial.flops, trial.divergence, told(trial), name, trial.chosen)
        for name, trial in zip(shown, trials, strict=True)
    ]
    return drawn("divergence from dense", "FLOPs of the blocks over dense", points, _nats, show.ratio, rises=False)


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _curve(report: Report, points: Sequence[SweepPoint], name: str, phase: str | None) -> Curve:
    facts = show.metric(name)
    dense = report.dense.metrics.get(name)
    dense = dense if dense is not None else facts.ideal
    values = [dense or 0.0, *(point.metrics[name] or 0.0 for point in points)]
    if phase is None:
        costs = [1.0, *(point.flops or 0.0 for point in points)]
    else:
        costs = [report.dense.latency_ms[phase] or 0.0, *(point.latency_ms[phase] or 0.0 for point in points)]
    form = show.milliseconds if phase is not None else show.ratio
    what = [("dense", False), *((str(point.value), point.chosen) for point in points)]
    drawable = [
        Point(cost, value, f"{label}: {show.metric_value(name, value)} at {form(cost)}", label, taken, index == 0)
        for index, (cost, value, (label, taken)) in enumerate(zip(costs, values, what, strict=True))
    ]
    over = f"{phase}, batch 1" if phase is not None else "FLOPs over dense"
    return drawn(facts.label, over, drawable, _text_of(name), form, rises=facts.better == "higher")


def _text_of(name: str) -> Callable[[float], str]:
    return lambda value: show.metric_value(name, value)


def drawn(
    metric: str,
    cost: str,
    points: Sequence[Point],
    value_text: Callable[[float], str],
    cost_text: Callable[[float], str],
    *,
    rises: bool,
) -> Curve:
    """Return the curve of points, each where its figures say.

    Args:
        metric: what is drawn upwards.
        cost: what is drawn to the right.
        points: at least one.
        value_text: writes a value of the metric.
        cost_text: writes a cost.
        rises: whether more of the metric is better.
    """
    costs, values = [point.cost for point in points], [point.value for point in points]
    low, high, left, right = min(values), max(values), min(costs), max(costs)
    front = on_front(costs, [-value if rises else value for value in values])
    dots = [
        Dot(
            MARGIN + (1 - 2 * MARGIN) * _share(point.cost, left, right),
            HEIGHT * (1 - _share(point.value, low, high)),
            point.title,
            point.label,
            "dense" if point.dense else "front" if best else "behind",
            point.chosen,
        )
        for point, best in zip(points, front, strict=True)
    ]
    best = sorted((dot for dot, there in zip(dots, front, strict=True) if there), key=lambda dot: dot.x)
    return Curve(
        metric,
        cost,
        (value_text(high), value_text(low), cost_text(left), cost_text(right)),
        dots,
        [(a.x, a.y, b.x, b.y) for a, b in zip(best, best[1:], strict=False)],
        rises,
    )


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
