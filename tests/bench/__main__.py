"""`python -m tests.bench [NAME…] [--quick]`: run benchmarks and write their figures."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.harness import DATA_VARIABLE, REPOSITORY, Context, drop, environment, find_data, joined, write_json
from tests.bench.pages import figures_page, read_results, readme_section, replace_section
from tests.bench.tables import TABLES

FIGURES = REPOSITORY / "docs" / "figures"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 if a step failed."""
    given = _parser().parse_args(arguments)
    if unknown := [name for name in given.names if name not in TABLES]:
        _parser().error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(TABLES)}")
    place = "compressor-bench-quick" if given.quick else "compressor-bench"
    scratch = given.scratch or Path(tempfile.gettempdir()) / place
    if not given.resume and not given.pages:
        for name in given.names or TABLES:
            drop(scratch / name)
    scratch.mkdir(parents=True, exist_ok=True)
    context = Context(
        quick=given.quick,
        data=find_data(),
        scratch=scratch.resolve(),
        lanes=given.lanes,
        resume=given.resume,
        say=_say,
        timed=given.timed,
        windows=given.windows,
        only=given.only,
    )
    figures = given.figures or (scratch / "figures" if given.quick else FIGURES)
    figures.mkdir(parents=True, exist_ok=True)
    if given.pages:
        write_pages(figures, REPOSITORY if figures == FIGURES else None)
        return 0
    if context.data is None:
        _say(f"{DATA_VARIABLE} names no folder of real models and data: what needs them is left out")
    failed = 0
    for name in given.names or TABLES:
        failed += _run(name, context, figures)
        write_pages(figures, REPOSITORY if figures == FIGURES else None)
    _say(f"figures: {figures / 'README.md'}")
    return 1 if failed else 0


def _run(name: str, context: Context, figures: Path) -> int:
    """Run one benchmark and write its file; return how many steps failed."""
    suite = importlib.import_module(f"tests.bench.{name}")
    start = time.perf_counter()
    made: dict[str, Any] = {
        "name": name,
        "quick": context.quick,
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment(),
        **suite.run(context),
    }
    made["wall_seconds"] = time.perf_counter() - start
    if "planned" in made:
        made = joined(made, read_results(figures).get(name))
    write_json(figures / f"{name}.json", made)
    if name == "recipes" and figures == FIGURES:
        for recipe in suite.rewrite_headers(made):
            _say(f"header of {recipe} rewritten")
    errors = [row for row in made["rows"] if "error" in row]
    _say(f"{name}: {len(made['rows'])} rows, {len(errors)} failed, {made['wall_seconds']:.0f} s")
    return len(errors)


def write_pages(figures: Path, repository: Path | None) -> None:
    """Write the page of all figures in a folder, and the README's section where a repository is given."""
    results = read_results(figures)
    (figures / "README.md").write_text(figures_page(results), encoding="utf-8")
    if repository is not None:
        readme = repository / "README.md"
        text = replace_section(readme.read_text(encoding="utf-8"), "bench", readme_section(results))
        readme.write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{', '.join(TABLES)}; all if none")
    add("--quick", action="store_true", help="small samples, written to the scratch folder: a trial")
    add("--resume", action="store_true", help="take over the finished steps of a run that was stopped")
    add("--pages", action="store_true", help="measure nothing; write the pages from the figures there are")
    lanes = max(1, min(2, os.cpu_count() or 1))
    add("--lanes", type=int, default=lanes, help=f"untimed runs beside each other (here {lanes})")
    add(
        "--no-timing",
        dest="timed",
        action="store_false",
        help="quality: keep the speed-ups of each run's own report; tokens: none",
    )
    add("--windows", type=int, help="evaluation windows of llama-wt2; all if absent")
    add(
        "--only",
        metavar="REGEX",
        help="rows of quality and quantize (`model: pass`), memory (`method-blocks`), tokens, features, recipes; all if"
        " absent",
    )
    add("--scratch", type=Path, help="where models and artifacts of the run lie")
    add("--figures", type=Path, help="where results go; docs/figures, or scratch with --quick")
    return parser


def _say(line: str) -> None:
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {line}\n")


if __name__ == "__main__":
    sys.exit(main())
