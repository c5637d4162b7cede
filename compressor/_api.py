"""The Python API: what the commands do, with typed results. docs/api.md describes it with an example.

`import compressor` imports this file, so whatever is heavy is imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import RecipeError, UsageError
from compressor.machine.libraries import calm_libraries
from compressor.machine.progress import NullProgress

if TYPE_CHECKING:
    from compressor.machine.progress import Progress
    from compressor.measure.timing import Timing
    from compressor.pipeline import Evaluation
    from compressor.recipe import Recipe
    from compressor.report.schema import Report


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    model: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    sign: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compress a model as a recipe says, export it, verify it; return the report.

    Args:
        recipe: a recipe file, the name of a shipped recipe, the content of a recipe, or a parsed one.
        model: folder or hub id that takes the place of the recipe's.
        out: the artifact folder; `./<name of the recipe>` if None.
        overrides: `key=value` texts, as `--set` takes them.
        resume: go on from the finished blocks of a run that was stopped.
        sign: private key (PEM) with which the artifact is signed if it passed; not signed if None.
        progress: where to report how far the run is; nowhere if None.

    Returns:
        What report.json holds; `artifact` says where the folder lies. An artifact that failed verification is a report
        too: its `passed` is False.

    Raises:
        CompressorError: with the exit code for what went wrong; nothing is left at `out`.
    """
    parsed = open_recipe(recipe, overrides)
    source = _text(model)
    target = artifact_folder(parsed, source, out)
    with calm_libraries():
        from compressor import pipeline
        from compressor.report.schema import check_report

        done = pipeline.run(
            parsed,
            model=source,
            out=target,
            resume=resume,
            sign_with=_path(sign),
            progress=progress or NullProgress(),
        )
        return check_report(done)


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, model: str | Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what a recipe will do to a model: sizes, operations, memory, time. Loads no weights.

    Args:
        recipe: as `run` takes it.
        model: folder or hub id that takes the place of the recipe's.
        overrides: `key=value` texts, as `--set` takes them.

    Raises:
        CompressorError: the recipe is not valid, or it does not fit the model.
    """
    parsed = open_recipe(recipe, overrides)
    with calm_libraries():
        from compressor import pipeline

        return pipeline.plan(parsed, model=_text(model))


def verify(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    bounds: str | Path | None = None,
    data: str | Path | None = None,
    threads: int = 1,
    timing: bool = True,
    key: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verify an artifact in a fresh process: files, graph, outputs, quality, speed and bounds.

    Without `against`, it is checked against the outputs that were recorded when it was made.

    Args:
        artifact: its folder.
        against: the dense model, a folder or hub id.
        bounds: file with bounds, or a recipe; with `against`, the artifact's own recipe if None.
        data: held-out data; with `against`, that of the artifact's recipe if None.
        threads: of the runtime.
        timing: whether to measure speed, which takes `against`.
        key: public key (PEM) whose owner must have signed the artifact; signatures are not looked at if None.
        progress: where to report how far it is; nowhere if None.

    Returns:
        The checks and what was measured; `passed` is False where one failed, also where the artifact is damaged.

    Raises:
        CompressorError: there is no such folder, model, data or file of bounds, or the artifact crashed its runtime.
    """
    with calm_libraries():
        from compressor import pipeline
        from compressor.report.schema import check_report

        report = pipeline.verify(
            Path(artifact),
            against=_text(against),
            bounds=_path(bounds),
            data=_text(data),
            threads=threads,
            timing=timing,
            key=_path(key),
            progress=progress or NullProgress(),
        )
        return check_report({**report, "artifact": artifact})


