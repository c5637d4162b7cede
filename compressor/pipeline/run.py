"""A recipe from end to end: load, calibrate, passes, export, verify, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.architectures.tasks import TASKS
from compressor.data.kinds import Batches, EvalData, Inputs, TextData
from compressor.data.reading import model_batches
from compressor.errors import ModelError, UsageError
from compressor.exporters.steps import STEPS, Advance, silent
from compressor.machine.progress import Progress
from compressor.machine.threads import fixed_threads
from compressor.measure.streamed import measure_streamed
from compressor.model.cost import Cost, recorded_layers
from compressor.model.folder import ModelFolder
from compressor.passes.apply import Setting, apply_pass
from compressor.pipeline.artifact import export_model, grid_records
from compressor.pipeline.as_run import public_text
from compressor.pipeline.inputs import dense_basis, input_hashes, pass_fingerprint
from compressor.pipeline.mixed import calibration_batches, hash_of_seen, seen_by
from compressor.pipeline.place import check_target, located, put_in_place, rejected_folder, restore_all
from compressor.pipeline.plan import artifact_dtype, dense_dtype
from compressor.pipeline.prepare import Prepared
from compressor.pipeline.record import (
    Clock,
    compute_device,
    count_costs,
    of_part,
    pass_entry,
    quantization_step,
    run_report,
)
from compressor.pipeline.sealed import ALL, Made, graph_of, seal_one, seal_whole, summed, whole_job
from compressor.pipeline.source import checked_source, checked_whole, recorded, source_checks
from compressor.pipeline.sweep import swept
from compressor.pipeline.together import verify_whole
from compressor.pipeline.towers import taken_out
from compressor.pipeline.whole import Whole, prepare_any
from compressor.pipeline.work import DENSE_MARK, locked, remove_work, work_folder
from compressor.recipe import ExportSection, Recipe
from compressor.report import write_reports
from compressor.storage.artifact import ONNX_MODEL
from compressor.storage.grids import precision_of
from compressor.storage.json_files import read_json
from compressor.storage.processor import TARGET
from compressor.verification import REFERENCE, VERIFY_STEPS, Job, Verdict, run_fresh
from compressor.verification.probes import write_probes
from compressor.verification.quality import STEP
from compressor.verification.samples import collect
from compressor.verification.signature import open_signer, sign
from compressor.verification.source import why_skipped

ATTRIBUTION_WINDOWS = 32
"""Windows of text on which the loss of each pass is measured; other data is used whole."""


def run(
    recipe: Recipe,
    *,
    out: Path,
    progress: Progress,
    model: str | None = None,
    resume: bool = False,
    sign_with: Path | None = None,
) -> dict[str, Any]:
    """Carry out a recipe; return the report, which also lies in the artifact folder.

    The artifact is put at `out` when it is finished. If it fails verification and `out` holds one that passed, that one
    stays and the new one goes to `<out>.rejected`; the report's `artifact` key says where it lies.

    Args:
        recipe: what to do.
        out: the artifact folder.
        progress: where to report how far the run is.
        model: folder or hub id that takes the place of the recipe's.
        resume: go on from the finished blocks of a run that was stopped.
        sign_with: private key with which the artifact is signed if it passed; None signs nothing.

    Raises:
        CompressorError: with the exit code for what went wrong; nothing is left at `out`.
    """
    clock = Clock()
    out = located(out)
    restore_all(progress, out, rejected_folder(out), model or recipe.model.id)
    check_target(out)
    signer = open_signer(sign_with) if sign_with is not None else None
    with fixed_threads(recipe.threads):
        with clock.stage("load"):
            progress.stage("load")
            bound = prepare_any(recipe, model)
            parts = bound.parts if isinstance(bound, Whole) else {ALL: bound}
            if next(iter(parts.values())).source.path.resolve() == out.resolve():
                raise UsageError(f"-o {out}: this is the model to compress", hint="Give another folder.")
            for doubt in bound.doubts:
                progress.info(f"note: {doubt}")
            hashes = {part: input_hashes(prepared) for part, prepared in parts.items()}
        points = len(bound.recipe.others) * (1 + sum(_steps(prepared) + 1 for prepared in parts.values()))
        progress.expect(sum(map(_stages, parts.values())) + points + 1 + isinstance(bound, Whole))
        with locked(work_folder(out), resume=resume) as work:
            with clock.stage("load"):
                whole = checked_whole(bound.path, progress) if isinstance(bound, Whole) else {"skipped": ""}
            made: dict[str, Made] = {}
            for part, prepared in parts.items():
                made[part] = _make(prepared, hashes[part], work / part, graph_of(bound, part), progress, clock, made)
            return _finish(bound, made, whole, out, work, progress, clock, signer)


def _stages(prepared: Prepared) -> int:
    """Return how many stages follow beside verification: source gate, calibration, passes, two exports."""
    compares = prepared.recipe.export.format != "safetensors"
    return (why_skipped(prepared.source) is None) + _steps(prepared) + compares + 1


def _steps(prepared: Prepared) -> int:
    """Return how many stages calibration and passes are."""
    return (bool(prepared.passes) and prepared.uses_calibration) + len(prepared.passes)


def _make(
    prepared: Prepared,
    hashes: dict[str, str],
    work: Path,
    graph: str,
    progress: Progress,
    clock: Clock,
    before: Mapping[str, Made],
) -> Made:
    """Hold the source gate, apply the passes and export, in the folder `work`; the file of the graph is `graph`.

    `before` has the parts that are made already: a language model is calibrated on what its image encoder gives.
    """
    work.mkdir(exist_ok=True)
    with clock.stage("load"):
        source = checked_source(prepared, hashes, work, progress)
        prepared = taken_out(prepared, work)
    evaluation = prepared.load_evaluation()
    seen = seen_by(prepared, {part: made.compressed for part, made in before.items()})
    compressed, entries = _run_passes(prepared, hashes, evaluation, work, progress, clock, seen)
    with clock.stage("export"):
        dense = _export_dense(prepared, hashes, work, graph, progress)
        folder, facts = _export(prepared, compressed, entries, work, graph, progress)
    facts |= {"inputs": hashes, "source": recorded(source)}
    return Made(prepared, source, compressed, count_costs(prepared, compressed), entries, dense, folder, facts)


def _finish(
    bound: Prepared | Whole,
    made: Mapping[str, Made],
    whole: Mapping[str, Any],
    out: Path,
    work: Path,
    progress: Progress,
    clock: Clock,
    signer: Any,
) -> dict[str, Any]:
    """Seal the artifact, verify it, write its reports and put it in place; return the report.

    `whole` is what the source gate found of all parts together.
    """
    with clock.stage("export"):
        artifact = seal_whole(bound, made, recorded(whole), work) if isinstance(bound, Whole) else seal_one(made[ALL])
    with clock.stage("verify"):
        if isinstance(bound, Whole):
            job = whole_job(bound, made, artifact)
            progress.stage("verify", total=job.steps)
            verdict = verify_whole(job, progress.advance)
        else:
            progress.stage("verify", total=VERIFY_STEPS)
            verdict = run_fresh(_job(made[ALL], artifact), advance=progress.advance)
        gate = source_checks(whole)
        gate += [replace(c, name=f"{part}.{c.name}" if part else c.name)
                for part, one in made.items() for c in source_checks(one.source)]  # fmt: skip
        verdict = replace(verdict, checks=(*gate, *verdict.checks))
    costs = summed([one.costs for one in made.values()])
    sweep = swept(bound.recipe, verdict, costs, work, _Points(bound, made, progress, clock))
    place = _place(out, verdict)
    entries = [of_part(entry, part) if part else entry for part, one in made.items() for entry in one.entries]
    report = run_report(bound, costs, entries, verdict, clock, sweep)
    report = write_reports(artifact, {**report, "timing": verdict.timing}, public_text(bound))
    if signer is not None and verdict.passed:
        sign(artifact, signer)
    put_in_place(artifact, place)
    remove_work(work)
    return {**report, "artifact": str(place)}


@dataclass(frozen=True)
class _Points:
    """Makes and measures the points of a sweep beside the artifact's own (`compressor.pipeline.sweep.Run`)."""

    bound: Prepared | Whole
    made: Mapping[str, Made]
    progress: Progress
    clock: Clock

    def basis(self, recipe: Recipe) -> str:
        """Name the model, its data and how it is exported."""
        facts = [(one.prepared, one.facts["inputs"]) for one in self.made.values()]
        return json.dumps([[dense_basis(prepared, hashes), hashes] for prepared, hashes in facts], sort_keys=True)

    def measure(self, recipe: Recipe, work: Path) -> tuple[Verdict, tuple[Cost, Cost]]:
        """Make an artifact as the recipe says, and verify it without bounds."""
        other = prepare_any(recipe, self.bound.model_id)
        parts: dict[str, Made] = {}
        for part, prepared in (other.parts if isinstance(other, Whole) else {ALL: other}).items():
            parts[part] = self._made(replace(prepared, source=self.made[part].prepared.source), part, work, parts)
        costs = summed([one.costs for one in parts.values()])
        if isinstance(other, Whole):
            whole = replace(whole_job(other, parts, seal_whole(other, parts, {}, work)), bounds={}, memory=False)
            self.progress.stage("verify", total=whole.steps)
            with self.clock.stage("verify"):
                return verify_whole(whole, self.progress.advance), costs
        job = replace(_job(parts[ALL], seal_one(parts[ALL])), bounds={}, images=None, memory=False)
        self.progress.stage("verify", total=VERIFY_STEPS)
        with self.clock.stage("verify"):
            return run_fresh(job, advance=self.progress.advance), costs

    def _made(self, prepared: Prepared, part: str, work: Path, before: Mapping[str, Made]) -> Made:
        first, graph = self.made[part], graph_of(self.bound, part)
        hashes, folder = first.facts["inputs"], work / part
        folder.mkdir(exist_ok=True)
        seen = seen_by(prepared, {name: one.compressed for name, one in before.items()})
        compressed, entries = _run_passes(prepared, hashes, None, folder, self.progress, self.clock, seen)
        exported, facts = _export(prepared, compressed, entries, folder, graph, self.progress)
        facts |= {key: first.facts[key] for key in ("inputs", "source")}
        costs = count_costs(prepared, compressed)
        return Made(prepared, first.source, compressed, costs, entries, first.dense, exported, facts)


