"""Numbers and names as people read them: one place, so that terminal, card and page always say the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compressor.recipe import metrics
from compressor.recipe.metrics import Metric
from compressor.report.schema import Bound, Check, Continuation, Figures, Report

DASH = "—"
_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/\\~])(?:~?(?:/[^\s/'\"`,;:()<>]+){2,}/?|[A-Za-z]:\\[^\s'\"`,;()<>]+)")


METRICS: dict[str, Metric] = {
    **dict(sorted(metrics.METRICS.items(), key=lambda item: item[1].relative)),
    "kept_tokens": Metric("tokens kept", "lower", "points", share=True, meaning="of an image, mean over all blocks"),
}
"""Known metrics, the most telling first: those that the dense model has as well."""


def metric(name: str) -> Metric:
    """Return how to show the metric; an unknown one is shown under its own name as a plain number."""
    return METRICS.get(name, Metric(name, "higher", "difference"))


def metric_names(report: Report) -> list[str]:
    """Return the metrics of a report: the known ones in their order, then the others as they come."""
    present = [*report.compressed.metrics, *report.dense.metrics]
    return [*(n for n in METRICS if n in present), *dict.fromkeys(n for n in present if n not in METRICS)]


def sweep_metrics(report: Report) -> list[str]:
    """Return the metrics that at least one point of a sweep has, in their order."""
    points = report.sweep.points if report.sweep is not None else []
    return [name for name in metric_names(report) if any(point.metrics.get(name) is not None for point in points)]


def metric_value(name: str, value: float | None, *, unit: bool = True) -> str:
    """Return the value of a metric, with its unit unless a heading says it."""
    facts = metric(name)
    if value is None:
        return DASH
    if facts.share:
        return f"{100 * value:.2f} %"
    return join_unit(_digits(value, 4), facts.unit if unit else "")


def metric_change(name: str, dense: float | None, compressed: float | None) -> str:
    """Return the change of a metric from dense to compressed, signed, or a dash."""
    facts = metric(name)
    if dense is None or compressed is None or facts.change == "none":
        return DASH
    if facts.change == "relative":
        return signed(100 * (compressed / dense - 1), 2, " %") if dense else DASH
    if facts.change == "points":
        return signed(100 * (compressed - dense), 2, " points")
    return signed(compressed - dense, 4)


def metric_step(name: str, before: float, after: float) -> str:
    """Return the move of a metric within a chain of passes: as its change, or as a difference for the others."""
    if metric(name).change == "none":
        return signed(100 * (after - before), 2, " points") if metric(name).share else signed(after - before, 4)
    return metric_change(name, before, after)


def metric_interval(side: Figures, name: str) -> str:
    """Return the confidence interval of a metric such as `1.64 to 1.68`, nothing where it is not known."""
    ends = side.intervals.get(name)
    return f"{metric_value(name, ends[0], unit=False)} to {metric_value(name, ends[1])}" if ends else ""


def change_interval(report: Report, name: str) -> str:
    """Return the confidence interval of a metric's change from dense, nothing where it is not known."""
    for bound, facts in metrics.BOUNDS.items():
        ends = report.compressed.intervals.get(bound)
        if facts.metric == name and facts.change and ends:
            sign = -1 if facts.change == "drop" else 1  # a drop is stated as dense minus ours
            low, high = sorted(sign * end for end in ends)
            scale, suffix = {"relative": (100, " %"), "points": (100, " points")}.get(metric(name).change, (1, ""))
            digits = 2 if suffix else 4
            return f"{signed(scale * low, digits)} to {signed(scale * high, digits, suffix)}"
    return ""


def speedup_interval(report: Report, phase: str) -> str:
    """Return the confidence interval of a speed-up such as `1.05 to 1.12×`, nothing where it is not known."""
    ends = report.ratios.speedup_interval.get(phase)
    return f"{ends[0]:.2f} to {ratio(ends[1])}" if ends else ""


def signed(value: float, decimals: int, suffix: str = "") -> str:
    """Return the number with an explicit sign (a true minus); what rounds to zero has none."""
    text = f"{abs(value):.{decimals}f}"
    sign = "" if float(text) == 0 else ("+" if value > 0 else "−")
    return f"{sign}{text}{suffix}"


