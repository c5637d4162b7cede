"""Help and recipe errors come back at once: nothing heavy is imported for them."""

from __future__ import annotations

import pytest

HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "huggingface_hub",
    "optimum",
    "tokenizers",
}

WATCHED = """
import sys
from compressor.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print("LOADED", code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded(process, *arguments):
    """Return the exit code and the top-level packages that a command imported."""
    done = process(*arguments, code=WATCHED)
    marker, code, *names = done.stderr.splitlines()[-1].split()
    assert marker == "LOADED", done.stderr
    return int(code), set(names)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["recipes", "list"]])
def test_help_and_lists_need_next_to_nothing(process, arguments):
    code, names = loaded(process, *arguments)
    assert code == 0
    assert names & (HEAVY | {"yaml", "psutil", "numpy"}) == set()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["methods", "list"], 0),
        (["methods", "show", "none-such"], 2),
        (["recipes", "schema"], 0),
        (["recipes", "validate", "bad.yaml"], 2),
        (["run", "bad.yaml"], 2),
        (["plan", "bad.yaml", "-m", "demo"], 2),
        (["run", "nowhere.yaml"], 2),
    ],
)
def test_recipe_errors_need_no_torch(process, tmp_path, arguments, expected):
    (tmp_path / "bad.yaml").write_text("version: 1\nname: x\npasses: [{none-such: {}}]\n")
    code, names = loaded(process, *arguments)
    assert code == expected
    assert names & HEAVY == set()


@pytest.mark.parametrize("arguments", [["recipes", "schema"], ["recipes", "validate", "bad.yaml"]])
def test_files_of_the_working_folder_are_not_imported(process, tmp_path, arguments):
    (tmp_path / "bad.yaml").write_text("version: 1\nname: x\npasses: [{none-such: {}}]\n")
    for name in ("json", "yaml", "select", "pydantic", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the working folder was run')")
    assert process(*arguments).returncode == (2 if "bad.yaml" in arguments else 0)
