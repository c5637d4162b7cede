"""A model or an artifact that is there, judged: verified, timed, its quality measured."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.data.questions import QUESTION
from compressor.data.reading import DataRequest, load_data
from compressor.errors import CompressorError, ModelError, UsageError
from compressor.exporters.steps import STEPS
from compressor.machine.progress import Progress
from compressor.measure.benchmark import compare
from compressor.measure.evaluation import evaluate as measure
from compressor.measure.opening import open_runner
from compressor.measure.timing import Timing
from compressor.model.cost import count_flops, default_length
from compressor.model.folder import open_model
from compressor.model.parts import joined_by, parts_of
from compressor.model.source import resolve_path
from compressor.pipeline.judge_whole import bench_whole, evaluate_whole, judge_whole
from compressor.pipeline.place import restore_all
from compressor.pipeline.prepare import sample_length
from compressor.pipeline.run import export_dense
from compressor.pipeline.source import part_in, source_against
from compressor.pipeline.stated import bounds_for, evaluation_data, manifest_of, own_sections, passes_of, prompts_for
from compressor.report.schema import build_report
from compressor.report.seal import check_greedy_again, check_metrics_again, check_recipe, check_reports
from compressor.storage.artifact import runtime_model
from compressor.verification import VERIFY_STEPS, Check, Job, Verdict, run_fresh
from compressor.verification.manifest import MANIFEST
from compressor.verification.signature import check_signature


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model on data.

    Attributes:
        path: the model or artifact, as the caller named it.
        task: of the model.
        data: what it was measured on, as the caller named it.
        samples: how many windows, pairs, sentences or labelled inputs there were.
        metrics: value by name; NaN where an output of the model was not finite.
        intervals: (low, high) of a metric: 95 % confidence, by bootstrap over the samples; with a dense model also of
            the changes from it.
    """

    path: str
    task: str
    data: str
    samples: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def verify(
    artifact: Path,
    *,
    progress: Progress,
    against: str | None = None,
    bounds: Path | None = None,
    data: str | None = None,
    threads: int = 1,
    timing: bool = True,
    key: Path | None = None,
) -> dict[str, Any]:
    """Verify an artifact in a fresh process; return the verdict as a version 1 report.

    Without `against`, it is checked against the outputs that were recorded when it was made.

    Args:
        artifact: its folder.
        progress: where to report how far it is.
        against: the dense model, a folder or hub id; it must be what stock transformers loads, and the model that was
            compressed.
        bounds: file with bounds, or a recipe; with `against`, the artifact's own recipe if None.
        data: held-out data; with `against`, that of the artifact's recipe if None.
        threads: of the runtime.
        timing: whether to measure speed, which takes `against`.
        key: public key whose owner must have signed the artifact; where that is not so, nothing of it is loaded.

    Raises:
        UsageError: the key cannot be used.
        ModelError: there is no artifact folder, or the dense model cannot be loaded.
        RecipeError: the file of bounds is not valid.
        DataError: there is no such data.
        VerificationError: the bounds of the artifact's own recipe cannot be read, or the artifact crashed its runtime.
    """
    restore_all(progress, artifact, against)
    _check_artifact(artifact)
    signature = (check_signature(artifact, key),) if key is not None else ()
    if any(not check.passed for check in signature):
        return _verification_report(artifact, manifest_of(artifact), Verdict(signature))
    limits = bounds_for(artifact, bounds, with_recipe=against is not None)
    manifest = manifest_of(artifact)
    if parts_of(artifact):
        verdict = judge_whole(
            artifact, progress=progress, against=against, limits=limits, data=data, threads=threads, timing=timing
        )
        more = _again(artifact, manifest, verdict, measured=against is not None and data is None)
        return _verification_report(artifact, manifest, replace(verdict, checks=(*signature, *verdict.checks, *more)))
    source = source_against(against, own_sections(artifact)[0], manifest, progress) if against is not None else []
    with _comparable(against, artifact, progress) as dense:
        progress.stage("verify", total=VERIFY_STEPS)
        request, metrics = evaluation_data(artifact, data, with_recipe=dense is not None)
        job = Job(
            artifact=artifact,
            dense=dense,
            bounds=limits,
            data=request,
            metrics=metrics,
            passes=passes_of(manifest),
            threads=threads,
            timing=timing and dense is not None,
            flops=_flops(dense, artifact, request),
        )
        verdict = run_fresh(job, advance=progress.advance)
    more = _again(artifact, manifest, verdict, measured=dense is not None and data is None)
    return _verification_report(
        artifact, manifest, replace(verdict, checks=(*signature, *source, *verdict.checks, *more))
    )