def count(value: float | None) -> str:
    """Return a count such as `134.5 M`."""
    return DASH if value is None else _scaled(value, ["", "K", "M", "B", "T"])


def size(value: float | None) -> str:
    """Return bytes in decimal units, such as `538.1 MB`."""
    return DASH if value is None else _scaled(value, ["B", "kB", "MB", "GB", "TB"])


def flops(value: float | None) -> str:
    """Return operations such as `268.9 MFLOPs`."""
    return DASH if value is None else _scaled(value, ["FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs"])


def milliseconds(value: float | None) -> str:
    """Return a latency: three significant digits, in ms or s."""
    if value is None:
        return DASH
    return f"{_digits(value / 1000, 3)} s" if value >= 1000 else f"{_digits(value, 3)} ms"


def seconds(value: float | None) -> str:
    """Return a duration: `0.42 s`, `12.3 s`, `2 min 05 s`, `1 h 03 min`."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ratio(value: float | None) -> str:
    """Return a factor such as `0.41×`, with more digits when it is small."""
    if value is None:
        return DASH
    return f"{value:.2f}×" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}×"


def saving(value: float | None) -> str:
    """Return the change that a ratio compressed over dense means: 0.72 is `−28.0 %`."""
    return DASH if value is None else signed(100 * (value - 1), 1, " %")


def number(value: float) -> str:
    """Return a plain figure: a whole one in full, another to four significant digits."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def quantity(value: bool | int | float | str | None, unit: str, digits: int = 4) -> str:
    """Return a check's value or bound with its unit, to `digits` significant digits."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return one_line(value)
    if unit == "bytes" and digits <= 4:
        return size(value)
    text = str(value) if isinstance(value, int) else f"{value:.{digits}g}"
    return f"{text}×" if unit in ("x", "×", "ratio") else join_unit(text, one_line(unit))


def bound_text(bound: Bound | None, unit: str, digits: int = 4) -> str:
    """Return a bound such as `≤ 0.001 logit`, or a dash."""
    if bound is None:
        return DASH
    limits = (("≥", bound.min), ("≤", bound.max), ("=", bound.equal))
    parts = [f"{sign} {quantity(limit, unit, digits)}" for sign, limit in limits if limit is not None]
    return " and ".join(parts) or DASH


def shortfall(check: Check) -> str:
    """Return `1.21×, required ≥ 1.3×` for a failed check, with as many digits as it takes to see that it failed."""
    if check.bound is None:
        return ""
    limits = [limit for limit in (check.bound.min, check.bound.max, check.bound.equal) if limit is not None]
    shown = quantity(check.value, check.unit)
    digits = 15 if any(shown == quantity(limit, check.unit) for limit in limits) else 4
    value = "not measured" if check.value is None else quantity(check.value, check.unit, digits)
    return f"{value}, required {bound_text(check.bound, check.unit, digits)}"


def reason_text(check: Check) -> str:
    """Return why a check failed, in one line; made up from value and bound when the report gives no reason."""
    return one_line(check.reason) or shortfall(check) or "not satisfied"


def passed_checks(report: Report) -> tuple[list[Check], list[Check]]:
    """Return the checks that passed: those with a figure to show, and those that only say yes."""
    passed = [check for check in report.checks if check.passed and not check.reason]
    measured = [c for c in passed if c.bound is not None or not (c.value is None or c.value is True)]
    return measured, [check for check in passed if check not in measured]


def unjudged_checks(report: Report) -> list[Check]:
    """Return the checks that nothing was held against, each with the reason why."""
    return [check for check in report.checks if check.passed and check.reason]


def verdict_text(report: Report) -> str:
    """Return the verdict in a sentence, with the number of checks."""
    total, failed = len(report.checks), len(report.failed)
    if report.passed:
        return f"verified: {total} of {_plural(total, 'check')} passed"
    if not failed:
        return "not verified: the checks did not come to an end"
    return f"not verified: {failed} of {_plural(total, 'check')} failed"


def headline(report: Report) -> str:
    """Return the three savings and the first quality metric in one line, leaving out what was not measured."""
    ratios, parts = report.ratios, []
    if ratios.flops is not None:
        parts.append(f"{ratio(ratios.flops)} the FLOPs")
    if ratios.bytes is not None:
        parts.append(f"{ratio(ratios.bytes)} the bytes")
    parts += [f"{phase} {ratio(value)} as fast" for phase, value in ratios.speedup.items() if value is not None]
    for name in metric_names(report):
        dense, compressed = report.dense.metrics.get(name), report.compressed.metrics.get(name)
        if compressed is not None:
            change = metric_change(name, dense, compressed)
            parts.append(f"{metric(name).label} {metric_value(name, compressed) if change == DASH else change}")
            break
    return " · ".join(parts)


def methods(report: Report) -> str:
    """Return the methods of the recipe in their order, such as `cfsp → rsq`."""
    return " → ".join(entry.label for entry in report.passes)


def pass_name(entry: Mapping[str, Any]) -> str:
    """Return what people call a pass of a plan: the method, and the part where there are several."""
    return f"{entry['name']} ({entry['part']})" if entry.get("part") else str(entry["name"])


def phases(report: Report) -> list[str]:
    """Return the phases that were timed, of either model."""
    return list(dict.fromkeys([*report.dense.latency_ms, *report.compressed.latency_ms]))


def agreement(sample: Continuation) -> str:
    """Return in which token two greedy continuations differ, if in any."""
    if sample.differs_at is None:
        return f"equal in all {_plural(sample.tokens, 'token')}"
    return f"first difference: token {sample.differs_at} of {sample.tokens}"


def environment(report: Report) -> list[tuple[str, str]]:
    """Return what is known of the environment of the run, as names and values."""
    return [(name, value) for name, value in flat(report.environment) if value]


def public_name(identifier: str) -> str:
    """Return a model id as others may see it: a hub id as it is, of a local path only the last part."""
    text = one_line(identifier)
    local = text.startswith(("/", "./", "../", "~", ".\\", "..\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    return (re.split(r"[\\/]", text.rstrip("/\\"))[-1] or text) if local or text.count("/") > 1 else text


def is_hub_id(identifier: str) -> bool:
    """Whether the identifier has the form `owner/name` of a hub id."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", identifier) is not None


