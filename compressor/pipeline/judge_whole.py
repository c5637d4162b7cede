"""An artifact of several graphs, or a model of several parts, judged: verified, timed, its quality measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.architectures import Tower, read_by
from compressor.data.questions import load_answers
from compressor.data.reading import DataRequest
from compressor.data.zero_shot import load_named, load_prompts
from compressor.errors import CompressorError, UsageError
from compressor.exporters.steps import STEPS
from compressor.machine.progress import Progress
from compressor.measure.answers import SeeingModel, measure_answers
from compressor.measure.benchmark import compare
from compressor.measure.evaluation import check_metrics
from compressor.measure.opening import open_runner
from compressor.measure.scores import Quality
from compressor.measure.timing import Footprint, Timing
from compressor.measure.zero_shot import TwoTowers, measure_zero_shot
from compressor.model.cost import count_flops, default_length
from compressor.model.folder import open_model
from compressor.model.image_places import prompt_lengths
from compressor.model.parts import PARTS, image_token_of, joined_by, parts_of, read_scalars, stated_scalars
from compressor.model.source import resolve_path
from compressor.pipeline.laid_out import has_graphs, laid_out
from compressor.pipeline.run import export_dense
from compressor.pipeline.source import source_against, whole_against
from compressor.pipeline.stated import evaluation_data, manifest_of, own_sections, passes_of, prompts_for
from compressor.pipeline.together import PartJob, WholeJob, phase_of, verify_whole
from compressor.recipe import ExportSection, ModelSection
from compressor.verification import Check, Verdict
from compressor.verification.joint import Side
from compressor.verification.verdict import Bounds


def judge_whole(
    artifact: Path,
    *,
    progress: Progress,
    against: str | None,
    limits: Bounds,
    data: str | None,
    threads: int,
    timing: bool,
) -> Verdict:
    """Verify an artifact of several graphs; see `compressor.pipeline.judge.verify`.

    Raises:
        UsageError: the dense model is none of as many parts.
        CompressorError: what `verify` raises.
    """
    manifest = manifest_of(artifact)
    manifests = _manifests(artifact, manifest)
    section, export = own_sections(artifact)
    checks: list[Check] = []
    if against is not None:
        checks = whole_against(resolve_path(against), manifest, progress)
        checks += _source(against, section, manifests, progress)
    with dense_side(against, artifact, section, export, progress) as dense:
        images, metrics = evaluation_data(artifact, data, with_recipe=dense is not None)
        asks, prompts = joined_by(artifact).image_token is not None, None
        if images is not None and asks:
            images = replace(images, prompt=section.prompt or "")
        elif images is not None:
            prompts = prompts_for(artifact, images)
            if prompts is None:
                raise UsageError("the artifact's recipe names no evaluation.prompts, by which images are classified")
        lengths = _lengths(dense.parts if dense is not None else {}, artifact)
        parts = {
            part: PartJob(
                passes_of(manifests.get(part, {})),
                _data_of(tower, images, prompts),
                _flops(dense, artifact, part, prompts, lengths),
                lengths=lengths if read_by(tower) == "tokens" else None,
            )
            for part, tower in parts_of(artifact).items()
        }
        job = WholeJob(
            artifact=artifact,
            parts=parts,
            dense=dense,
            bounds=limits,
            images=images,
            prompts=prompts,
            metrics=metrics,
            threads=threads,
            timing=timing and dense is not None,
        )
        progress.stage("verify", total=job.steps)
        verdict = verify_whole(job, progress.advance)
    return replace(verdict, checks=(*checks, *verdict.checks))


def _manifests(artifact: Path, manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the manifest of every part, empty where there is none: verification says what is wrong then."""
    stated = manifest.get(PARTS)
    found = {part: stated.get(part) if isinstance(stated, dict) else None for part in parts_of(artifact)}
    return {part: value if isinstance(value, dict) else {} for part, value in found.items()}


def _source(
    against: str, section: ModelSection, manifests: Mapping[str, Mapping[str, Any]], progress: Progress
) -> list[Check]:
    """Repeat the source gate for every part."""
    found = []
    for part, manifest in manifests.items():
        named = section.model_copy(update={"part": part, "task": "auto"})
        checks = source_against(against, named, manifest, progress)
        found += [replace(check, name=f"{part}.{check.name}") for check in checks]
    return found


@contextmanager
def dense_side(
    against: str | None, artifact: Path, section: ModelSection, export: ExportSection, progress: Progress
) -> Iterator[Side | None]:
    """Give the model to compare with, its parts in the artifact's format; None where there is none.

    Raises:
        UsageError: it has other parts than the artifact.
        CompressorError: it cannot be exported.
    """
    if against is None:
        yield None
        return
    folder = resolve_path(against)
    if set(parts_of(folder)) != set(parts_of(artifact)):
        raise UsageError(
            f"{against}: is no model of the parts {', '.join(parts_of(artifact))}, which {artifact.name} has",
            hint="Give the whole model that was compressed.",
        )
    with ExitStack() as entered:
        places = {part: entered.enter_context(laid_out(folder, part)) for part in parts_of(folder)}
        if has_graphs(artifact) and not has_graphs(folder):
            for part, place in places.items():
                progress.stage("export the model to compare with", total=STEPS[export.format])
                source = open_model(place, dtype=section.dtype)
                places[part] = Path(entered.enter_context(tempfile.TemporaryDirectory(prefix="compressor-dense-")))
                export_dense(source, places[part], export, progress.advance, parts_of(folder)[part].graph)
        yield Side(places, scalars_of(folder), image_token_of(folder))


