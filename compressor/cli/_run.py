"""`compressor run` and `compressor plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli._output import emit_json, method_options, results, working
from compressor.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from compressor.recipe import Recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.", show_default=False)
]
ModelOption = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Model folder or hub id; overrides the recipe's.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, such as passes.0.width.sparsity=0.4; may be repeated.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else to stdout.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Report no progress.")]


def run(
    recipe: RecipeArgument,
    model: ModelOption = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Artifact folder; ./<name of the recipe> if absent.", show_default=False),
    ] = None,
    sets: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the finished blocks of a stopped run.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a model as a recipe says, export it, verify it, report.

    An artifact of an earlier run in the same folder is replaced once the new one is finished; any other folder that
    holds files is refused. Exit code 4 means that the result missed a bound of the recipe or a check.
    """
    parsed = open_recipe(recipe, sets or [])
    target = out or Path(parsed.name)
    _refuse_own_source(target, model or parsed.model.id)
    with working(quiet=quiet) as progress:
        progress.stage("start")
        from compressor import pipeline

        report = pipeline.run(parsed, model=model, out=target, resume=resume, progress=progress)
    folder = Path(report.get("artifact") or target)
    if json:
        emit_json(report)
    else:
        from compressor.report.terminal import render_report

        render_report(report, results(), folder=folder)
    if report["verdict"] != "passed":
        raise VerificationError(failures(report), hint=f"{folder / 'report.html'} shows all figures.")


def plan(
    recipe: RecipeArgument,
    model: ModelOption = None,
    sets: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a recipe will do to a model: sizes, operations, memory, time. Loads no weights."""
    parsed = open_recipe(recipe, sets or [])
    with working(quiet=True):
        from compressor import pipeline

        planned = pipeline.plan(parsed, model=model)
    if json:
        emit_json(planned)
    else:
        from compressor.report.terminal import render_plan

        render_plan(planned, results())


def open_recipe(name: str, overrides: list[str]) -> Recipe:
    """Load the recipe file or shipped recipe of that name.

    Raises:
        UsageError: there is none, or it is not valid.
    """
    from compressor.cli._shipped import locate
    from compressor.recipe import load_recipe

    return load_recipe(locate(name), options=method_options(), overrides=overrides)


def _refuse_own_source(out: Path, model: str | None) -> None:
    """A finished run replaces the artifact in its folder, which must not be the model that it was made from."""
    if model and out.exists() and Path(model).expanduser().resolve() == out.resolve():
        raise UsageError(f"-o {out}: this is the model to compress", hint="Give another folder for the artifact.")


def failures(report: Mapping[str, Any]) -> str:
    """Return what failed and why, one check a line; a reason that begins with the check's name stands alone."""
    checks = report["checks"]
    lines = []
    for check in checks:
        if not check["passed"]:
            name, reason = check["name"], check.get("reason") or "failed"
            lines.append(f"  {reason}" if reason.startswith(name) else f"  {name}: {reason}")
    return "\n".join([f"verification failed: {len(lines)} of {len(checks)} checks", *lines])
