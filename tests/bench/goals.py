"""The figures to beat, and what came out beside them. References are quoted, not measured here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.bench.real import INT4, PEER
from tests.bench.speed import STACKED

Results = Mapping[str, Any]
NOISE = 0.05
"""Differences of latency below this share are noise."""

_S1 = {"0.2": (1.010, 1.029, 1.012), "0.3": (1.018, 1.052, 1.021), "0.5": (1.050, 1.148, 1.059)}
_S2 = {"0.2": (1.020, 1.030, 1.022), "0.285": (1.038, 1.056, 1.044), "0.375": (1.070, 1.114, 1.080)}
_S3, _S3_LABORATORY = 1.14, 1.165
_S4 = {"slicegpt": (21.5, "43–48 s"), "width": (17.5, "35–43 s")}
_S6, _E1, _E2, _E3, _U1 = 0.90, 1.0, 0.95, 1.3, 0.5
_P1 = 8.0


@dataclass(frozen=True)
class Judged:
    """One goal.

    Attributes:
        key: its number.
        what: what is measured.
        goal: the bound, as text.
        reference: what others reach, as text.
        ours: what was measured, as text.
        met: whether the bound holds; None where nothing was measured.
        note: what to know about it.
    """

    key: str
    what: str
    goal: str
    reference: str
    ours: str = "not measured"
    met: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `not met` or `–`."""
        return {True: "met", False: "**not met**", None: "–"}[self.met] + (f" ({self.note})" if self.note else "")


def judge(results: Results) -> list[Judged]:
    """Return all goals with what the results say about them."""
    return [
        *_quality(results.get("quality")),
        *_cost(results.get("quality")),
        *_quantize(results.get("quantize"), results.get("speed")),
        *_real(results.get("real")),
        *_memory(results.get("memory")),
        *_speed(results.get("speed")),
        *_export(results.get("export")),
        _start(results.get("cli")),
    ]


def option(line: str, name: str) -> str | None:
    """Return the value of an option in a recipe line such as `width: {sparsity: 0.3}`."""
    for part in line.partition("{")[2].rpartition("}")[0].split(","):
        key, _, value = part.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _llama(quality: Results | None, start: str, key: str, value: str) -> Results | None:
    for row in (quality or {}).get("rows", ()):
        line = row["pass"]
        single = " + " not in line and line.startswith(start) and "per_layer" not in line
        if row["model"] == "llama-wt2" and single and option(line, key) == value and "error" not in row:
            return dict(row)
    return None


def _quality(quality: Results | None) -> list[Judged]:
    found = []
    for value, (goal, cfsp, laboratory) in _S1.items():
        row = _llama(quality, "width", "sparsity", value)
        what = f"llama-wt2, FFN −{float(value):.0%}: perplexity over dense"
        found.append(_ratio("S1", what, goal, f"CFSP {cfsp:.3f}, laboratory {laboratory:.3f}", row))
    for value, (goal, sliced, laboratory) in _S2.items():
        row = _llama(quality, "slicegpt", "reduction", value)
        what = f"llama-wt2, −{float(value):.1%} of all parameters: perplexity over dense"
        found.append(_ratio("S2", what, goal, f"SliceGPT {sliced:.3f}, laboratory {laboratory:.3f}", row, stock=True))
    half = [
        row
        for row in (quality or {}).get("rows", ())
        if row["model"] == "llama-wt2" and "error" not in row and 0.49 < 1 - row["ratios"]["parameters"] < 0.52
    ]
    best = min(half, key=lambda row: row["perplexity_ratio"], default=None)
    what = "llama-wt2, −50 % of all parameters: perplexity over dense"
    found.append(_ratio("S3", what, _S3, f"laboratory {_S3_LABORATORY:.3f}", best))
    return found


