"""`optimum-cli compress RECIPE ...`: the same as `compressor run RECIPE ...`.

Nothing of this package imports this file. An installation puts a copy of it where optimum looks for subcommands of
other packages, `optimum/commands/register/` (hatch_build.py). It imports next to nothing, so that every other command
of `optimum-cli` starts as fast as before.
"""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class CompressCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Hands its whole command line, `--help` included, to `compressor run`."""

    COMMAND = CommandInfo(name="compress", help="Compress a model as a recipe says, export it, verify it, report.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Take everything as it comes: where no character begins an option, argparse recognises none."""
        parser.prefix_chars = ""
        parser.add_argument("arguments", nargs=REMAINDER)

    def run(self) -> None:
        """Run, and end the process with the exit code of `compressor run`."""
        from compressor.cli import main

        main(["run", *self.args.arguments])


REGISTER_COMMANDS = [CompressCommand]