def _again(artifact: Path, manifest: Mapping[str, Any], verdict: Verdict, *, measured: bool) -> list[Check]:
    """Hold the artifact's reports and its recipe to manifest and files, and to what was `measured` again."""
    checks = [*check_reports(artifact, manifest), *check_recipe(artifact, manifest)]
    if measured:
        checks += check_metrics_again(artifact, verdict.compressed.get("metrics", {}))
        checks += check_greedy_again(artifact, verdict.greedy)
    return checks


def _check_artifact(folder: Path) -> None:
    """See that a folder is an artifact.

    Raises:
        ModelError: it is a file, is not there, or has no manifest.
    """
    hint = "Give the folder that `compressor run` wrote."
    if not folder.is_dir():
        what = "is a file, not an artifact folder" if folder.exists() else "no such artifact folder"
        raise ModelError(f"{folder}: {what}", hint=hint)
    if not (folder / MANIFEST).is_file():
        kind = "a model that was not compressed" if (folder / "config.json").is_file() else "no artifact"
        raise ModelError(f"{folder}: is {kind}: it has no {MANIFEST}", hint=hint)


def bench(
    artifact: str,
    *,
    progress: Progress,
    against: str | None = None,
    threads: int = 1,
    batch: int = 1,
    length: int | None = None,
    rounds: int = 15,
) -> Timing:
    """Time a model or artifact, alone or side by side with another one.

    Args:
        artifact: folder or hub id.
        progress: where to report how far it is.
        against: what to compare with; a PyTorch model is exported first as the artifact was.
        threads: of the runtime, for both.
        batch: samples per call.
        length: tokens per sample; 128, for encoders 64, if None.
        rounds: interleaved rounds per phase.

    Raises:
        UsageError: the models serve different tasks.
        ModelError: a model cannot be loaded.
    """
    restore_all(progress, artifact, against)
    ours = resolve_path(artifact)
    if parts_of(ours):
        return bench_whole(ours, against, progress, threads=threads, batch=batch, length=length, rounds=rounds)
    with _comparable(against, ours, progress) as other:
        progress.stage("time")
        return compare(ours, other, threads=threads, batch=batch, length=length, rounds=rounds)


def evaluate(
    path: str,
    *,
    data: str,
    progress: Progress,
    metrics: Sequence[str] = (),
    against: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    threads: int = 1,
    prompts: str | None = None,
    prompt: str | None = None,
) -> Evaluation:
    """Measure the quality of a model or artifact on held-out data.

    Args:
        path: folder or hub id.
        data: held-out data.
        progress: where to report how far it is.
        metrics: what to measure; empty for all that the data allow.
        against: the dense model, which `kl`, `top1` and `cosine` compare with.
        samples: how many; all if None.
        length: tokens per window or sentence; 512, or what the model's positions allow, if None.
        threads: of the runtime.
        prompts: table of label and prompt, for a model of two towers; that of the artifact's recipe if None.
        prompt: how questions about images are put to a LLaVA model; as the artifact's recipe says, or by the model's
            chat template, if None.

    Raises:
        UsageError: a metric is unknown, or cannot be measured on this model and these data.
        ModelError: a model cannot be loaded.
        DataError: the data cannot be used, or the model has fewer positions than `length`.
    """
    restore_all(progress, path, against)
    progress.stage("load")
    folders = [resolve_path(name) for name in (path, against) if name is not None]
    bases = (Path.cwd(),)
    if parts_of(folders[0]):
        return _evaluate_whole(path, folders, DataRequest(data, bases, samples, length or 512, 0, "evaluation"),
                               prompts, prompt, metrics, threads)  # fmt: skip
    if prompts is not None:
        raise UsageError(f"--prompts: {path} is no model of two towers, whose images are classified by prompts")
    if prompt is not None:
        raise UsageError(f"--prompt: {path} is no model of parts that is asked questions about images")
    tokens = min(sample_length(open_model(folder), length, "--length") for folder in folders)
    runner = open_runner(folders[0], threads)
    reference = open_runner(folders[1], threads) if against is not None else None
    request = DataRequest(data, bases, samples, tokens, 0, "evaluation")
    loaded = load_data(request, runner.task, folders[0])
    progress.stage("evaluate")
    found = measure(runner, loaded, metrics, reference)
    return Evaluation(path, runner.task, data, found.samples, found.ours, found.intervals()[0])