def _ratio(key: str, what: str, goal: float, reference: str, row: Results | None, *, stock: bool = False) -> Judged:
    base = Judged(key, what, f"≤ {goal:.3f}", reference)
    if row is None or "perplexity_ratio" not in row:
        return base
    met = row["perplexity_ratio"] <= goal and (row["stock_config"] or not stock)
    note = "" if row["stock_config"] or not stock else "not a plain config"
    removed = 1 - row["ratios"]["parameters"]
    ours = f"{row['perplexity_ratio']:.4f} (−{removed:.1%} of all parameters)"
    return Judged(key, what, base.goal, reference, ours, met, note)


def _cost(quality: Results | None) -> list[Judged]:
    found = []
    for method, (goal, reference) in _S4.items():
        rows = [
            row
            for row in (quality or {}).get("rows", ())
            if row["model"] == "llama-wt2" and row["pass"].startswith(method) and "per_layer" not in row["pass"]
            and "error" not in row
        ]  # fmt: skip
        name = {"slicegpt": "SliceGPT", "width": "CFSP"}[method]
        what = f"{method}: CPU seconds of calibration and pass, 512 × 256 tokens, 1 thread"
        base = Judged("S4", what, f"≤ {goal:g} s", f"{name} {reference}, another machine")
        if not rows:
            found.append(base)
            continue
        seconds = [row["compression"]["cpu_seconds"] for row in rows]
        ours = f"{min(seconds):.0f}–{max(seconds):.0f} s"
        found.append(Judged("S4", what, base.goal, base.reference, ours, max(seconds) <= goal))
    return found


def _quantize(quantize: Results | None, speed: Results | None) -> list[Judged]:
    rows = [row for row in quantize["rows"] if "error" not in row] if quantize is not None else []
    return [_int8(rows), _int4(rows), _stacked(speed)]


def _int8(rows: list[Any]) -> Judged:
    base = Judged(
        "Q1",
        "MiniLM INT8: cosine mean / min, latency over fp32, Spearman",
        "≥ .996 / .990, ≤ 0.40 ×, −.002",
        "optimum .993 / .987 at 0.41–0.45 ×",
    )
    row = next((r for r in rows if r["model"] == "MiniLM" and r["pass"].startswith("int8-dynamic")), None)
    if row is None or "speedup" not in row:
        return base
    metrics, latency = row["metrics"], 1 / row["speedup"]["forward"]
    drop = row["dense_metrics"]["spearman"] - metrics["spearman"]
    ours = f"{metrics['cosine']:.4f} / {metrics['cosine_min']:.4f} at {latency:.2f} ×, Spearman {-drop:+.4f}"
    met = metrics["cosine"] >= 0.996 and metrics["cosine_min"] >= 0.99 and latency <= 0.40 and drop <= 0.002
    return replace(base, ours=ours, met=met)


def _int4(rows: list[Any]) -> Judged:
    base = Judged("Q2", "llama-wt2 INT4, groups of 32: KL to fp32 (perplexity)", "below all others", "measured beside")
    llama = [row for row in rows if row["model"] == "llama-wt2" and "perplexity_ratio" in row]
    ours = [r for r in llama if re.match(r"(gptq|rsq): \{bits: 4(, symmetric: true)?\}$", r["pass"])]
    peers = [r for r in llama if r.get("peer") and "dynamic" not in r["pass"]]
    if not ours or not peers:
        return base
    best, other = min(ours, key=_divergence), min(peers, key=_divergence)
    text, reference = (f"{_divergence(r):.5f} ({r['perplexity_ratio']:.4f} ×), {r['pass']}" for r in (best, other))
    return replace(base, ours=text, reference=reference, met=_divergence(best) < _divergence(other))


def _divergence(row: Any) -> float:
    return float(row["metrics"]["kl"])


def _stacked(speed: Results | None) -> Judged:
    base = Judged("Q3", "pruned 30 % + INT4: bytes, decode over fp32, memory-bound", "≤ 0.15 ×, ≥ 3.5 ×", "none")
    row = next((r for r in (speed or {}).get("rows", ()) if r["shape"] == STACKED and "error" not in r), None)
    if row is None:
        return base
    decodes = [phase for phase in row["phases"] if phase["name"] == "decode"]
    text = ", ".join(f"{phase['speedup']:.2f} × at {phase['length']}" for phase in decodes)
    reached = [phase["speedup"] for phase in decodes]
    if generated := [one for one in row["genai"].values() if "speedup" in one]:
        text += "; in onnxruntime-genai " + ", ".join(f"{g['speedup']:.2f} × after {g['prompt']}" for g in generated)
        reached += [one["speedup"] for one in generated]
    met = row["bytes_ratio"] <= 0.15 and min(reached) >= 3.5
    return replace(base, ours=f"{row['bytes_ratio']:.3f} ×, {text}", met=met)


