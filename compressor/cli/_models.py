"""`compressor inspect`, `verify`, `bench` and `eval`: commands on a folder that is there."""

from __future__ import annotations

import contextlib
import json as jsonlib
import tempfile
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli._output import emit_json, finite, method_options, results, working
from compressor.cli._run import JsonOption, QuietOption, failures
from compressor.errors import CompressorError, ModelError, RecipeError, VerificationError

if TYPE_CHECKING:
    from compressor.data.reading import DataRequest
    from compressor.machine.progress import Progress
    from compressor.recipe import ExportSection, ModelSection
    from compressor.verification import Verdict

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder.", show_default=False)]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")]


class MetricName(StrEnum):
    """What `eval` can measure: `compressor.measure.evaluation.METRICS`, which would take numpy to ask."""

    PERPLEXITY = "perplexity"
    KL = "kl"
    TOP1 = "top1"
    COSINE = "cosine"
    COSINE_MIN = "cosine_min"
    SPEARMAN = "spearman"
    ACCURACY = "accuracy"


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Model folder, artifact or hub id.", show_default=False)],
    json: JsonOption = False,
) -> None:
    """Show the structure of a model or artifact: shapes by layer, parameters, bytes, operations."""
    with working(quiet=True):
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
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Verify an artifact in a fresh process: files, graph, outputs, quality, speed and bounds.

    Without --against, it is checked against the outputs that were recorded when it was made.
    """
    _need_folder(artifact)
    limits = _bounds(artifact, bounds, with_recipe=against is not None)
    with working(quiet=quiet) as progress, _dense(against, artifact, progress) as dense:
        from compressor.verification import Job, run_fresh

        progress.stage("verify")
        request, metrics = _evaluation(artifact, data, with_recipe=dense is not None)
        manifest = _manifest(artifact)
        job = Job(
            artifact=artifact,
            dense=dense,
            bounds=limits,
            data=request,
            metrics=metrics,
            passes=_passes(manifest),
            threads=threads,
            timing=timing and dense is not None,
            flops=_flops(dense, artifact, request),
        )
        verdict = run_fresh(job)
    report = _verification_report(artifact, manifest, verdict)
    if json:
        emit_json(report)
    else:
        from compressor.report.terminal import render_report

        render_report(report, results())
    if (error := verdict.error()) is not None:
        raise type(error)(failures(report))


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
        from compressor.measure.benchmark import compare
        from compressor.model.folder import resolve_path

        ours = resolve_path(artifact)
        with _dense(against, ours, progress) as other:
            progress.stage("time")
            timing = compare(ours, other, threads=threads, batch=batch, length=length, rounds=rounds).to_json()
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
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the quality of a model or artifact on held-out data."""
    with working(quiet=quiet) as progress:
        from compressor.data.reading import DataRequest, load_data
        from compressor.measure.evaluation import evaluate as measure
        from compressor.measure.opening import open_runner
        from compressor.model.folder import open_model, resolve_path
        from compressor.pipeline.prepare import sample_length

        progress.stage("load")
        folders = [resolve_path(name) for name in (path, against) if name is not None]
        tokens = min(sample_length(open_model(folder), length, "--length") for folder in folders)
        runner = open_runner(folders[0], threads)
        reference = open_runner(folders[1], threads) if against is not None else None
        request = DataRequest(data, (Path.cwd(),), samples, tokens, 0, "evaluation")
        loaded = load_data(request, runner.task, folders[0])
        progress.stage("evaluate")
        metrics = measure(runner, loaded, [str(name) for name in metric or ()], reference)
    if json:
        emit_json({"path": path, "task": runner.task, "data": data, "samples": len(loaded), "metrics": metrics})
    else:
        from compressor.report.terminal import render_eval

        render_eval(finite(metrics), results())


def _need_folder(artifact: Path) -> None:
    if not artifact.is_dir():
        raise ModelError(f"{artifact}: no such artifact folder", hint="Give the folder that `compressor run` wrote.")


@contextlib.contextmanager
def _dense(against: str | None, artifact: Path, progress: Progress) -> Iterator[Path | None]:
    """Give the model to compare with in the artifact's format: a PyTorch model is exported for an ONNX artifact."""
    if against is None:
        yield None
        return
    from compressor.model.folder import open_model, resolve_path
    from compressor.storage.artifact import runtime_model

    folder = resolve_path(against)
    if runtime_model(artifact) is None or runtime_model(folder) is not None:
        yield folder
        return
    from compressor.pipeline.run import export_dense

    progress.stage("export the model to compare with")
    model, export = _own_sections(artifact)
    source = open_model(folder, task=model.task, dtype=model.dtype)
    with tempfile.TemporaryDirectory(prefix="compressor-dense-") as place:
        export_dense(source, Path(place), export)
        yield Path(place)


