"""Realised speed of smaller shapes (goal S6) and of our decoder graph (goal E1), on a memory-bound random Llama."""

from __future__ import annotations

from dataclasses import asdict, replace

from tests.bench.harness import Context, Row
from tests.bench.synthetic import Geometry

SUITE = "speed"
_CONTEXTS, _QUICK_CONTEXTS = (128, 512), (64,)
_PROMPT, _TOKENS = 64, 64


def dense_geometry(*, quick: bool) -> Geometry:
    """Return a Llama whose weights exceed a server's cache several times (208 MB in fp32)."""
    if quick:
        return Geometry(4, 192, 512, 3, 1, 64, 1024, 1024)
    return Geometry(12, 576, 1536, 9, 3, 64, 8192, 2048)


def variants(dense: Geometry) -> dict[str, Geometry]:
    """Return the pruned shapes that are timed: FFN channels, and the residual stream as SliceGPT narrows it."""
    count, ffn = dense.layers, int(dense.widths[0])

    def kept(share: float) -> int:
        return round(ffn * share / 8) * 8

    def narrow(share: float) -> int:
        # transformers refuses a hidden size that is no multiple of the heads, though head_dim is stated.
        return round(dense.hidden * share / (8 * dense.heads)) * 8 * dense.heads

    # The same mean as -30 %, falling with depth: every layer has a width of its own.
    slope = [kept(0.7) + 8 * round((count - 1 - 2 * i) * ffn * 0.3 / count / 8) for i in range(count)]
    return {
        "FFN -30 %": replace(dense, ffn=kept(0.7)),
        "FFN -30 %, another width per layer": replace(dense, ffn=tuple(slope)),
        "FFN -50 %": replace(dense, ffn=kept(0.5)),
        "hidden -25 %": replace(dense, hidden=narrow(0.75)),
        "hidden -37.5 %": replace(dense, hidden=narrow(0.625)),
    }


def run(context: Context) -> Row:
    """Time every shape against dense, and our dense graph against onnxruntime-genai's."""
    dense = dense_geometry(quick=context.quick)
    shapes = {"dense": dense, **variants(dense)}
    made = {name: _make(context, number, shape) for number, (name, shape) in enumerate(shapes.items())}
    counts = _count(context, {name: row["model"] for name, row in made.items() if "error" not in row})
    rows = [
        _compare(context, name, number, shapes, made, counts) for number, name in enumerate(shapes) if name != "dense"
    ]
    builder, skipped = _builder(context, dense, made["dense"])
    return {
        "settings": {"geometry": asdict(dense), "contexts": list(_contexts(context)), "parameters": dense.parameters},
        "rows": rows,
        "builder": builder,
        "skipped": skipped,
    }


def _contexts(context: Context) -> tuple[int, ...]:
    return _QUICK_CONTEXTS if context.quick else _CONTEXTS


def _make(context: Context, number: int, shape: Geometry) -> Row:
    """Write a model and export it."""
    folder, out = context.scratch / SUITE / f"model-{number}", context.scratch / SUITE / f"onnx-{number}"
    spec = {"folder": str(folder), "geometry": asdict(shape), "seed": number}
    found = context.step(SUITE, f"model-{number}", "synthetic", spec)
    if "error" not in found:
        found = context.step(SUITE, f"onnx-{number}", "export_ours", {"model": str(folder), "out": str(out)})
    return {**found, "model": str(folder), "out": str(out)}


def _count(context: Context, models: dict[str, str]) -> dict[str, dict[str, int]]:
    """Return the FLOPs of every model by length; nothing where they cannot be counted."""
    spec = {"models": models, "lengths": list(_contexts(context))}
    found: dict[str, dict[str, int]] = context.step(SUITE, "flops", "flops", spec).get("flops", {})
    return found


def _compare(
    context: Context,
    name: str,
    number: int,
    shapes: dict[str, Geometry],
    made: dict[str, Row],
    counts: dict[str, dict[str, int]],
) -> Row:
    ours, dense = made[name], made["dense"]
    row: Row = {"shape": name, "parameters_ratio": shapes[name].parameters / shapes["dense"].parameters}
    if error := ours.get("error") or dense.get("error"):
        return {**row, "error": error}
    lengths = list(_contexts(context))
    spec = {"ours": ours["out"], "other": dense["out"], "lengths": lengths, **_effort(context)}
    timed = context.step(SUITE, f"timing-{number}", "timing", spec)
    if "error" in timed:
        return {**row, "error": timed["error"]}
    row["bytes_ratio"] = timed["bytes"]["ours"] / timed["bytes"]["other"]
    row["phases"] = [_phase(phase, name, shapes, counts) for phase in timed["phases"]]
    return row


def _phase(phase: Row, name: str, shapes: dict[str, Geometry], counts: dict[str, dict[str, int]]) -> Row:
    """Add what would be ideal: bytes that a decode step must read, FLOPs of a prefill."""
    length = phase["length"]
    ideal: float | None = None
    if phase["name"] == "decode":
        ideal = shapes["dense"].decode_bytes(length) / shapes[name].decode_bytes(length)
    elif name in counts and "dense" in counts:
        ideal = counts["dense"][str(length)] / counts[name][str(length)]
    return {
        "name": phase["name"],
        "length": length,
        "speedup": phase["speedup"],
        "quartiles": phase["speedup_quartiles"],
        "ideal": ideal,
        "share_of_ideal": phase["speedup"] / ideal if ideal else None,
        "latency_ms": {side: phase[side]["latency_ms"] for side in ("ours", "other")},
    }


def _effort(context: Context) -> Row:
    return {"rounds": 7, "seconds": 1.0} if context.quick else {"rounds": 31, "seconds": 6.0}


def _builder(context: Context, shape: Geometry, dense: Row) -> tuple[Row | None, list[Row]]:
    """Compare with the graph of onnxruntime-genai's own builder, in a plain session and in its own runtime."""
    if "error" in dense:
        return None, [{"what": "onnxruntime-genai's builder", "reason": dense["error"]}]
    out = context.scratch / SUITE / "builder"
    built = context.step(SUITE, "builder", "export_builder", {"model": dense["model"], "out": str(out)})
    if "error" in built:
        return None, [{"what": "onnxruntime-genai's builder", "reason": built["error"]}]
    pair = {"ours": dense["out"], "other": str(out)}
    lengths = list(_contexts(context))
    timed = context.step(SUITE, "timing-builder", "timing", {**pair, "lengths": lengths, **_effort(context)})
    spec = {**pair, "prompt": _PROMPT, "tokens": _TOKENS, "rounds": 3 if context.quick else 9}
    decoded = context.step(SUITE, "generation", "generation", {**spec, "vocabulary": shape.vocabulary})
    export = {"ours": _cost(dense), "builder": _cost(built)}
    return {"session": timed, "genai": {**decoded, "prompt": _PROMPT, "tokens": _TOKENS}, "export": export}, []


def _cost(export: Row) -> Row:
    return {key: export[key] for key in ("seconds", "cpu_seconds", "peak_bytes", "added_bytes", "file_bytes")}