def _real(real: Results | None) -> list[Judged]:
    rows = {row["pass"]: row for row in (real or {}).get("rows", ()) if "error" not in row}
    width, int4 = rows.get("width: {sparsity: 0.2}"), rows.get(INT4)
    peer, genai = rows.get(PEER.title), (real or {}).get("genai") or {}
    cost = Judged("P1", "SmolLM2-135M, FFN −20%: CPU time over a dense forward pass", f"≤ {_P1:g} ×", "about 20 ×")
    gptq = Judged("P2", "SmolLM2-135M, gptq int4 over llm-compressor: CPU time, peak memory, perplexity",
                  "≤ 0.7 ×, ≤ 0.5 ×, ≤ 1 ×", "measured beside")  # fmt: skip
    decode = Judged("P3", "SmolLM2-135M int4 in onnxruntime-genai over its builder's graph: tokens/s, first token",
                    "≥ 1 ×, ≤ 1 ×", "measured beside")  # fmt: skip
    if width and "forwards" in width:
        cost = replace(cost, ours=f"{width['forwards']:.1f} ×", met=width["forwards"] <= _P1)
    if int4 and peer:
        ours = int4["compression"]
        ratios = [ours[key] / peer[key] for key in ("cpu_seconds", "peak_bytes")]
        worse = int4["perplexity_ratio"] / peer["perplexity_ratio"]
        text = f"{ratios[0]:.2f} ×, {ratios[1]:.2f} ×, {worse:.4f} ×"
        gptq = replace(gptq, ours=text, met=ratios[0] <= 0.7 and ratios[1] <= 0.5 and worse <= 1)
    if "speedup" in genai:
        speed, wait = genai["speedup"], genai["first_token_ratio"]
        near = speed >= 1 - NOISE and wait <= 1 + NOISE
        met = speed >= 1 and wait <= 1
        note = "within noise" if near and not met else ""
        decode = replace(decode, ours=f"{speed:.3f} ×, {wait:.3f} ×", met=met, note=note)
    return [cost, gptq, decode]


def _memory(memory: Results | None) -> list[Judged]:
    what = "peak memory of a compression with export"
    goals = ("≤ 2 blocks + activation cache + interpreter", "flat in depth")
    found = []
    for method, flat in ((memory or {}).get("flatness") or {}).items():
        rows = [row for row in memory["rows"] if row["method"] == method and "error" not in row]  # type: ignore[index]
        ratios = [row["peak_bytes"] / row["allowed_bytes"] for row in rows]
        low, high = flat["blocks"]
        found.append(
            Judged("S5", f"{method}: {what}", goals[0], "peers hold the model, often twice",
                   f"{min(ratios):.2f}–{max(ratios):.2f} × that", max(ratios) <= 1.0)
        )  # fmt: skip
        found.append(
            Judged("S5", f"{method}: the same, {high} blocks over {low}", goals[1], "–",
                   f"{flat['with_export']:.3f} × (passes alone {flat['pass']:.3f} ×)", flat["with_export"] <= 1 + NOISE)
        )  # fmt: skip
    return found or [Judged("S5", what, f"{goals[0]}, {goals[1]}", "peers hold the model, often twice")]


