"""Peak memory of a compression over the depth of the model: goal S5."""

from __future__ import annotations

import re
from dataclasses import asdict

from tests.bench.harness import Context, Row, drop
from tests.bench.synthetic import Geometry

SUITE = "memory"
_DEPTHS, _QUICK_DEPTHS = (4, 10, 20, 40), (2, 4)
_SAMPLES, _LENGTH = 32, 128
_METHODS = {
    "width": ("width", {"importance": "obs", "allocation": "global", "sparsity": 0.3}),
    "slicegpt": ("slicegpt", {"rotation": "shared", "reduction": 0.2}),
}
_EMPTY = 1
_NEXT_TO_NOTHING = Geometry(2, 32, 64, 4, 2, 8, 1024, 512)
"""The peak of a run on this is what the interpreter costs with all libraries that a run loads when it needs them."""
_STREAMS = 2


def geometry(depth: int, *, quick: bool) -> Geometry:
    """Return the shapes of the model of a depth; all else is alike."""
    if quick:
        return Geometry(depth, 128, 344, 4, 2, 32, 1024, 512)
    return Geometry(depth, 384, 1024, 6, 3, 64, 2048, 512)


def run(context: Context) -> Row:
    """Run both methods at every depth, up to and including the export, and on next to nothing."""
    from compressor.demo import TRAIN_TEXT

    depths = _QUICK_DEPTHS if context.quick else _DEPTHS
    wanted = {name: [d for d in depths if re.search(context.only or "", f"{name}-{d}")] for name in _METHODS}
    depths = tuple(d for d in depths if any(d in chosen for chosen in wanted.values()))
    shapes = {_EMPTY: _NEXT_TO_NOTHING} | {d: geometry(d, quick=context.quick) for d in depths}
    models = {d: context.folder(SUITE, f"model-{d}") for d in shapes}
    specs = {
        f"model-{d}": {"folder": str(models[d]), "geometry": asdict(shape), "seed": d} for d, shape in shapes.items()
    }
    made = context.steps(SUITE, "synthetic", specs)
    specs = {
        f"{name}-{depth}": {
            "model": str(models[depth]),
            "method": method,
            "options": options,
            "samples": _SAMPLES,
            "length": _LENGTH,
            "data": str(TRAIN_TEXT),
            "work": _work(context, name, depth),
            "cache": cache_bytes(shapes[depths[0]]),
        }
        for name, (method, options) in _METHODS.items()
        for depth in (_EMPTY, *wanted[name])
        if wanted[name]
    }
    done = context.steps(SUITE, "shrink", specs)
    for key in [*specs, *(f"model-{d}" for d in shapes)]:
        drop(context.scratch / SUITE / key)
    rows = [
        _row(name, depth, shapes[depth], made[f"model-{depth}"], done[f"{name}-{depth}"], done[f"{name}-{_EMPTY}"])
        for name in _METHODS
        for depth in wanted[name]
    ]
    settings = {"samples": _SAMPLES, "length": _LENGTH, "geometry": asdict(shapes[depths[0]])}
    return {"settings": settings, "rows": rows, "flatness": flatness(rows), "skipped": []}


def cache_bytes(shape: Geometry) -> int:
    """Return the budget for activations: the dense and the current stream at one depth; all else spills to disk."""
    return _STREAMS * _SAMPLES * _LENGTH * shape.hidden * 4


def _work(context: Context, name: str, depth: int) -> str:
    drop(context.scratch / SUITE / f"{name}-{depth}")
    return str(context.folder(SUITE, f"{name}-{depth}"))


def _row(method: str, depth: int, shape: Geometry, made: Row, result: Row, empty: Row) -> Row:
    row: Row = {"method": method, "blocks": depth}
    if error := made.get("error") or result.get("error") or empty.get("error"):
        return {**row, "error": error}
    return {
        **row,
        "weights_bytes": 4 * shape.parameters,
        "allowed_bytes": empty["peak_bytes"] + 2 * made["block_bytes"] + cache_bytes(shape),
        "block_bytes": made["block_bytes"],
        "outside_bytes": 4 * shape.outside_parameters,
        "cache_bytes": cache_bytes(shape),
        "imported_bytes": result["interpreter_bytes"],
        "interpreter_bytes": empty["peak_bytes"],
        "pass_peak_bytes": result["pass_peak_bytes"],
        "peak_bytes": result["peak_bytes"],
        "pass_cpu_seconds": result["pass_cpu_seconds"],
        "export_seconds": result["export_seconds"],
    }


def flatness(rows: list[Row]) -> dict[str, Row]:
    """Return per method the peak at the greatest depth over that at the least, of the pass and with the export."""
    found: dict[str, Row] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = sorted((r for r in rows if r["method"] == method and "error" not in r), key=lambda row: row["blocks"])
        if len(mine) > 1:
            low, high = mine[0], mine[-1]
            found[method] = {
                "blocks": [low["blocks"], high["blocks"]],
                "pass": high["pass_peak_bytes"] / low["pass_peak_bytes"],
                "with_export": high["peak_bytes"] / low["peak_bytes"],
                "added_bytes": high["peak_bytes"] - low["peak_bytes"],
                "weights_added_bytes": high["weights_bytes"] - low["weights_bytes"],
            }
    return found