def _run_passes(
    prepared: Prepared,
    hashes: dict[str, str],
    evaluation: EvalData | None,
    work: Path,
    progress: Progress,
    clock: Clock,
    seen: ModelFolder | None = None,
) -> tuple[ModelFolder, list[dict[str, Any]]]:
    """Apply the passes one after another, each with its own checkpoint; return the last model and what each did.

    `seen` gives the image features that are in the prompts on which a language model is calibrated.
    """
    current = prepared.source
    entries: list[dict[str, Any]] = []
    if not prepared.passes:
        return current, entries
    batches = Batches(tuple, 0)
    if prepared.uses_calibration:
        with clock.stage("calibrate"):
            progress.stage("calibrate")
            section = prepared.recipe.calibration
            cache = section.cache_memory if section is not None else 0
            batches = calibration_batches(prepared, seen, work, cache)
    section = prepared.recipe.calibration
    cache, device = section.cache_memory if section is not None else 0, compute_device()
    if seen is not None:
        hashes = {**hashes, **hash_of_seen(seen)}
    for index, method in enumerate(prepared.passes):
        start = time.perf_counter()
        progress.stage(method.name, total=len(current.shapes.layers) * method.needs.walks)
        setting = Setting(
            work=work / f"pass-{index}",
            fingerprint=pass_fingerprint(prepared, hashes, index, device),
            cache_bytes=cache,
            target=prepared.target,
            device=device,
            advance=progress.advance,
            inform=progress.info,
        )
        before = current
        with clock.stage("passes"):
            current, changes = apply_pass(method, before, batches, setting)
        entry = pass_entry(method, before, current, changes, time.perf_counter() - start)
        if evaluation is not None:
            with clock.stage("verify"):
                entry |= _attribute(current, prepared.source, evaluation, work, cache)
        entries.append(entry)
    return current, entries


