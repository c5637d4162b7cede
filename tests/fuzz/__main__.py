"""`python -m tests.fuzz [--count N] [--seed N] [--only INDEX]`: read altered inputs; ends with 1 after a fault."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.campaign import Outcome, run

_SHOWN = 5
"""Indices listed of each fault."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, or one input of it, and print its figures."""
    given = _parser().parse_args(arguments)
    indices = [given.only] if given.only is not None else range(given.count)
    start, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="compressor-fuzz-") as scratch:
        for outcome in run(given.seed, indices, Path(scratch)):
            outcomes.append(outcome)
            if len(outcomes) % 1000 == 0:
                print(f"{len(outcomes)} inputs", file=sys.stderr, flush=True)
            if outcome.fault:
                print(f"{outcome.kind}, seed {given.seed}, index {outcome.index}: {outcome.fault}", flush=True)
            if given.only is not None:
                print(f"{outcome.kind}: {outcome.result}\n{outcome.details}")
    print(f"\n{figures(outcomes)}\n\nseed {given.seed}, {time.perf_counter() - start:.0f} s")
    return int(any(outcome.fault for outcome in outcomes))


def figures(outcomes: Sequence[Outcome]) -> str:
    """Return how often each kind of input ended in which way, as a Markdown table, and the kinds of faults."""
    lines = ["| kind | outcome | inputs | CPU seconds, median | longest |", "|---|---|---|---|---|"]
    counts = Counter((outcome.kind, outcome.result) for outcome in outcomes)
    for (kind, result), count in sorted(counts.items()):
        seconds = sorted(o.seconds for o in outcomes if (o.kind, o.result) == (kind, result))
        lines.append(f"| {kind} | {result} | {count} | {seconds[count // 2]:.3f} | {seconds[-1]:.2f} |")
    faults: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes:
        if outcome.fault:
            faults.setdefault((outcome.kind, outcome.fault[:80]), []).append(outcome.index)
    for (kind, fault), indices in sorted(faults.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(indices)} x {kind}: {fault} (index {', '.join(map(str, indices[:_SHOWN]))})")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--only", type=int, metavar="INDEX", help="read this input alone, and show its traceback")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
