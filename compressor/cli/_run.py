"""`compressor run` and `compressor plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from compressor._api import artifact_folder, open_recipe
from compressor.cli._output import emit_json, results, working
from compressor.errors import VerificationError
from compressor.machine.fresh import prepare_server
from compressor.machine.libraries import without_collector

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
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign",
            metavar="KEY",
            help="Sign the artifact, if it passed, with this private key (PEM; needs the extra `sign`).",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a model as a recipe says, export it, verify it, report.

    An artifact of an earlier run in the same folder is replaced once the new one is finished; any other folder that
    holds files is refused. Exit code 4 means that the result missed a bound of the recipe or a check.
    """
    parsed = open_recipe(recipe, sets or [])
    target = artifact_folder(parsed, model, out)
    with working(quiet=quiet) as progress:
        prepare_server()
        progress.stage("load libraries")
        with without_collector():
            from compressor import pipeline

        report = pipeline.run(parsed, model=model, out=target, resume=resume, sign_with=sign, progress=progress)
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
    with working(quiet=True), without_collector():
        from compressor import pipeline

        planned = pipeline.plan(parsed, model=model)
    for note in planned.get("notes", ()):
        typer.echo(f"note: {note}", err=True)
    if json:
        emit_json(planned)
    else:
        from compressor.report.terminal import render_plan

        render_plan(planned, results())


def failures(report: Mapping[str, Any]) -> str:
    """Return what failed and why, one check a line; a reason that begins with the check's name stands alone."""
    checks = report["checks"]
    lines = []
    for check in checks:
        if not check["passed"]:
            name, reason = check["name"], check.get("reason") or "failed"
            lines.append(f"  {reason}" if reason.startswith(name) else f"  {name}: {reason}")
    return "\n".join([f"verification failed: {len(lines)} of {len(checks)} checks", *lines])