def _attribute(
    model: ModelFolder, dense: ModelFolder, data: EvalData, work: Path, cache: int
) -> dict[str, dict[str, float]]:
    """Return the metrics of the model after a pass and of the dense one on the same samples, in PyTorch."""
    if isinstance(data, TextData):
        data = TextData(data.windows[:ATTRIBUTION_WINDOWS], data.source)
    quality = measure_streamed(model, dense, data, work / "attribution", cache)
    shutil.rmtree(work / "attribution", ignore_errors=True)
    return {"quality_after": quality.ours, "quality_dense": quality.dense}


def _export_dense(prepared: Prepared, hashes: dict[str, str], work: Path, graph: str, progress: Progress) -> Path:
    """Export the model as it came, to compare with; a finished export of an earlier run of the same inputs is kept."""
    export = prepared.recipe.export
    if export.format == "safetensors":
        return prepared.source.path
    folder, mark = work / "dense", work / DENSE_MARK
    basis = dense_basis(prepared, hashes)
    kept = mark.is_file() and mark.read_bytes() == basis.encode() and folder.is_dir()
    progress.stage("export dense", total=None if kept else STEPS[export.format])
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        export_dense(prepared.source, folder, export, progress.advance, graph)
        mark.write_text(basis, encoding="utf-8")
    return folder