def _own_sections(artifact: Path) -> tuple[ModelSection, ExportSection]:
    """Return how the recipe of an artifact, overrides included, opened its model and exported it; else the defaults."""
    from compressor.recipe import ExportSection, ModelSection

    recipe = _manifest(artifact).get("recipe")
    stated = recipe if isinstance(recipe, dict) else {}
    try:
        return ModelSection(**stated.get("model") or {}), ExportSection(**stated.get("export") or {})
    except (TypeError, ValueError):  # of another release
        return ModelSection(), ExportSection()


def _manifest(folder: Path) -> dict[str, Any]:
    """Return compression.json where it can be read; verification says what is wrong with it where it cannot."""
    try:
        found = jsonlib.loads((folder / "compression.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _bounds(artifact: Path, file: Path | None, *, with_recipe: bool) -> dict[str, dict[str, float]]:
    from compressor.recipe import load_bounds

    own = artifact / "recipe.yaml"
    if file is not None:
        return {name: bound.to_json() for name, bound in load_bounds(file).items()}
    if not with_recipe or not own.is_file():
        return {}
    try:
        return {name: bound.to_json() for name, bound in load_bounds(own).items()}
    except RecipeError as error:
        raise VerificationError(error.message, hint="Give the bounds with --bounds FILE.") from error


def _evaluation(artifact: Path, data: str | None, *, with_recipe: bool) -> tuple[DataRequest | None, tuple[str, ...]]:
    """Return what to evaluate on, and the metrics: what the user says, else what the artifact's recipe says."""
    from compressor.data.reading import DataRequest, find_data
    from compressor.model.cost import default_length
    from compressor.model.folder import open_model
    from compressor.recipe import load_recipe

    section = None
    own = artifact / "recipe.yaml"
    if own.is_file() and (with_recipe or data is not None):
        with contextlib.suppress(RecipeError):  # of another release: its bounds were read, its passes are not needed
            section = load_recipe(own, options=method_options()).evaluation
    samples, length = (section.samples, section.length) if section is not None else (None, 512)
    source = data or (section.data if section is not None and with_recipe else None)
    if source is None:
        return None, ()
    with contextlib.suppress(CompressorError):  # verification says what is wrong with the artifact
        length = default_length(open_model(artifact), length)
    recorded = _manifest(artifact).get("data_folders")
    folders = [Path(str(folder)) for folder in recorded] if isinstance(recorded, list) else []
    request = DataRequest(source, (Path.cwd(), artifact, *folders), samples, length, 0, "evaluation")
    find_data(request)
    return request, tuple(section.metrics) if section is not None and data is None else ()


def _passes(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the methods that the artifact says were applied."""
    entries = manifest.get("passes")
    if not isinstance(entries, list):
        return ()
    return tuple(str(entry.get("name")) for entry in entries if isinstance(entry, dict))


def _flops(dense: Path | None, artifact: Path, request: DataRequest | None) -> tuple[int, int] | None:
    """Return the theoretical operations of both models on one sample, None where one of them cannot be read."""
    if dense is None:
        return None
    from compressor.model.cost import count_flops, default_length
    from compressor.model.folder import open_model

    try:
        models = open_model(dense), open_model(artifact)
        length = request.length if request is not None else default_length(models[1], None)
        return count_flops(models[0], length), count_flops(models[1], length)
    except CompressorError:
        return None


def _verification_report(artifact: Path, manifest: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as a version 1 report; what the artifact's own report says is not repeated."""
    from compressor.report.schema import build_report

    model = {"id": str(manifest.get("model") or artifact.resolve().name), "task": str(manifest.get("task") or "")}
    return build_report(
        model=model,
        dense=verdict.dense,
        compressed=verdict.compressed,
        checks=verdict.to_json()["checks"],
        speedup=verdict.ratios.get("speedup"),
        seconds={"verify": verdict.seconds, "total": verdict.seconds},
        peak_memory_bytes=verdict.peak_memory_bytes,
    )


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
