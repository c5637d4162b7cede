"""`recipes` and `methods`, as they look on 80 columns."""

from __future__ import annotations

import json

import pytest

import compressor

HEADER = "# Removes channels of the demo.\n#\n#   size  -\n"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Two shipped recipes."""
    folder = tmp_path / "shelf" / "recipes" / "demo"
    folder.mkdir(parents=True)
    body = "version: 1\nname: one\npasses:\n  - toy: {sparsity: 0.3}\n  - bare: {}\n"
    (folder / "one.yaml").write_text(HEADER + body)
    (folder / "two.yaml").write_text("# Exports the demo as it is.\nversion: 1\nname: two\npasses: []\n")
    monkeypatch.setattr(compressor, "__path__", [*compressor.__path__[:1], str(tmp_path / "shelf")])
    return folder


def trimmed(text):
    return [line.rstrip() for line in text.splitlines()]


def test_list(cli, shelf):
    assert trimmed(cli("recipes", "list").stdout) == [
        "recipe    what it does",
        "demo/one  Removes channels of the demo.",
        "demo/two  Exports the demo as it is.",
    ]
    first = json.loads(cli("recipes", "list", "--json").stdout)[0]
    assert first == {
        "name": "demo/one",
        "path": str(shelf / "one.yaml"),
        "summary": "Removes channels of the demo.",
    }


def test_show_is_verbatim(cli, shelf):
    assert cli("recipes", "show", "demo/one").stdout == (shelf / "one.yaml").read_text()


def test_copy(cli, shelf, tmp_path):
    done = cli("recipes", "copy", "demo/one")
    assert (done.exit_code, done.stdout) == (0, "one.yaml\n")
    assert (tmp_path / "one.yaml").read_text() == (shelf / "one.yaml").read_text()
    again = cli("recipes", "copy", "demo/one")
    assert (again.exit_code, again.stderr) == (2, "error: one.yaml: exists already\nnext:  Give another file name.\n")
    (tmp_path / "mine").mkdir()
    assert cli("recipes", "copy", "demo/one", "mine").stdout == "mine/one.yaml\n"
    done = cli("recipes", "copy", "demo/one", "none/x.yaml")
    assert (done.exit_code, "cannot be written" in done.stderr) == (2, True)


def test_validate(cli, shelf, tmp_path):
    done = cli("recipes", "validate", "demo/one", "demo/two")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "demo/one: valid: one: toy → bare\ndemo/two: valid: two: no passes: a plain export\n"
    (tmp_path / "bad.yaml").write_text("version: 1\nname: x\npasses: [{toy: {}}]\n")
    done = cli("recipes", "validate", "bad.yaml", "demo/two", "nowhere")
    assert done.exit_code == 2
    assert done.stdout == "demo/two: valid: two: no passes: a plain export\n"
    assert done.stderr == (
        "error: bad.yaml: 1 problem\n"
        "  line 3: passes[0].toy.sparsity: required, but missing: Share of channels removed.\n"
        "error: nowhere: no such file, and no shipped recipe of that name\n"
        "next:  `compressor recipes list` shows the shipped recipes.\n"
    )


def test_validate_finds_what_cannot_go_together(cli, tmp_path):
    text = "version: 1\nname: x\npasses:\n  - bare: {}\n  - toy: {sparsity: 0.3}\nverify: {kl: {max: 1}}\n"
    (tmp_path / "r.yaml").write_text(text)
    done = cli("recipes", "validate", "r.yaml")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: r.yaml: 2 problems",
        "  line 5: passes[1].toy: bare has quantized the weights, and any change would take them off their grids;"
        " put toy before it",
        "  line 6: verify.kl: is measured on evaluation data, and the recipe names none; add `evaluation: {data: ...}`",
    ]


def test_schema(cli):
    schema = json.loads(cli("recipes", "schema").stdout)
    methods = schema["properties"]["passes"]["items"]["properties"]
    assert methods["toy"]["description"] == "Removes channels."
    assert list(methods) == ["toy", "bare"]


def test_methods_list(cli):
    assert trimmed(cli("methods", "list").stdout) == [
        "method  family     what it does",
        "toy     structure  Removes channels.",
        "bare    quantize   Rounds weights.",
    ]
    assert json.loads(cli("methods", "list", "--json").stdout)[1]["family"] == "quantize"


def test_methods_show(cli):
    assert trimmed(cli("methods", "show", "toy").stdout) == [
        "toy (structure)",
        "Removes channels.",
        "",
        "option    type                         default   meaning",
        "sparsity  number, at least 0, below 1  required  Share of channels removed.",
        "target    ffn | heads                  ffn       What is pruned.",
        "layers    list of integer | nothing              Which layers; all if absent.",
    ]
    assert cli("methods", "show", "bare").stdout.endswith("It has no options.\n")
    assert json.loads(cli("methods", "show", "toy", "--json").stdout)["options"]["required"] == ["sparsity"]
    done = cli("methods", "show", "tyo")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (2, "error: tyo: no such method (did you mean 'toy'?)")


def test_an_incomplete_installation_is_said(cli, monkeypatch):
    monkeypatch.setattr("compressor.passes.methods", dict)
    done = cli("methods", "list")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the installation is not complete" in done.stderr


def test_version(cli):
    assert cli("--version").stdout == f"compressor {compressor.__version__}\n"


def test_help_lists_every_command(cli):
    done = cli("--help")
    assert done.exit_code == 0
    names = ["run", "plan", "inspect", "verify", "bench", "eval", "doctor", "recipes", "methods"]
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ") and line[2] != " "][
        -9:
    ] == names
    assert "130 interrupted" in done.stdout
    assert cli().exit_code == 2, "no command at all is a usage error"
