"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tests.bench.goals import Results, judge

_MB = 1e6


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; every row must be as long as the head."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells below a head of {len(head)}: {row}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def goals_table(results: Results) -> str:
    """Return all goals, with what was measured and whether it is enough."""
    rows = [(j.key, j.what, j.goal, j.reference, j.ours, j.verdict) for j in judge(results)]
    return table(("", "what", "goal", "reference", "ours", "verdict"), rows)


def quality_table(quality: Results) -> str:
    """Return one row per run."""
    head = ("model", "pass", "quality", "parameters", "bytes", "speed-up", "CPU s", "peak MB", "verdict")
    lines = [table(head, [_quality_row(row) for row in quality["rows"]]), ""]
    for item in quality["settings"]:
        length = f" of {item['length']} tokens" if item["length"] else ""
        held_out = "all" if item["held_out"] is None else item["held_out"]
        lines.append(f"* {item['name']}: calibration on {item['samples']} samples{length}, evaluation on {held_out}.")
    if untimed := list(dict.fromkeys(r["model"] for r in quality["rows"] if "error" not in r and "speedup" not in r)):
        lines.append(
            f"* {', '.join(untimed)}: speed-ups are those of each run's own report, taken while other runs went on."
        )
    return "\n".join(lines)


def _quality_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (row["model"], f"`{row['pass']}`", f"failed: {row['error']}", *[""] * 6)
    ratios, spent = row["ratios"], row["compression"]
    return (
        row["model"],
        f"`{row['pass']}`" + (f" on {row['evaluated']} samples" if row.get("evaluated") else ""),
        quality_text(row),
        f"{ratios['parameters']:.3f} ×",
        f"{ratios['bytes']:.3f} ×",
        speedup_text(row.get("speedup") or row["run_speedup"]),
        f"{spent['cpu_seconds']:.0f}",
        f"{spent['peak_bytes'] / _MB:.0f}",
        row["verdict"] + (f": {'; '.join(row['failed'])}" if row["failed"] else ""),
    )


def quality_text(row: Mapping[str, Any]) -> str:
    """Return the quality of a run in the words of its task."""
    ours, dense = row["metrics"], row["dense_metrics"]
    if "perplexity_ratio" in row:
        return f"perplexity {row['perplexity_ratio']:.4f} × ({dense['perplexity']:.2f} → {ours['perplexity']:.2f})"
    parts = []
    if "cosine" in ours:
        parts.append(f"cosine {ours['cosine']:.4f} mean, {ours['cosine_min']:.4f} min")
    for name in ("spearman", "accuracy"):
        if name in ours:
            parts.append(f"{name} {dense[name]:.4f} → {ours[name]:.4f}")
    if "top1" in ours:
        parts.append(f"agreement {ours['top1']:.1%}")
    return ", ".join(parts)


QUANTIZED = ("model", "quantizer", "quality", "KL", "bytes", "speed-up")


def quantize_table(quantize: Results) -> str:
    """Return one row per quantizer, ours and others."""
    head = (*QUANTIZED, "CPU s", "verdict")
    lines = [table(head, [quantize_row(row) for row in quantize["rows"]]), ""]
    for item in quantize["settings"]:
        length = f" of {item['length']} tokens" if item["length"] else ""
        held_out = "all" if item["held_out"] is None else item["held_out"]
        lines.append(f"* {item['name']}: calibration on {item['samples']} samples{length}, evaluation on {held_out}.")
    lines.append(
        "* Groups of 32 where nothing else is said; the head stays in float32 except where `head` says otherwise."
    )
    return "\n".join(lines)