def scalars_of(folder: Path) -> dict[str, float]:
    """Return the numbers by which the parts of a model or an artifact are joined.

    Raises:
        ModelError: it does not have them.
    """
    if has_graphs(folder):
        return stated_scalars(manifest_of(folder), joined_by(folder).scalars)
    return read_scalars(folder)


def _data_of(tower: Tower, images: DataRequest | None, prompts: DataRequest | None) -> DataRequest | None:
    return images if read_by(tower) == "pixels" else prompts


def _lengths(dense: Mapping[str, Path], ours: Path) -> tuple[int, int] | None:
    """Return how many tokens a prompt with an image has, of the dense model and of ours, where images have such.

    Args:
        dense: folders of the dense model's parts; ours stands for it where there are none.
        ours: the whole of ours.
    """
    if joined_by(ours).image_token is None:
        return None
    try:
        vision, language = (open_model(ours, part=part) for part in ("vision", "language"))
        return prompt_lengths(open_model(dense["vision"]) if dense else vision, vision, language)
    except CompressorError:  # verification says what is wrong with the artifact
        return None


def _flops(
    dense: Side | None, artifact: Path, part: str, prompts: DataRequest | None, lengths: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Return the theoretical operations of a part, dense and ours; None where one of them cannot be read."""
    if dense is None:
        return None
    try:
        models = open_model(dense.parts[part]), open_model(artifact, part=part)
        length = default_length(models[1], prompts.length if prompts is not None else None)
        before, after = lengths or (length, length)
        return count_flops(models[0], before), count_flops(models[1], after)
    except CompressorError:
        return None


def bench_whole(ours: Path, against: str | None, progress: Progress, **options: Any) -> Timing:
    """Time every part of a model or artifact, alone or side by side; phases have the parts' names.

    Args:
        ours: folder.
        against: what to compare with; a PyTorch model is exported first as the artifact was.
        progress: where to report how far it is.
        **options: of `compressor.measure.benchmark.compare`.

    Raises:
        UsageError: the other one has other parts.
    """
    section, export = own_sections(ours)
    found: dict[str, Timing] = {}
    with dense_side(against, ours, section, export, progress) as dense:
        progress.stage("time")
        lengths = _lengths(dense.parts if dense is not None else {}, ours)
        for part, tower in parts_of(ours).items():
            more = dict(options)
            if lengths is not None and read_by(tower) == "tokens":
                more = {**more, "length": options["length"] or lengths[0], "shorter": lengths[0] - lengths[1]}
            with laid_out(ours, part) as place:
                found[part] = compare(place, dense.parts[part] if dense is not None else None, **more)
    first = next(iter(found.values()))
    phases = [replace(p, name=phase_of(part, p.name)) for part, timing in found.items() for p in timing.phases]
    prints = (_together([getattr(timing, side) for timing in found.values()]) for side in ("ours", "other"))
    mine, theirs = prints
    assert mine is not None, "of ours there always is one"
    return Timing(first.threads, first.rounds, phases, mine, theirs)


def _together(prints: Sequence[Footprint | None]) -> Footprint | None:
    known = [found for found in prints if found is not None]
    if not known:
        return None
    memory = [found.memory_bytes for found in known if found.memory_bytes is not None]
    return Footprint(sum(f.file_bytes for f in known), sum(memory) if len(memory) == len(known) else None)


def evaluate_whole(
    folder: Path,
    against: Path | None,
    images: DataRequest,
    prompts: DataRequest | None,
    metrics: Sequence[str],
    threads: int,
) -> Quality:
    """Return the quality of a model of several parts, beside a dense one where there is one.

    Args:
        folder: of the model.
        against: of the dense one.
        images: to be classified, or questions about images.
        prompts: for the labels of images; None for questions.
        metrics: what to measure; empty for all.
        threads: of the runtime.

    Raises:
        UsageError: a metric cannot be measured.
        ModelError: a model cannot be loaded.
        DataError: the data cannot be used.
    """
    with ExitStack() as entered:
        sides = [_opened(entered, f, threads) if f is not None else None for f in (folder, against)]
        ours, dense = sides
        assert ours is not None, "always asked for"
        if isinstance(ours, SeeingModel):
            assert dense is None or isinstance(dense, SeeingModel), "of the same parts"
            asked = load_answers(images, ours.language.folder, ours.vision.folder, ours.image_token)
            wanted = check_metrics(metrics, joined_by(folder).task, asked, dense is not None)
            found = measure_answers(ours, dense, asked).quality
        else:
            assert prompts is not None and not isinstance(dense, SeeingModel), "of the same parts"
            texts = load_prompts(prompts, ours.text.folder)
            data = load_named(images, ours.image.folder, texts.labels)
            wanted = check_metrics(metrics, joined_by(folder).task, data, dense is not None)
            found = measure_zero_shot(ours, dense, data, texts)
    statistics = {name: found.ours_statistics[name] for name in wanted if name in found.ours_statistics}
    return replace(found, ours={n: found.ours[n] for n in wanted if n in found.ours}, ours_statistics=statistics)


def _opened(entered: ExitStack, folder: Path, threads: int) -> TwoTowers | SeeingModel:
    runners = {part: open_runner(entered.enter_context(laid_out(folder, part)), threads) for part in parts_of(folder)}
    token = image_token_of(folder)
    if token is not None:
        return SeeingModel(runners["vision"], runners["language"], token)
    return TwoTowers(runners["vision"], runners["text"], scalars_of(folder))