def without_paths(text: str) -> str:
    """Return the text with every absolute path cut down to its last part."""
    return _ABSOLUTE_PATH.sub(lambda m: re.split(r"[\\/]", m.group().rstrip("/\\"))[-1], text)


def one_line(text: str) -> str:
    """Return the text on one line, without control characters (they could steer a terminal)."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def join_unit(number: str, unit: str) -> str:
    """Return the number and its unit."""
    return f"{number} {unit}" if unit else number


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested names and values as a flat list: mappings joined by a space, lists by commas."""
    items: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            items += flat(value, name)
        elif isinstance(value, list | tuple):
            items.append((name, ", ".join(str(item) for item in value)))
        elif value is not None:
            items.append((name, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)))
    return items


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _digits(value: float, digits: int) -> str:
    """Return about `digits` significant digits; scientific only for very small or very large numbers."""
    if value == 0 or (isinstance(value, int) and abs(value) < 10_000_000):
        return str(int(value))
    magnitude = abs(value)
    if magnitude < 1e-4 or magnitude >= 1e7:
        return f"{value:.{max(digits - 2, 1)}e}"
    whole = len(str(int(magnitude)))
    decimals = max(digits - whole, 0) if magnitude >= 1 else digits
    return f"{value:.{decimals}f}"


def _scaled(value: float, units: list[str]) -> str:
    """Return the number in the largest unit that keeps it at 1 or more, with four significant digits at most."""
    amount, power = float(value), 0
    while abs(amount) >= 999.95 and power < len(units) - 1:
        amount, power = amount / 1000, power + 1
    text = f"{amount:.0f}" if power == 0 else (f"{amount:.1f}" if abs(amount) >= 9.995 else f"{amount:.2f}")
    return join_unit(text, units[power])