def _evaluate_whole(
    path: str,
    folders: Sequence[Path],
    images: DataRequest,
    prompts: str | None,
    prompt: str | None,
    metrics: Sequence[str],
    threads: int,
) -> Evaluation:
    """Measure a model of several parts, beside the dense one where `folders` has a second."""
    texts: DataRequest | None = None
    if joined_by(folders[0]).image_token is not None:
        if prompts is not None:
            raise UsageError(
                f"--prompts: {path} is asked questions about images", hint="Give --prompt TEXT with {question} in it."
            )
        images = replace(images, prompt=_asked(folders[0], prompt))
    elif prompt is not None:
        raise UsageError(f"--prompt: {path} is not asked questions about images", hint="Give --prompts TABLE.")
    else:
        texts = prompts_for(folders[0], images, prompts)
        if texts is None:
            raise UsageError(
                f"{path}: a model of two towers classifies images by prompts",
                hint="Give --prompts TABLE (label,prompt).",
            )
    dense = folders[1] if folders[1:] else None
    if dense is not None and set(parts_of(dense)) != set(parts_of(folders[0])):
        raise UsageError(f"--against {dense.name}: is no model of the parts {', '.join(parts_of(folders[0]))}")
    found = evaluate_whole(folders[0], dense, images, texts, metrics, threads)
    return Evaluation(path, joined_by(folders[0]).task, images.data, found.samples, found.ours, found.intervals()[0])


def _asked(folder: Path, prompt: str | None) -> str:
    """Return how questions are put to a model: as the user says, else as the recipe of an artifact does."""
    if prompt is not None and prompt.count(QUESTION) != 1:
        raise UsageError(f"--prompt: {prompt[:80]!r}; allowed: a text that holds {QUESTION} once")
    return prompt if prompt is not None else own_sections(folder)[0].prompt or ""


@contextlib.contextmanager
def _comparable(against: str | None, artifact: Path, progress: Progress) -> Iterator[Path | None]:
    """Give the model to compare with in the artifact's format: a PyTorch model is exported for an ONNX artifact."""
    if against is None:
        yield None
        return
    folder = resolve_path(against)
    model, export = own_sections(artifact)
    part = part_in(folder, model.part)
    if runtime_model(folder) is not None or (runtime_model(artifact) is None and part is None):
        yield folder
        return
    progress.stage("export the model to compare with", total=STEPS[export.format])
    source = open_model(folder, task=model.task, dtype=model.dtype, part=part)
    with tempfile.TemporaryDirectory(prefix="compressor-dense-") as place:
        export_dense(source, Path(place), export, progress.advance)
        yield Path(place)


def _flops(dense: Path | None, artifact: Path, request: DataRequest | None) -> tuple[int, int] | None:
    """Return the theoretical operations of both models on one sample, None where one of them cannot be read."""
    if dense is None:
        return None
    try:
        models = open_model(dense), open_model(artifact)
        length = request.length if request is not None else default_length(models[1], None)
        return count_flops(models[0], length), count_flops(models[1], length)
    except CompressorError:
        return None


def _verification_report(artifact: Path, manifest: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as a version 1 report; what the artifact's own report says is not repeated."""
    model = {"id": str(manifest.get("model") or artifact.resolve().name), "task": str(manifest.get("task") or "")}
    return build_report(
        model=model,
        dense=verdict.dense,
        compressed=verdict.compressed,
        checks=verdict.to_json()["checks"],
        speedup=verdict.ratios.get("speedup"),
        seconds={"verify": verdict.seconds, "total": verdict.seconds},
        peak_memory_bytes=verdict.peak_memory_bytes,
        greedy=verdict.greedy,
        kinds=verdict.kinds,
    )