def bench(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    threads: int = 1,
    batch: int = 1,
    length: int | None = None,
    rounds: int = 15,
    progress: Progress | None = None,
) -> Timing:
    """Time an artifact, side by side with another one: one process, interleaved rounds, medians.

    Args:
        artifact: artifact or model, a folder or hub id.
        against: model or artifact to compare with.
        threads: of the runtime.
        batch: samples per call.
        length: tokens per sample; 128, for encoders 64, if None.
        rounds: interleaved rounds per phase.
        progress: where to report how far it is; nowhere if None.

    Raises:
        CompressorError: a model cannot be loaded, or the two serve different tasks.
    """
    with calm_libraries():
        from compressor import pipeline

        return pipeline.bench(
            str(artifact),
            against=_text(against),
            threads=threads,
            batch=batch,
            length=length,
            rounds=rounds,
            progress=progress or NullProgress(),
        )


def evaluate(
    path: str | Path,
    *,
    data: str | Path,
    metrics: Sequence[str] = (),
    against: str | Path | None = None,
    samples: int | None = None,
    length: int | None = None,
    threads: int = 1,
    prompts: str | Path | None = None,
    prompt: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure the quality of a model or artifact on held-out data.

    Args:
        path: artifact or model, a folder or hub id.
        data: held-out data.
        metrics: what to measure; empty for all that the data allow.
        against: the dense model, which `kl`, `top1` and `cosine` compare with.
        samples: how many; all if None.
        length: tokens per window or sentence; 512, or what the model's positions allow, if None.
        threads: of the runtime.
        prompts: table of label and prompt, for a model of two towers; that of the artifact's recipe if None.
        prompt: how questions about images are put to a LLaVA model; as the artifact's recipe says, or by the model's
            chat template, if None.
        progress: where to report how far it is; nowhere if None.

    Raises:
        CompressorError: a model or the data cannot be used, or a metric is unknown or does not fit them.
    """
    with calm_libraries():
        from compressor import pipeline

        return pipeline.evaluate(
            str(path),
            data=str(data),
            metrics=metrics,
            against=_text(against),
            samples=samples,
            length=length,
            threads=threads,
            prompts=_text(prompts),
            prompt=prompt,
            progress=progress or NullProgress(),
        )


def open_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a file, a shipped name or a content, validated; a parsed one is returned as it is.

    Raises:
        UsageError: there is none, it is not valid, or a parsed one is to be overridden.
    """
    from compressor._shipped import locate
    from compressor.passes import method_options
    from compressor.recipe import Recipe, load_recipe

    if isinstance(recipe, Recipe):
        if overrides:
            raise UsageError("overrides: this recipe is parsed already", hint="Give them when it is parsed.")
        return recipe
    if isinstance(recipe, Mapping):
        return _of_content(recipe, overrides)
    return load_recipe(locate(str(recipe)), options=method_options(), overrides=overrides)


def _of_content(content: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a mapping; it gets a text, which the artifact keeps, but problems name no lines of that."""
    import yaml

    from compressor.passes import method_options
    from compressor.recipe import Document, parse_recipe

    try:
        text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise UsageError(
            f"recipe: {error.args[0]}: {error.args[1]!r}", hint="Use plain values: text, numbers, lists."
        ) from error
    try:
        parsed = parse_recipe(text, source="recipe", options=method_options(), overrides=overrides)
    except RecipeError as error:
        raise RecipeError([replace(p, line=None) for p in error.problems], source=error.source) from None
    return replace(parsed, document=Document(parsed.document.value))


def artifact_folder(recipe: Recipe, model: str | None, out: str | Path | None) -> Path:
    """Return where the artifact goes: `out`, else a folder of the recipe's name.

    Raises:
        UsageError: this is the model to compress, which a finished run would replace.
    """
    folder = Path(recipe.name if out is None else out)
    source = model or recipe.model.id
    if source and folder.exists() and Path(source).expanduser().resolve() == folder.resolve():
        raise UsageError(f"-o {folder}: this is the model to compress", hint="Give another folder for the artifact.")
    return folder


def _text(given: str | Path | None) -> str | None:
    return None if given is None else str(given)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
