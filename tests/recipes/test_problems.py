"""Every way in which a recipe can be wrong: the message says what, where, what was given and what is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compressor.errors import RecipeError
from compressor.recipe import BOUNDS, GATES, load_recipe


def test_everything_at_once_in_the_order_of_lines(problems):
    text = """\
version: 2
nam: x
name: "a b"
model: {id: demo, dtype: flaot32}
calibration: {samples: "12", length: 1.5, seed: -1, cache_memory: 12XB}
passes:
  - width: {sparsity: 1.5, importance: obz, layers: al, foo: 1}
  - widht: {sparsity: 0.2}
  - int8-dynamic
  - width:
  - {a: 1, b: 2}
export: {format: onxx, opset: 12}
verify:
  speedup: {min: 2, max: 1}
  top1: {min: 1.5}
  cosin: {min: 0.5}
  kl: 3
"""
    allowed = "version, name, model, calibration, evaluation, passes, export, verify, sweep, report"
    options = "sparsity, importance, target, layers, symmetric, solver"
    data = (
        "Text (.txt, .jsonl), sentences or pairs with their labels (.csv, .tsv), an image folder with labels.csv, "
        "questions about images (.jsonl), or demo:train (docs/data.md has the forms); looked for beside the recipe, "
        "then in the working folder."
    )
    assert problems(text) == [
        "line 1: version: expected 1, the only version there is, got 2",
        f"line 2: nam: unknown key (did you mean 'name'?); allowed: {allowed}",
        "line 3: name: expected letters, digits, '.', '_' and '-', at most 100, the first a letter or digit, got 'a b'",
        "line 4: model.dtype: allowed: auto, float32, float16 or bfloat16, got 'flaot32' (did you mean 'float32'?)",
        "line 5: calibration.cache_memory: expected bytes as a number or as text with a unit such as 512MB or 2GiB,"
        " got '12XB'",
        f"line 5: calibration.data: required, but missing: {data}",
        "line 5: calibration.length: expected an integer, got 1.5",
        "line 5: calibration.samples: expected an integer, got '12'",
        "line 5: calibration.seed: must be at least 0, got -1",
        f"line 7: passes[0].width.foo: unknown key; allowed: {options}",
        "line 7: passes[0].width.importance: allowed: obs or act, got 'obz' (did you mean 'obs'?)",
        "line 7: passes[0].width.layers: allowed: a list or all, got 'al'",
        "line 7: passes[0].width.sparsity: must be less than 1.0, got 1.5",
        "line 8: passes[1].widht: unknown method (did you mean 'width'?); allowed: width, int8-dynamic",
        "line 9: passes[2]: expected one method with its options, got 'int8-dynamic'; write `- int8-dynamic: {}`",
        "line 10: passes[3].width.sparsity: required, but missing: Share of channels removed.",
        "line 11: passes[4]: expected one method with its options, got keys 'a', 'b'",
        "line 12: export.format: allowed: onnx, ort or safetensors, got 'onxx' (did you mean 'onnx'?)",
        "line 12: export.opset: expected auto, or an opset from 18 to 23, got 12",
        "line 14: verify.speedup: no value can be at least 2 and at most 1",
        "line 15: verify.top1: min 1.5 can never be reached: the value is at most 1",
        f"line 16: verify.cosin: unknown key (did you mean 'cosine'?); allowed: {', '.join([*BOUNDS, *GATES])}",
        "line 17: verify.kl: expected a mapping, got 3",
    ]


def test_missing_keys_without_a_line(problems):
    assert problems("{}") == [
        "name: required, but missing: Name of the recipe and default name of the artifact folder; letters, digits,"
        " '.', '_' and '-'.",
        "passes: required, but missing: a list of methods; `passes: []` exports the model as it is",
        "version: required, but missing: Version of the recipe format: 1.",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("version: true", "version: expected 1, the only version there is, got true"),
        ("version: '1'", "version: expected 1, the only version there is, got '1'"),
        ("version: 1.0", None),
        ("name: 12", "name: expected text, got 12"),
        ("name: ../up", "name: expected letters, digits"),
        ("name: {a: b}", "name: expected text, got a mapping"),
        ("model: demo", "model: expected a mapping, got 'demo'"),
        ("model: {trust_remote_code: yes}", "model.trust_remote_code: expected true or false, got 'yes'"),
        ("model: {id: ''}", "model.id: "),
        ('model: {id: "a\\nb"}', "model.id: must be one line of visible text"),
        ("calibration: {data: x, samples: true}", "calibration.samples: expected an integer, got true"),
        ("calibration: {data: x, samples: 0}", "calibration.samples: must be at least 1, got 0"),
        (
            "calibration: {data: x, samples: 99999999999999999999}",
            "calibration.samples: must be at most 999999999999999999, got 1e+20",
        ),
        (
            "calibration: {data: x, seed: -99999999999999999999}",
            "calibration.seed: must be at least 0, got -1e+20",
        ),
        (
            "calibration: {data: x, seed: 99999999999999999999}",
            "calibration.seed: must be less than 4294967296, got 1e+20",
        ),
        ("calibration: {data: x, cache_memory: -1}", "calibration.cache_memory: must be at least 0, got -1"),
        ("calibration: {data: [x]}", "calibration.data: expected text, got a list"),
        ("evaluation: {data: x, metrics: perplexity}", "evaluation.metrics: expected a list, got 'perplexity'"),
        ("evaluation: {data: x, metrics: [kl, klx]}", "evaluation.metrics[1]: allowed: perplexity, kl, top1"),
        ("evaluation: {data: x, metrics: [kl, kl]}", "evaluation.metrics: given twice: kl"),
        ("export: {opset: auto, dtype: int8}", "export.dtype: allowed: auto, float32 or float16, got 'int8'"),
        ("export: {opset: true}", "export.opset: expected auto, or an opset from 18 to 23, got true"),
        (
            "export: {format: safetensors, graph: portable}",
            "export: format: safetensors has no graph, so leave out graph: portable",
        ),
        (
            "export: {format: safetensors, opset: 20, graph: portable}",
            "export: format: safetensors has no graph, so leave out graph: portable and opset: 20",
        ),
        ("verify: {kl: {}}", "verify.kl: needs min or max or both"),
        ("verify: {kl: {max: a}}", "verify.kl.max: expected a number, got 'a'"),
        ("verify: {kl: {max: true}}", "verify.kl.max: expected a number, got true"),
        ("verify: {kl: {max: .inf}}", "verify.kl.max: numbers must be finite"),
        ("verify: {kl: {max: 1e999}}", "verify.kl.max: numbers must be finite"),
        ("verify: {kl: {mx: 1}}", "verify.kl.mx: unknown key (did you mean 'max'?); allowed: min, max"),
        ("verify: {gain.dominated: 3}", "verify.gain.dominated: expected true or false, got 3"),
        ("verify: {quality.top1: true}", "verify.quality.top1: allowed: a mapping or false, got true"),
        ("verify: {quality.top1: {min: 2}}", "verify.quality.top1: min 2 can never be reached: the value is at most 1"),
        ("verify: {gain.dominatd: false}", "verify.gain.dominatd: unknown key (did you mean 'gain.dominated'?)"),
        ("export: {target: avx}", "export.target: allowed: auto, x86-avx2, x86-vnni or arm64, got 'avx'"),
        ("verify: {kl: {max: -0.1}}", "verify.kl: max -0.1 can never be met: the value is at least 0"),
        ("passes: {width: {}}", "passes: expected a list such as `- magnitude: {sparsity: 0.3}`, got a mapping"),
        (f"passes: [{', '.join(['width: {}'] * 65)}]", "passes: 65 methods; at most 64 are read"),
        ("passes: [[]]", "passes[0]: expected one method with its options, got an empty list"),
        ("passes: [{}]", "passes[0]: expected one method with its options, got an empty mapping"),
        ("passes: [{int8-dynamic: {x: 1}}]", "passes[0].int8-dynamic.x: unknown key; nothing is allowed here"),
        ("passes: [{width: 0.3}]", "passes[0].width: expected a mapping, got 0.3"),
        ("passes: [{width: {sparsity: '0.3'}}]", "passes[0].width.sparsity: expected a number, got '0.3'"),
        (
            "passes: [{width: {sparsity: 0.3, symmetric: 1}}]",
            "passes[0].width.symmetric: expected true or false, got 1",
        ),
        ("passes: [{width: {sparsity: 0.3, target: hed}}]", "passes[0].width.target: allowed: ffn or heads, got 'hed'"),
        (
            "passes: [{width: {sparsity: 0.3, solver: {dampin: 1}}}]",
            "passes[0].width.solver.dampin: unknown key (did you mean 'damping'?); allowed: damping",
        ),
        (
            "passes: [{width: {sparsity: 0.3, solver: {damping: 0}}}]",
            "passes[0].width.solver.damping: must be more than 0.0, got 0",
        ),
    ],
)
def test_one_wrong_key(line, expected, problems, parse):
    key = line.partition(":")[0]
    rest = {"version": "version: 1", "name": "name: x", "passes": "passes: []"}
    text = "\n".join([*(text for name, text in rest.items() if name != key), line])
    if expected is None:
        # JSON knows one kind of number: 1.0 is the version 1.
        assert parse(text).name == "x"
        return
    found = problems(text)
    number = text.count("\n") + 1
    assert len(found) == 1
    assert found[0].startswith(f"line {number}: {expected}")


def test_long_and_hostile_values_are_cut_and_quoted(problems):
    (line,) = problems(f'version: 1\nname: x\npasses: []\n"\\e[31m{"k" * 100}": 1\n')
    assert "\x1b" not in line and len(line) < 250
    (line,) = problems(f"version: 1\nname: '{'v' * 500}'\npasses: []\n")
    assert line.endswith("vvv...'") and len(line) < 250


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the recipe is empty"),
        ("# nothing\n", "the recipe is empty"),
        ("- 1", "expected a mapping, got a list"),
        ("hello", "expected a mapping, got 'hello'"),
        ("a: [1", "line 1: not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("a: 1\n b: 2", "line 2: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML: while scanning for the next token, found character '\\t'"),
        ("a: 1\nb: \x00", "line 2: not valid YAML: control character #x00"),
        ('a: "\\UFFFFFFFF"', "not valid YAML: "),
        ("a: &x 1\nb: *x", "line 2: b: aliases (*x) are not read; write the value out"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "line 1: a: tags ('tag:yaml.org,2002:python/object/apply:os.system')",
        ),
        ("--- \na: 1\n---\nb: 2", "line 3: a second document begins here; a recipe is one document"),
        ("? [a, b]\n: 1", "line 1: a key must be plain text"),
        ("a: " + "[" * 40, "line 1: nested deeper than 16 levels; a recipe needs 5"),
        ("a: " + "{b: " * 40, "line 1: nested deeper than 16 levels; a recipe needs 5"),
    ],
)
def test_texts_that_cannot_be_read(text, expected, problems):
    (line,) = problems(text)
    assert line.startswith(expected)


def test_keys_given_twice_and_numbers_out_of_range_come_with_the_rest(problems, good):
    text = good + "verify: {}\nextra: 1\n"
    found = problems(text)
    assert found[0] == "line 12: verify: given twice, first in line 9"
    assert found[1].startswith("line 13: extra: unknown key")


def test_a_billion_laughs_end_at_the_first_alias(problems):
    text = "a: &a [x, x]\n" + "\n".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(9)
    )
    assert problems(text) == ["line 2: b[0]: aliases (*a) are not read; write the value out"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe\x00", "not UTF-8 text at byte 0: not a recipe"),
        (b"name: caf\xe9", "not UTF-8 text at byte 9: not a recipe"),
        (b"x: " + b"y" * 70_000, "larger than 64 KiB: not a recipe"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, expected, toys):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, options=toys)
    assert str(caught.value) == f"{path}: 1 problem\n  {expected}"


def test_a_named_pipe_is_not_waited_for_and_a_shells_is_read(tmp_path, good, toys):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="a named pipe"):
        load_recipe(tmp_path / "pipe.yaml", options=toys)
    reading, writing = os.pipe()
    os.write(writing, good.encode())
    os.close(writing)
    assert load_recipe(Path(f"/dev/fd/{reading}"), options=toys).name
    os.close(reading)


def test_files_that_are_not_there(tmp_path, toys):
    for path, reason in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(RecipeError, match=reason):
            load_recipe(path, options=toys)