def export_dense(
    source: ModelFolder, folder: Path, export: ExportSection, advance: Advance = silent, graph: str = ONNX_MODEL
) -> None:
    """Write a model as it is into the existing `folder`, in the form that a recipe asks for; see `export_model`.

    Raises:
        CompressorError: what the exporter raises.
    """
    export_model(source, folder, export, dense_dtype(source, export), advance, graph)


def _export(
    prepared: Prepared,
    compressed: ModelFolder,
    entries: list[dict[str, Any]],
    work: Path,
    graph: str,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Write model files and probes with their expected outputs; return their folder and the facts of the model."""
    progress.stage("export", total=STEPS[prepared.recipe.export.format] + 1)
    folder = work / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    dtype = artifact_dtype(prepared)
    result = export_model(compressed, folder, prepared.recipe.export, dtype, progress.advance, graph)
    calibrated = any(spec.activations == "static" for spec in compressed.grids.values())
    drawn = collect(model_batches(prepared.load_calibration())) if calibrated and prepared.uses_calibration else None
    write_probes(compressed.path, folder / REFERENCE, _samples(prepared), calibration=drawn)
    progress.advance("probes")
    return folder, {
        "precision": precision_of(compressed.grids, dtype),
        **grid_records(compressed, result, graph=prepared.recipe.export.format != "safetensors"),
        STEP: quantization_step(entries),
        TARGET: prepared.target.processor,
        "task": compressed.task,
        "parameters": compressed.parameters,
        "layers": recorded_layers(compressed),
        "passes": [{"name": e.name, "options": e.to_json()} for e in prepared.recipe.passes],
    }


def _samples(prepared: Prepared) -> Inputs | None:
    """Return a batch of calibration data for a classifier of text; None where there is none.

    Random tokens make many classifiers give nearly the same answer, which says little of their order or labels.
    """
    task = TASKS[prepared.source.task]
    if prepared.calibration is None or not task.classifies or prepared.source.family.inputs != "tokens":
        return None
    return next(iter(model_batches(prepared.load_calibration())))


def _job(made: Made, artifact: Path) -> Job:
    prepared, costs = made.prepared, made.costs
    recipe = prepared.recipe
    return Job(
        artifact=artifact,
        dense=made.dense,
        bounds=recipe.bounds,
        data=prepared.evaluation,
        metrics=tuple(recipe.evaluation.metrics) if recipe.evaluation is not None else (),
        passes=prepared.method_names,
        flops=(costs[0].flops, costs[1].flops),
        images=recipe.report.images,
    )


def _place(out: Path, verdict: Verdict) -> Path:
    if verdict.passed or not out.is_dir() or not any(out.iterdir()):
        return out
    try:
        kept = read_json(out / "report.json").get("verdict") == "passed"
    except ModelError:
        kept = True
    return rejected_folder(out) if kept else out
