"""The command line: parses, prints, exits. It holds no logic, and nothing heavy is imported before it is needed.

Exit codes are those of `compressor.errors`. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from compressor.cli import _models, _run
from compressor.cli._catalogue import methods_app, recipes_app
from compressor.cli._errors import Commands, end_now, end_unread, show_error
from compressor.cli._output import emit_json, results
from compressor.cli._run import JsonOption
from compressor.errors import Interrupted
from compressor.machine.signals import ended_like_ctrl_c

app = typer.Typer(
    name="compressor",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress trained Hugging Face models into smaller, faster, verified ONNX or safetensors artifacts.",
    epilog="Exit codes: 0 verified, 1 internal error, 2 usage or recipe, 3 model or data, 4 verification failed, "
    "5 out of memory or disk, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from compressor import __version__

        typer.echo(f"compressor {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="COMPRESSOR_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    pass


def doctor(json: JsonOption = False) -> None:
    """Show versions, processor, runtimes, memory and disk, and what is missing with how to get it."""
    from compressor.machine.doctor import examine, render

    facts = examine()
    if json:
        emit_json(facts)
    else:
        render(facts, results())
    if facts["problems"]:
        raise typer.Exit(1)


def _flowing(text: str) -> str:
    """Return a docstring with each paragraph on one line: typer keeps the line ends of all but the first."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


_COMMANDS: dict[str, Callable[..., None]] = {
    "run": _run.run,
    "plan": _run.plan,
    "inspect": _models.inspect,
    "verify": _models.verify,
    "bench": _models.bench,
    "eval": _models.evaluate,
    "doctor": doctor,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, help=_flowing(_function.__doc__ or ""))(_function)
app.add_typer(recipes_app, name="recipes")
app.add_typer(methods_app, name="methods")


def main(arguments: list[str] | None = None) -> None:
    """Run a command line, by default that of this process, and exit; SIGTERM and SIGHUP interrupt it like Ctrl-C."""
    try:
        with ended_like_ctrl_c():
            app(arguments, prog_name="compressor")
    except KeyboardInterrupt:  # before or after a command, where nothing else catches it
        show_error(Interrupted("interrupted"))
        sys.exit(Interrupted.exit_code)
    except SystemExit as end:
        # rich and typer end so, with 1, where a pipe that they write to has lost its reader
        code = end_unread() if isinstance(end.__context__, BrokenPipeError) else end.code
        if arguments is None and isinstance(code, int) and "torch" in sys.modules:
            end_now(code)
        sys.exit(code)