def quantize_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one quantizer: those of `QUANTIZED`, CPU seconds and the verdict."""
    what = row["pass"] if row.get("peer") else f"`{row['pass']}`"
    if "error" in row:
        return (row["model"], what, f"failed: {row['error']}", *[""] * 5)
    divergence = row["metrics"].get("kl")
    size = row.get("ratios", {}).get("bytes")
    seconds = row["cpu_seconds"] if row.get("peer") else row["compression"]["cpu_seconds"]
    speedup = row.get("speedup") or row.get("run_speedup") or {}
    verdict = "" if row.get("peer") else row["verdict"] + (f": {'; '.join(row['failed'])}" if row["failed"] else "")
    return (
        row["model"],
        what,
        quality_text(row),
        "" if divergence is None else f"{divergence:.5f}",
        "" if size is None else f"{size:.3f} ×",
        speedup_text(speedup),
        f"{seconds:.0f}",
        verdict,
    )


def speedup_text(speedup: Mapping[str, float]) -> str:
    """Return speed-ups by phase."""
    return ", ".join(f"{name} {value:.2f} ×" for name, value in speedup.items())


def memory_table(memory: Results) -> str:
    """Return peaks by depth."""
    head = ("method", "blocks", "weights", "interpreter", "allowed", "passes", "with export", "over allowed", "CPU s")
    rows = []
    for row in memory["rows"]:
        if "error" in row:
            rows.append((row["method"], str(row["blocks"]), f"failed: {row['error']}", *[""] * 6))
            continue
        keys = ("weights_bytes", "interpreter_bytes", "allowed_bytes", "pass_peak_bytes", "peak_bytes")
        sizes = [f"{row[key] / _MB:.0f} MB" for key in keys]
        share = f"{row['peak_bytes'] / row['allowed_bytes']:.2f} ×"
        rows.append((row["method"], str(row["blocks"]), *sizes, share, f"{row['pass_cpu_seconds']:.0f}"))
    lines = [table(head, rows), ""]
    for method, flat in memory["flatness"].items():
        low, high = flat["blocks"]
        lines.append(
            f"{method}: from {low} to {high} blocks the peak grows by {flat['added_bytes'] / _MB:.0f} MB "
            f"({flat['with_export']:.3f} ×), the weights by {flat['weights_added_bytes'] / _MB:.0f} MB."
        )
    return "\n".join(lines)


def speed_table(speed: Results) -> str:
    """Return speed-ups beside their ideals, and the two dense graphs beside each other."""
    head = ("shape", "parameters", "phase", "tokens", "speed-up", "ideal", "share", "ms dense → ours")
    rows = []
    for row in speed["rows"]:
        first = (row["shape"], f"{row['parameters_ratio']:.3f} ×")
        if "error" in row:
            rows.append((*first, f"failed: {row['error']}", *[""] * 5))
        for phase in row.get("phases", ()):
            rows.append((*first, *_phase_cells(phase)))
    text = table(head, rows)
    if generated := [_generated_cells(r["shape"], g) for r in speed["rows"] for g in r.get("genai", {}).values()]:
        text += "\n\n" + table(
            ("decode in onnxruntime-genai", "tokens", "dense, tokens/s", "ours", "speed-up"), generated
        )
    for precision, builder in (speed.get("builder") or {}).items():
        text += f"\n\n{_builder_table(precision, builder)}"
    return text


def _phase_cells(phase: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = phase["quartiles"]
    latency = phase["latency_ms"]
    ideal, share = phase["ideal"], phase["share_of_ideal"]
    return (
        phase["name"],
        str(phase["length"]),
        f"{phase['speedup']:.2f} × ({low:.2f}–{high:.2f})",
        f"{ideal:.2f} ×" if ideal else "–",
        f"{share:.0%}" if share else "–",
        f"{latency['other']:.1f} → {latency['ours']:.1f}",
    )


def _generated_cells(shape: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    where = (shape, f"{row['tokens']} after {row['prompt']}")
    if "speedup" not in row:
        return (*where, f"failed: {row['error']}", "", "")
    per_second = row["tokens_per_second"]
    return (*where, f"{per_second['other']:.1f}", f"{per_second['ours']:.1f}", f"{row['speedup']:.2f} ×")


def _builder_table(precision: str, builder: Mapping[str, Any]) -> str:
    rows = []
    for phase in builder["session"].get("phases", ()):
        low, high = phase["speedup_quartiles"]
        speeds = [f"{phase[side]['per_second']:.1f}" for side in ("ours", "other")]
        where = f"plain session, {phase['name']} at {phase['length']}"
        rows.append((where, *speeds, f"{phase['speedup']:.3f} × ({low:.3f}–{high:.3f})"))
    decoded = builder["genai"]
    if "speedup" in decoded:
        per_second = decoded["tokens_per_second"]
        where = f"onnxruntime-genai, {decoded['tokens']} tokens after {decoded['prompt']}"
        speeds = [f"{per_second[side]:.1f}" for side in ("ours", "other")]
        rows.append((where, *speeds, f"{decoded['speedup']:.3f} ×"))
    else:
        rows.append((f"onnxruntime-genai: failed: {decoded['error']}", "", "", ""))
    return table((f"graphs in {precision}", "ours, tokens/s", "genai's builder, tokens/s", "ours over builder"), rows)


def export_table(export: Results) -> str:
    """Return what each exporter costs, and the latency of the encoder's graphs."""
    head = ("model", "exporter", "seconds", "CPU s", "peak MB", "above libraries MB", "weights MB", "file MB")
    rows = []
    for row in export["rows"]:
        if "error" in row:
            rows.append((row["model"], row["exporter"], f"failed: {row['error']}", *[""] * 5))
            continue
        sizes = [
            f"{row[key] / _MB:.0f}" if key in row else "–"
            for key in ("peak_bytes", "added_bytes", "weights_bytes", "file_bytes")
        ]
        rows.append((row["model"], row["exporter"], f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", *sizes))
    latency = [
        (row["other"], str(row["batch"]), str(row["length"]), f"{row['latency_ms']['ours']:.2f}",
         f"{row['latency_ms']['other']:.2f}", f"{row['latency_ratio']:.3f} ×")
        for row in export["encoder"]
    ]  # fmt: skip
    text = table(head, rows)
    if latency:
        names = ("MiniLM beside", "batch", "tokens", "ours ms", "other ms", "ours over other")
        text += "\n\n" + table(names, latency)
    return text


def cli_table(cli: Results) -> str:
    """Return how long commands take to start."""
    rows = [(f"`{r['command']}`", f"{r['seconds']:.3f}", f"{r['cpu_seconds']:.3f}") for r in cli["rows"]]
    return table(("command", "seconds", "CPU s"), rows)


def recipes_table(recipes: Results) -> str:
    """Return what the shipped recipes gave."""
    head = ("recipe", "model", "quality", "bytes", "speed-up", "s", "peak MB", "verdict")
    rows = []
    for row in recipes["rows"]:
        if "error" in row:
            rows.append((row["recipe"], row["model"], f"failed: {row['error']}", *[""] * 5))
            continue
        cost = (f"{row['total_seconds']:.0f}", f"{row['pipeline_peak_bytes'] / _MB:.0f}", row["verdict"])
        size, speed = f"{row['ratios']['bytes']:.3f} ×", speedup_text(row["run_speedup"])
        rows.append((row["recipe"], row["model"], quality_text(row), size, speed, *cost))
    return table(head, rows)


def tokens_table(tokens: Results) -> str:
    """Return what token reduction costs and brings; the ideal speed-up is that of the operations."""
    batches = next((item["batches"] for item in tokens["settings"]), ())
    head = ("model", "pass", "FLOPs", "accuracy", "agreement", "ideal", *(f"batch {n}" for n in batches), "verdict")
    rows = []
    for row in tokens["rows"]:
        if "error" in row:
            rows.append((row["model"], f"`{row['pass']}`", f"failed: {row['error']}", *[""] * (len(head) - 3)))
            continue
        ours, dense, flops = row["metrics"], row["dense_metrics"], row["ratios"]["flops"]
        speeds = [f"{p['speedup']:.2f} × ({p['speedup'] * flops:.0%})" for p in row.get("phases", ())]
        rows.append(
            (
                row["model"],
                f"`{row['pass']}`",
                f"{flops:.3f} ×",
                f"{dense['accuracy']:.1%} → {ours['accuracy']:.1%}",
                f"{ours['top1']:.1%}",
                f"{1 / flops:.2f} ×",
                *(speeds or ["–"] * len(batches)),
                row["verdict"] + (f": {'; '.join(row['failed'])}" if row["failed"] else ""),
            )
        )
    return table(head, rows)


def features_table(features: Results) -> str:
    """Return how near the embeddings stay, and what is saved: stored, counted and measured."""
    batches = features["settings"].get("batches", ())
    head = ("pass", "cosine", "least cosine", "bytes", "FLOPs", *(f"batch {n}" for n in batches), "verdict")
    rows = []
    for row in features["rows"]:
        if "error" in row:
            rows.append((f"`{row['pass']}`", f"failed: {row['error']}", *[""] * (len(head) - 2)))
            continue
        ours, ratios = row["metrics"], row["ratios"]
        speeds = [f"{phase['speedup']:.2f} ×" for phase in row.get("phases", ())]
        rows.append(
            (
                f"`{row['pass']}`",
                f"{ours['cosine']:.4f}",
                f"{ours['cosine_min']:.4f}",
                f"{ratios['bytes']:.3f} ×",
                f"{ratios['flops']:.3f} ×",
                *(speeds or ["–"] * len(batches)),
                row["verdict"] + (f": {'; '.join(row['failed'])}" if row["failed"] else ""),
            )
        )
    return table(head, rows)


def llava_table(llava: Results) -> str:
    """Return what answers are worth after each selection: right ones, overall and by kind, and distance from dense."""
    measured = [row for row in llava["rows"] if "error" not in row]
    kinds = list(measured[0]["kinds"]) if measured else []
    head = ("pass", "right answers", *kinds, "agreement", "KL, nats")
    rows = [
        (
            f"`{row['pass']}`" if row["pass"] else "all tokens",
            f"{row['accuracy']:.1%}",
            *(f"{row['kinds'][kind]:.1%}" for kind in kinds),
            f"{row['top1']:.1%}",
            f"{row['kl']:.3f}",
        )
        for row in measured
    ]
    failed = [(f"`{row['pass']}`", f"failed: {row['error']}") for row in llava["rows"] if "error" in row]
    return table(head, [*rows, *((*cells, *[""] * (len(head) - 2)) for cells in failed)])


def real_table(real: Results) -> str:
    """Return one row per run on the model of real size; below, a forward pass and onnxruntime-genai's decoding."""
    head = ("pass", "quality", "parameters", "bytes", "speed-up", "CPU s", "over a forward pass", "peak MB", "verdict")
    lines = [table(head, [_real_row(row) for row in real["rows"]])]
    if "cpu_seconds" in (real.get("forward") or {}):
        lines.append(f"One dense forward pass of the calibration data: {real['forward']['cpu_seconds']:.0f} CPU s.")
    genai = real.get("genai") or {}
    if "speedup" in genai:
        lines.append(
            f"4 bits in onnxruntime-genai: {genai['tokens_per_second']['ours']:.1f} tokens/s, {genai['speedup']:.3f} × "
            f"those of its builder's graph; {genai['first_token_ratio']:.3f} × the time to the first token."
        )
    return "\n\n".join(lines)


def _real_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (f"`{row['pass']}`", f"failed: {row['error']}", *[""] * 7)
    name = row["pass"] if row.get("peer") else f"`{row['pass']}`"
    spent = row.get("compression", row)
    times = f"{row['forwards']:.1f} ×" if "forwards" in row else ""
    cost = (f"{spent['cpu_seconds']:.0f}", times, f"{spent['peak_bytes'] / _MB:.0f}")
    if row.get("peer"):
        return (name, quality_text(row), "", "", "", *cost, "")
    ratios, speed = row["ratios"], speedup_text(row.get("speedup") or row["run_speedup"])
    shape = (f"{ratios['parameters']:.3f} ×", f"{ratios['bytes']:.3f} ×", speed)
    return (name, quality_text(row), *shape, *cost, row["verdict"])


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "quality": ("Quality, size and speed", quality_table),
    "quantize": ("Quantization, beside others", quantize_table),
    "real": ("A model of real size: SmolLM2-135M-Instruct", real_table),
    "tokens": ("Token reduction", tokens_table),
    "features": ("Features of images: DINOv2-small", features_table),
    "llava": ("Image tokens of a small LLaVA model", llava_table),
    "memory": ("Memory over depth", memory_table),
    "speed": ("Realised speed", speed_table),
    "export": ("Export", export_table),
    "cli": ("Starting up", cli_table),
    "recipes": ("Shipped recipes", recipes_table),
}
