"""Realised speed of smaller shapes (goal S6), of 4-bit weights on top (goal Q3) and of our decoder graph beside another
builder's (goal E1), on a memory-bound random Llama."""

from __future__ import annotations

import re
from dataclasses import asdict, replace

from tests.bench.harness import Context, Row
from tests.bench.synthetic import Geometry

SUITE = "speed"
_CONTEXTS, _QUICK_CONTEXTS = (128, 512), (64,)
_PROMPT, _TOKENS = 64, 64
# What onnxruntime-genai's builder does by default, for its graph; embedding too for the smallest artifact.
_BUILDER_INT4 = {"bits": 4, "symmetric": True, "head": 4}
_INT4 = {"bits": 4, "head": 4, "embedding": 4}
STACKED = "FFN -30 %, 4 bits"


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
    """Time every shape against dense, and our graphs against onnxruntime-genai's."""
    dense = dense_geometry(quick=context.quick)
    shapes = {"dense": dense, **variants(dense)}
    made = {name: _make(context, number, shape) for number, (name, shape) in enumerate(shapes.items())}
    counts = _count(context, {name: row["model"] for name, row in made.items() if "error" not in row})
    rows = [
        _compare(context, name, number, shapes, made, counts) for number, name in enumerate(shapes) if name != "dense"
    ]
    for name, shape in {"4 bits": "dense", STACKED: "FFN -30 %"}.items():
        packed = _quantize(context, name, made[shape], _INT4)
        rows.append(_packed_row(context, name, shapes[shape].parameters / dense.parameters, packed, made["dense"]))
    builder: Row = {}
    skipped: list[Row] = []
    pairs = {"fp32": (made["dense"], "export_builder", {})}
    pairs["4 bits"] = (_quantize(context, "as-builder", made["dense"], _BUILDER_INT4), "genai_int4", {"options": []})
    for precision, pair in pairs.items():
        try:
            builder[precision] = _builder(context, precision, *pair)
        except RuntimeError as error:
            skipped.append({"what": f"onnxruntime-genai's builder, {precision}", "reason": str(error)})
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
    row["phases"] = [_phase(phase, _ideal(phase, name, shapes, counts)) for phase in timed["phases"]]
    return row


def _ideal(phase: Row, name: str, shapes: dict[str, Geometry], counts: dict[str, dict[str, int]]) -> float | None:
    """Return the speed-up that bytes read by a decode step, or FLOPs of a prefill, would give."""
    length = phase["length"]
    if phase["name"] == "decode":
        return shapes["dense"].decode_bytes(length) / shapes[name].decode_bytes(length)
    if name in counts and "dense" in counts:
        return counts["dense"][str(length)] / counts[name][str(length)]
    return None


def _phase(phase: Row, ideal: float | None) -> Row:
    return {
        "name": phase["name"],
        "length": phase["length"],
        "speedup": phase["speedup"],
        "quartiles": phase["speedup_quartiles"],
        "ideal": ideal,
        "share_of_ideal": phase["speedup"] / ideal if ideal else None,
        "latency_ms": {side: phase[side]["latency_ms"] for side in ("ours", "other")},
    }


def _effort(context: Context) -> Row:
    return {"rounds": 7, "seconds": 1.0} if context.quick else {"rounds": 31, "seconds": 6.0}


def _quantize(context: Context, name: str, made: Row, options: Row) -> Row:
    """Export a model with its weights rounded to the nearest step of a 4-bit grid."""
    if "error" in made:
        return made
    slug = _slug(name)
    out = context.scratch / SUITE / f"onnx-{slug}"
    spec = {"model": made["model"], "out": str(out), "rtn": options, "work": str(context.scratch / SUITE / slug)}
    return {**context.step(SUITE, f"onnx-{slug}", "export_ours", spec), "model": made["model"], "out": str(out)}


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _packed_row(context: Context, name: str, parameters: float, ours: Row, dense: Row) -> Row:
    row: Row = {"shape": name, "parameters_ratio": parameters}
    if error := ours.get("error") or dense.get("error"):
        return {**row, "error": error}
    spec = {"ours": ours["out"], "other": dense["out"], "lengths": list(_contexts(context)), **_effort(context)}
    slug = _slug(name)
    timed = context.step(SUITE, f"timing-{slug}", "timing", spec)
    if "error" in timed:
        return {**row, "error": timed["error"]}
    row["bytes_ratio"] = timed["bytes"]["ours"] / timed["bytes"]["other"]
    row["phases"] = [_phase(phase, None) for phase in timed["phases"]]
    return {**row, "genai": {str(n): _generate(context, f"{slug}-{n}", ours, dense, n) for n in _contexts(context)}}


def _generate(context: Context, name: str, ours: Row, other: Row, prompt: int) -> Row:
    """Decode with both in onnxruntime-genai, which keeps the cache in place, unlike a plain session."""
    spec = {"ours": ours["out"], "other": other["out"], "prompt": prompt, "tokens": _TOKENS}
    spec |= {"rounds": 4 if context.quick else 20, "vocabulary": dense_geometry(quick=context.quick).vocabulary}
    return {**context.step(SUITE, f"generation-{name}", "generation", spec), "prompt": prompt, "tokens": _TOKENS}


def _builder(context: Context, precision: str, ours: Row, job: str, options: Row) -> Row:
    """Compare with a graph of onnxruntime-genai's own builder, in a plain session and in its own runtime.

    Raises:
        RuntimeError: one of the two graphs could not be built.
    """
    if "error" in ours:
        raise RuntimeError(ours["error"])
    slug = _slug(precision)
    out = context.scratch / SUITE / f"builder-{slug}"
    built = context.step(SUITE, f"builder-{slug}", job, {"model": ours["model"], "out": str(out), **options})
    if "error" in built:
        raise RuntimeError(built["error"])
    pair = {"ours": ours["out"], "other": str(out)}
    lengths = list(_contexts(context))
    timed = context.step(SUITE, f"timing-builder-{slug}", "timing", {**pair, "lengths": lengths, **_effort(context)})
    found: Row = {"session": timed, "genai": _generate(context, slug, ours, {"out": str(out)}, _PROMPT)}
    if precision == "fp32":
        found["export"] = {"ours": _cost(ours), "builder": _cost(built)}
    return found


def _cost(export: Row) -> Row:
    return {key: export[key] for key in ("seconds", "cpu_seconds", "peak_bytes", "added_bytes", "file_bytes")}
