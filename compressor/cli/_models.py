"""`compressor inspect`, `verify`, `bench` and `eval`: commands on a folder that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli._output import emit_json, finite, results, working
from compressor.cli._run import JsonOption, QuietOption, failures
from compressor.errors import ModelError, VerificationError
from compressor.machine.libraries import without_collector

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder.", show_default=False)]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")]


class MetricName(StrEnum):
    """What `eval` can measure: `compressor.measure.evaluation.METRICS`, which would take numpy to ask."""

    PERPLEXITY = "perplexity"
    KL = "kl"
    TOP1 = "top1"
    GREEDY = "greedy"
    COSINE = "cosine"
    COSINE_MIN = "cosine_min"
    COSINE_VISION = "cosine_vision"
    COSINE_TEXT = "cosine_text"
    SPEARMAN = "spearman"
    PEARSON = "pearson"
    RANK = "rank"
    RELATIVE_ERROR = "relative_error"
    ACCURACY = "accuracy"
    F1 = "f1"


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Model folder, artifact or hub id.", show_default=False)],
    json: JsonOption = False,
) -> None:
    """Show the structure of a model or artifact: shapes by layer, parameters, bytes, operations."""
    with working(quiet=True), without_collector():
        from compressor import pipeline

        info = pipeline.inspect(path)
    if json:
        emit_json(info)
    else:
        from compressor.report.terminal import render_inspect

        render_inspect(info, results())


def verify(
    artifact: ArtifactArgument,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="The dense model.", show_default=False)
    ] = None,
    bounds: Annotated[
        Path | None,
        typer.Option(
            "--bounds",
            metavar="FILE",
            help="YAML with bounds as in a recipe's verify section, or a recipe; with --against, the artifact's own"
            " recipe if absent.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Held-out data; with --against, that of the artifact's recipe if absent.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = 1,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Measure speed.")] = True,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="PUBKEY",
            help="Public key (PEM) whose owner must have signed the artifact (needs the extra `sign`).",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Verify an artifact in a fresh process: files, graph, outputs, quality, speed and bounds.

    Without --against, it is checked against the outputs that were recorded when it was made.
    """
    with working(quiet=quiet) as progress:
        with without_collector():
            from compressor import pipeline

        report = pipeline.verify(
            artifact,
            against=against,
            bounds=bounds,
            data=data,
            threads=threads,
            timing=timing,
            key=key,
            progress=progress,
        )
    if json:
        emit_json(report)
    else:
        from compressor.report.terminal import render_report

        render_report(report, results())
    if report["verdict"] != "passed":
        damaged = any(check["damaged"] for check in report["checks"])
        raise (ModelError if damaged else VerificationError)(failures(report))


def bench(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Artifact or model.", show_default=False)],
    against: Annotated[
        str | None, typer.Option("--against", metavar="OTHER", help="Model or artifact to compare.", show_default=False)
    ] = None,
    threads: ThreadsOption = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per call.")] = 1,
    length: Annotated[
        int | None,
        typer.Option("--length", min=1, help="Tokens per sample; 128 (encoders 64).", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds per phase.")] = 15,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time an artifact, side by side with another one: one process, interleaved rounds, medians."""
    with working(quiet=quiet) as progress:
        with without_collector():
            from compressor import pipeline

        timing = pipeline.bench(
            artifact, against=against, threads=threads, batch=batch, length=length, rounds=rounds, progress=progress
        ).to_json()
    if json:
        emit_json(timing)
    else:
        from compressor.report.terminal import render_timing

        render_timing(_timing_view(timing), results())


def evaluate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Model folder, artifact or hub id.", show_default=False)],
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="Held-out data.", show_default=False)],
    metric: Annotated[
        list[MetricName] | None,
        typer.Option("--metric", metavar="NAME", help="What to measure; may be repeated.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="MODEL", help="Dense model (kl, top1, cosine).", show_default=False),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="How many; all if absent.", show_default=False)
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            min=1,
            help="Tokens per window or sentence; 512, or what the model's positions allow.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = 1,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="PATH",
            help="Table of label and prompt, for a model of two towers; an artifact's own if absent.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="How a question is put to a LLaVA model, with {question} in it; as an artifact's recipe says if"
            " absent.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the quality of a model or artifact on held-out data."""
    with working(quiet=quiet) as progress:
        with without_collector():
            from compressor import pipeline

        found = pipeline.evaluate(
            path,
            data=data,
            metrics=[str(name) for name in metric or ()],
            against=against,
            samples=samples,
            length=length,
            threads=threads,
            prompts=prompts,
            prompt=prompt,
            progress=progress,
        )
    if json:
        emit_json(asdict(found))
    else:
        from compressor.report.terminal import render_eval

        render_eval(finite(found.metrics), results())


def _timing_view(timing: Mapping[str, Any]) -> dict[str, Any]:
    """Return a benchmark as the terminal table takes it."""
    first = [phase for phase in timing["phases"] if phase["batch"] == timing["phases"][0]["batch"]]
    return {
        "ours": timing["latency_ms"]["ours"],
        "other": timing["latency_ms"]["other"] or None,
        "speedup": timing["speedup"],
        "tokens_per_second": {phase["name"]: phase["ours"]["per_second"] for phase in first},
        "threads": timing["threads"],
        "batch": first[0]["batch"],
        "length": first[0]["length"],
        "rounds": timing["rounds"],
    }
