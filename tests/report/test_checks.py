"""Every check that verification can make has a sentence, in the page and in docs/checks.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from compressor.recipe.metrics import BOUNDS, GATES
from compressor.report._checks import MEANINGS, meaning

ROOT = Path(__file__).parents[2]
MAKERS = {"Check", "bounded", "yes", "failed", "_guard", "not_judged", "_gated", "_yes"}
"""Functions of the verification whose first argument is the name of a check."""


def names() -> Iterator[str]:
    """Every name that verification's code gives a check; of a computed one the part before what is computed."""
    wings = ("verification", "report", "pipeline")
    for file in (file for wing in wings for file in sorted((ROOT / "compressor" / wing).glob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS and node.args:
                match node.args[0]:
                    case ast.Constant(value=str(text)) if text:
                        yield text
                    case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
                        yield text.rstrip(".")


def test_every_check_has_a_sentence() -> None:
    found = set(names())
    assert len(found) > 40
    assert not [name for name in found | set(GATES) if not meaning(name)]
    for name, sentence in MEANINGS.items():
        assert sentence.endswith(".") and "\n" not in sentence, name
    assert meaning("parity.prefill.max_abs") == MEANINGS["parity"]
    assert meaning("bounds.size_ratio") == f"{MEANINGS['bounds']} {BOUNDS['size_ratio'].text}"
    assert meaning("unknown.check") == ""


def test_every_sentence_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    for name in [*MEANINGS, *GATES]:
        assert f"| `{name}` | {meaning(name)} |" in text, name