def _speed(speed: Results | None) -> list[Judged]:
    found = []
    for name in ("decode", "prefill"):
        shares = [
            phase["share_of_ideal"]
            for row in (speed or {}).get("rows", ())
            for phase in row.get("phases", ())
            if phase["name"] == name and phase["share_of_ideal"]
        ]
        what = f"{name} speed-up of smaller shapes over the {'bytes' if name == 'decode' else 'FLOPs'} ratio"
        ours = f"{min(shares):.0%}–{max(shares):.0%}" if shares else "not measured"
        met = min(shares) >= _S6 if shares else None
        found.append(Judged("S6", what, f"≥ {_S6:.0%}", "the ideal", ours, met))
    builders = (speed or {}).get("builder") or {}
    return found + [one for precision in ("fp32", "4 bits") for one in _builder(precision, builders.get(precision))]


def _builder(precision: str, builder: Results | None) -> list[Judged]:
    what = f"decode of our graph over onnxruntime-genai's own, {precision}"
    base = Judged("E1", what, f"≥ {_E1:.1f} ×", "its builder's graph")
    if not builder:
        return [base]
    found = []
    decodes = [p for p in builder["session"].get("phases", ()) if p["name"] == "decode"]
    if decodes:
        worst = min(decodes, key=lambda phase: phase["speedup"])
        text = ", ".join(f"{p['speedup']:.3f} × at {p['length']}" for p in decodes)
        found.append(_even(base, f"{what}, plain session", text, worst["speedup"]))
    if "speedup" in builder["genai"]:
        speedup = builder["genai"]["speedup"]
        found.append(_even(base, f"{what}, in onnxruntime-genai", f"{speedup:.3f} ×", speedup))
    return found or [base]


def _even(base: Judged, what: str, ours: str, speedup: float) -> Judged:
    met = speedup >= _E1
    note = "" if met or speedup < _E1 - NOISE else "within noise"
    return Judged(base.key, what, base.goal, base.reference, ours, met, note)


def _export(export: Results | None) -> list[Judged]:
    return [*_encoder(export), *_export_cost(export)]


def _encoder(export: Results | None) -> list[Judged]:
    others = {row["other"] for row in (export or {}).get("encoder", ())}
    found = []
    for other in sorted(others | {"optimum-cli O2"}):
        ratios = [row["latency_ratio"] for row in (export or {}).get("encoder", ()) if row["other"] == other]
        what = f"MiniLM: latency of our dense export over {other}"
        goal = f"≤ {_E2:.2f} ×" if other.startswith("optimum") else "–"
        ours = f"{min(ratios):.2f}–{max(ratios):.2f} ×" if ratios else "not measured"
        met = max(ratios) <= _E2 if ratios and other.startswith("optimum") else None
        found.append(Judged("E2", what, goal, other, ours, met))
    return found


def _export_cost(export: Results | None) -> list[Judged]:
    rows = [row for row in (export or {}).get("rows", ()) if "error" not in row]
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model and row["exporter"] == "ours"]
        others = [row for row in rows if row["model"] == model and row["exporter"].startswith("torch")]
        if not mine or not others:
            continue
        ratio = mine[0]["cpu_seconds"] / others[0]["cpu_seconds"]
        held = mine[0]["added_bytes"] / mine[0]["weights_bytes"]
        ours = f"{ratio:.2f} × the time, {held:.2f} × the weights in memory"
        theirs = f"torch.onnx: {others[0]['added_bytes'] / others[0]['weights_bytes']:.2f} × the weights"
        goal = f"≤ 1 × the time, ≤ {_E3:g} × the weights"
        note = "libraries outweigh so small a model" if held > _E3 and mine[0]["weights_bytes"] < 100e6 else ""
        what = f"{model}: export seconds and added memory"
        found.append(Judged("E3", what, goal, theirs, ours, ratio <= 1.0 and held <= _E3, note))
    return found or [Judged("E3", "export seconds and memory", f"no slower, ≤ {_E3:g} × the weights", "torch.onnx")]


def _start(cli: Results | None) -> Judged:
    rows = [row for row in (cli or {}).get("rows", ()) if row["command"] == "compressor --help"]
    base = Judged("U1", "`compressor --help`", f"≤ {_U1:g} s", "Olive 3–16 s, auto-round 22 s")
    if not rows:
        return base
    seconds = rows[0]["seconds"]
    return Judged(base.key, base.what, base.goal, base.reference, f"{seconds:.2f} s", seconds <= _U1)
