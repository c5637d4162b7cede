"""Alterations with all hashes renewed: what is seen without the dense model and without a key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from safetensors.numpy import load_file, save_file

from compressor.errors import ModelError
from compressor.exporters.safetensors import export_safetensors
from compressor.machine.progress import NullProgress
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.folder import open_model
from compressor.passes import method_options
from compressor.pipeline import verify
from compressor.recipe import parse_recipe
from compressor.report import build_report, write_reports
from compressor.report.seal import check_greedy_again, check_recipe, check_reports
from compressor.storage.tensors import sha256_of
from compressor.verification import MANIFEST, REFERENCE, seal, write_reference
from compressor.verification.baked import check_baked
from compressor.verification.code import check_code
from compressor.verification.companions import check_companions, check_same
from compressor.verification.manifest import check_files, read_manifest
from compressor.verification.precision import check_precision
from compressor.verification.reference import check_reference
from compressor.verification.reference_file import recorded_companions, recorded_tables
from compressor.verification.tables import check_tables, table_record, tables_in
from compressor.verification.verdict import Check
from compressor.verification.weights import open_weights
from tests.methods.test_tome import reduced
from tests.verification.test_sabotage import rehash, reseal

Model = Any


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.reason for check in checks if not check.passed}


def rewrite(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; dots go into objects, None removes a key."""
    content = json.loads(file.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    file.write_text(json.dumps(content))


# Graphs that go wrong beyond short texts and small batches


def kept_below(limit: int, axis: int, model: Model) -> None:
    """Let a graph multiply the logits by 0 from index `limit` of an axis of the tokens on."""
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "logits":
                node.output[place] = "right_logits"
    constants = {"zero": 0, "one": 1, "limit": limit}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in constants.items()
    )
    shape = np.asarray([-1, 1, 1] if axis == 0 else [1, -1, 1], np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(shape, "mask_shape"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([0], np.int64), "first"))
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["input_ids"], ["sizes"], start=axis, end=axis + 1),
            helper.make_node("Squeeze", ["sizes", "first"], ["size"]),
            helper.make_node("Range", ["zero", "size", "one"], ["places"]),
            helper.make_node("Less", ["places", "limit"], ["kept"]),
            helper.make_node("Cast", ["kept"], ["kept_numbers"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Reshape", ["kept_numbers", "mask_shape"], ["kept_mask"]),
            helper.make_node("Mul", ["right_logits", "kept_mask"], ["logits"]),
        ]
    )


def windowed(model: Model) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                attribute.i = 40


def other_row(model: Model) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "model.embed_tokens.weight":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[197] = array[3]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


GRAPHS: dict[str, tuple[Callable[[Model], None], str]] = {
    "zero after 40 tokens": (lambda model: kept_below(40, 1, model), "parity.long.max_abs"),
    "zero above batch 8": (lambda model: kept_below(8, 0, model), "parity.wide.max_abs"),
    "a window of 40 tokens": (windowed, "parity.continued.max_abs"),
    "one token": (other_row, "parity.long.max_abs"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_go_wrong_beyond_small_inputs(name: str, artifact: Path) -> None:
    model = onnx.load(str(artifact / "model.onnx"))
    edit, expected = GRAPHS[name]
    edit(model)
    runner = OnnxRunner(artifact, graph=model.SerializeToString())
    assert expected in failing(check_reference(runner, artifact / REFERENCE))


WEIGHTS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "patches read backwards": ("vit", "patch_embeddings.projection.weight", lambda a: a[:, :, ::-1]),
    "axes of a patch exchanged": ("vit", "patch_embeddings.projection.weight", lambda a: a.transpose(0, 1, 3, 2)),
    "positions end early": (
        "bert",
        "position_embeddings.weight",
        lambda a: np.where(np.arange(len(a))[:, None] > 40, np.float32(0), a),
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_only_some_inputs_use(name: str, pico: Callable[..., Path], tmp_path: Path) -> None:
    family, ending, edit = WEIGHTS[name]
    folder = Path(shutil.copytree(pico(family), tmp_path / "model"))
    write_reference(TorchRunner(folder), tmp_path / REFERENCE)
    assert not failing(check_reference(TorchRunner(folder), tmp_path / REFERENCE))
    tensors = load_file(folder / "model.safetensors")
    (changed,) = [key for key in tensors if key.endswith(ending)]
    tensors[changed] = np.ascontiguousarray(edit(tensors[changed]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = "parity.pixels.max_abs" if family == "vit" else "parity.long.max_abs"
    assert expected in failing(check_reference(TorchRunner(folder), tmp_path / REFERENCE))


# config.json and its companions


def look(folder: Path) -> dict[str, str]:
    """Return what the checks of configuration and companions find."""
    record = recorded_companions(folder / REFERENCE)
    assert record is not None
    checks = [*check_baked(folder, open_weights(folder)), *check_companions(folder, record, exported=False)]
    return failing(checks)


CONFIGS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "end": ("config.json", {"eos_token_id": 7}, {"config.recorded"}),
    "padding": ("config.json", {"pad_token_id": 7}, {"config.recorded"}),
    "rotation": (
        "config.json",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"config.recorded", "config.rotation"},
    ),
    "epsilon": ("config.json", {"rms_norm_eps": 1e-3}, {"config.recorded", "config.norms"}),
    "context": ("config.json", {"max_position_embeddings": 99999}, {"config.recorded", "config.genai"}),
    "vocabulary": (
        "config.json",
        {"vocab_size": 400},
        {"config.recorded", "config.genai", "config.ports", "config.tensors"},
    ),
    "activation": ("config.json", {"hidden_act": "gelu"}, {"config.recorded"}),
    "end in generation": ("generation_config.json", {"eos_token_id": 9}, {"companions.files", "config.genai"}),
    "end in genai": ("genai_config.json", {"model.eos_token_id": 5}, {"config.genai"}),
    "context in genai": ("genai_config.json", {"model.context_length": 99999}, {"config.genai"}),
    "heads in genai": ("genai_config.json", {"model.decoder.num_attention_heads": 3}, {"config.genai"}),
    "another graph": ("genai_config.json", {"model.decoder.filename": "../../evil.onnx"}, {"config.genai"}),
    "a library": (
        "genai_config.json",
        {"model.decoder.session_options.custom_ops_library": "evil.so"},
        {"config.genai"},
    ),
    "chat template": ("tokenizer_config.json", {"chat_template": "{{ evil }}"}, {"companions.files"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration(name: str, victim: Path) -> None:
    assert look(victim) == {}
    file, changes, expected = CONFIGS[name]
    rewrite(victim / file, **changes)
    assert expected <= set(look(victim))


def test_an_attribute_of_the_graph(victim: Path) -> None:
    model = onnx.load(str(victim / "model.onnx"))
    windowed(model)
    onnx.save(model, str(victim / "model.onnx"))
    assert "local_window_size of layer 0 is 40" in look(victim)["config.attention"]


@pytest.mark.parametrize("table", ["model.embed_tokens.weight", "embeddings.position_embeddings.weight"])
def test_rows_that_no_probe_uses(table: str, artifact: Path, pico: Callable[..., Path], tmp_path: Path) -> None:
    recorded = recorded_tables(artifact / REFERENCE) if table.startswith("model") else {}
    folder = artifact
    if not recorded:
        folder = Path(shutil.copytree(pico("bert"), tmp_path / "model"))
        recorded = tables_in(table_record(TorchRunner(folder)))
    weights = open_weights(folder)
    assert not failing(check_tables(weights, recorded))
    other = {**recorded, table: np.where(np.arange(len(recorded[table])) == 77, 0.5, recorded[table])}
    assert "in 1 rows, first in row 77" in failing(check_tables(weights, other))["weights.tables"]
    assert "rows" in failing(check_tables(weights, {table: recorded[table][1:]}))["weights.tables"]


def test_entries_and_merges_of_the_tokenizer(victim: Path) -> None:
    file = victim / "tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    swapped = {**vocabulary, names[300]: vocabulary[names[310]], names[310]: vocabulary[names[300]]}
    file.write_text(json.dumps({**state, "model": {**state["model"], "vocab": swapped}}))
    assert {"tokenizer.entries", "companions.files"} <= set(look(victim))
    merges = state["model"]["merges"]
    file.write_text(json.dumps({**state, "model": {**state["model"], "merges": merges[1:]}}))
    assert {"tokenizer.entries"} <= set(look(victim))


def test_chat_template(pico: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pico("llama"), tmp_path / "model"))
    template = folder / "chat_template.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    write_reference(TorchRunner(folder), folder / REFERENCE)
    record = recorded_companions(folder / REFERENCE)
    assert record is not None and "<assistant>A model." in record["chat"]
    assert not failing(check_companions(folder, record, exported=True))
    template.write_text(template.read_text().replace("m.role", "m.role | upper"))
    assert "tokenizer.chat" in failing(check_companions(folder, record, exported=True))
    template.unlink()
    assert "tokenizer.chat" in failing(check_companions(folder, record, exported=True))


def test_image_processor(pico: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pico("vit"), tmp_path / "model"))
    write_reference(TorchRunner(folder), folder / REFERENCE)
    record = recorded_companions(folder / REFERENCE)
    assert record is not None
    assert not failing(check_companions(folder, record, exported=True))
    settings = folder / "preprocessor_config.json"
    for key, value in (("image_mean", [0.45, 0.5, 0.5]), ("resample", 0), ("rescale_factor", 1 / 250)):
        before = settings.read_text()
        rewrite(settings, **{key: value})
        assert {"processor.pixels", "companions.files"} <= set(failing(check_companions(folder, record, exported=True)))
        settings.write_text(before)
    rewrite(settings, size={"height": 24, "width": 24})
    assert "processor.shape" in failing(check_companions(folder, record, exported=True))


def test_against_the_dense_model(victim: Path, artifact: Path) -> None:
    assert not failing(check_same(victim, artifact))
    labels = {"id2label": {"0": "no", "1": "yes"}}
    rewrite(victim / "config.json", **labels)
    (victim / "chat_template.jinja").write_text("{{ evil }}")
    found = failing(check_same(victim, artifact))
    assert "id2label" in found["config.same"]
    assert "chat_template.jinja" in found["companions.same"]


@pytest.mark.parametrize("stated", ["float16", "int8-dynamic", "int4", "bfloat16"])
def test_precision_is_the_graphs(stated: str, artifact: Path) -> None:
    reason = failing(check_precision({"precision": stated}, open_weights(artifact)))["precision.stated"]
    assert "float32" in reason and stated in reason


# Code


def stepped(folder: Path) -> None:
    file = folder / "modeling_compressed.py"
    file.write_text(file.read_text() + "\nimport os\nos.system('true')\n")


CODE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another statement": (stepped, "code.modeling"),
    "no file": (lambda folder: (folder / "modeling_compressed.py").unlink(), "code.modeling"),
    "another class": (
        lambda folder: rewrite(folder / "config.json", **{"auto_map.AutoConfig": "evil.Evil"}),
        "code.auto_map",
    ),
    "other places": (
        lambda folder: rewrite(folder / "config.json", **{"compression.paths.ffn_norm": "evil"}),
        "code.auto_map",
    ),
}


@pytest.fixture(scope="module")
def shaped(pico: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokens become fewer, with its modelling file; read-only."""
    root = tmp_path_factory.mktemp("shaped")
    model = reduced(open_model(pico("vit")), root / "work")
    (root / "out").mkdir()
    export_safetensors(model, root / "out")
    write_reference(TorchRunner(model.path), root / "out" / REFERENCE)
    return root / "out"


@pytest.mark.parametrize("name", CODE)
def test_code_is_generated_again(name: str, shaped: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shaped, tmp_path / "artifact"))
    record = recorded_companions(folder / REFERENCE)
    assert record is not None
    checks = [*check_code(folder, checkpoint=True, manifest={}), *check_companions(folder, record, exported=True)]
    assert not failing([*checks, *check_reference(TorchRunner(folder), folder / REFERENCE)])
    edit, expected = CODE[name]
    edit(folder)
    assert expected in failing(check_code(folder, checkpoint=True, manifest={}))


def test_a_graph_needs_no_code(victim: Path) -> None:
    assert not failing(check_code(victim, checkpoint=False, manifest={}))
    (victim / "modeling_compressed.py").write_text("")
    rewrite(victim / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    found = failing(check_code(victim, checkpoint=False, manifest={}))
    assert found.keys() == {"code.modeling", "code.auto_map"}


# Entries that are no part of the artifact


STRANGERS: dict[str, Callable[[Path], object]] = {
    "numpy.py": lambda path: path.write_text(""),
    "weights.pkl": lambda path: path.write_bytes(b"\x80\x04."),
    "report.xml": lambda path: path.write_text(""),
    "compressor": lambda path: path.mkdir(),
    "verification/deep": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "etc": lambda path: path.symlink_to("/etc"),
    "copy.json": lambda path: path.symlink_to("config.json"),
    "loop": lambda path: path.symlink_to("loop"),
    ".hidden": lambda path: path.write_text(""),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_entries_of_any_kind_are_named(name: str, victim: Path) -> None:
    STRANGERS[name](victim / name)
    assert name in failing(check_files(victim, read_manifest(victim)))["files.no_strangers"]


def test_what_version_control_keeps_is_none(victim: Path) -> None:
    (victim / ".git").mkdir()
    (victim / ".gitattributes").write_text("")
    assert not failing(check_files(victim, read_manifest(victim)))


@pytest.mark.parametrize("name", ["json.py", "weights.pkl", "adapter_config.json", "verification/x.safetensors"])
def test_strangers_that_the_manifest_lists(name: str, victim: Path) -> None:
    (victim / name).write_text("{}")
    manifest = read_manifest(victim)
    reseal(victim, {**manifest, "outputs": {**manifest["outputs"], name: ""}})
    rehash(victim)
    assert name in failing(check_files(victim, read_manifest(victim)))["files.names"]


# Reports


@pytest.fixture(scope="module")
def finished(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with its reports; read-only."""
    folder = Path(shutil.copytree(artifact, tmp_path_factory.mktemp("finished") / "artifact"))
    (folder / "recipe.yaml").write_text("version: 1\nname: forged\npasses: []\nverify: {size_ratio: {max: 2}}\n")
    manifest = {**read_manifest(folder), "task": "text-generation", "passes": []}
    seal(folder, {**manifest, "recipe": {"verify": {"size_ratio": {"max": 2.0}}}})
    size = (folder / "model.onnx").stat().st_size
    side = {"parameters": manifest["parameters"], "bytes": size, "flops": 10, "metrics": {"perplexity": 4.0}}
    bound = {"name": "bounds.size_ratio", "passed": True, "value": 1.0, "bound": {"max": 2.0}}
    report = build_report(
        model={"id": "owner/model", "task": "text-generation"},
        dense=side,
        compressed=side,
        checks=[bound],
        environment={"compressor": "0.1.0"},
    )
    write_reports(folder, report, (folder / "recipe.yaml").read_text())
    return folder


def renewed(folder: Path) -> None:
    """Bring the report's seal in line with edited files."""
    from compressor.report.seal import SEAL, _digest

    report = json.loads((folder / "report.json").read_text())
    names = report[SEAL]["files"]
    digests = {"manifest": sha256_of(folder / MANIFEST), "files": {n: sha256_of(folder / n) for n in names}}
    (folder / "report.json").write_text(json.dumps({**report, SEAL: {**digests, "report": _digest(report)}}))


def append(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text) and None


REPORTS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "script": (append("report.html", "<script>evil()</script>"), "report.rendered", True),
    "card": (append("README.md", "Best model ever."), "report.rendered", True),
    "cases": (append("junit.xml", "<!-- -->"), "report.rendered", True),
    "perplexity": (
        lambda folder: rewrite(folder / "report.json", **{"compressed.metrics": {"perplexity": 1.0}}),
        "report.rendered",
        True,
    ),
    "bytes": (lambda folder: rewrite(folder / "report.json", **{"compressed.bytes": 10}), "report.figures", True),
    "ratio": (lambda folder: rewrite(folder / "report.json", **{"ratios.bytes": 0.01}), "report.figures", True),
    "no bound": (lambda folder: rewrite(folder / "report.json", checks=[]), "report.readable", False),
    "garbage": (lambda folder: (folder / "report.json").write_text("garbage"), "report.readable", False),
    "deep": (lambda folder: (folder / "report.json").write_text("[" * 100_000), "report.readable", False),
    "removed": (lambda folder: (folder / "report.json").unlink(), "report.present", False),
    "no card": (lambda folder: (folder / "README.md").unlink(), "report.present", False),
    "a pipe": (
        lambda folder: ((folder / "report.json").unlink(), os.mkfifo(folder / "report.json")),
        "report.present",
        False,
    ),
    "a link to outside": (
        lambda folder: ((folder / "junit.xml").unlink(), (folder / "junit.xml").symlink_to("/etc/hostname")),
        "report.present",
        False,
    ),
    "seals of files that are not its own": (
        lambda folder: rewrite(folder / "report.json", **{"seal.files": {"../nothing": "x"}}),
        "report.seal",
        False,
    ),
    "another manifest": (lambda folder: rewrite(folder / MANIFEST, seed=1), "report.seal", False),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports(name: str, finished: Path, tmp_path: Path) -> None:
    edit, expected, renewable = REPORTS[name]
    folder = Path(shutil.copytree(finished, tmp_path / "artifact"))
    assert not failing(check_reports(folder, read_manifest(folder)))
    edit(folder)
    if renewable:
        assert "report.seal" in failing(check_reports(folder, read_manifest(folder)))
        renewed(folder)
    found = failing(check_reports(folder, read_manifest(folder)))
    assert expected in found
    assert ("report.seal" in found) == (expected == "report.seal")


def test_a_loosened_recipe(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "artifact"))
    recipe = (folder / "recipe.yaml").read_text()
    values = parse_recipe(recipe, source="recipe.yaml", options=method_options()).resolved()
    manifest = {**read_manifest(folder), "recipe": values}
    assert not failing(check_recipe(folder, manifest))
    (folder / "recipe.yaml").write_text(recipe.replace("max: 2", "max: 9"))
    assert "recipe.yaml: verify.size_ratio.max (9" in failing(check_recipe(folder, manifest))["recipe.recorded"]
    (folder / "recipe.yaml").write_text("[" * 1000)
    assert "recipe.recorded" in failing(check_recipe(folder, manifest))
    assert check_recipe(folder, {}) == []
    (folder / "recipe.yaml").unlink()
    os.mkfifo(folder / "recipe.yaml")
    assert "a named pipe" in failing(check_recipe(folder, manifest))["recipe.recorded"]


def test_greedy_samples_made_again(finished: Path, tmp_path: Path) -> None:
    made = [sample("Once upon", " a time"), sample("He said", " that it was late")]
    folder = Path(shutil.copytree(finished, tmp_path / "artifact"))
    assert check_greedy_again(folder, made) == []  # of an earlier release
    rewrite(folder / "report.json", greedy=made)
    assert [check.passed for check in check_greedy_again(folder, made)] == [True]
    near = [made[0], sample("He said", " that he was here")]
    assert not failing(check_greedy_again(folder, near))  # a near tie ends another way on another processor
    other = [sample("Once upon", "!"), sample("He said", "? In the beginning was")]
    assert "other texts" in failing(check_greedy_again(folder, other))["report.greedy"]
    for prompts in ([], made[:1], [sample("I", " a time"), made[1]]):
        assert "other prompts" in failing(check_greedy_again(folder, prompts))["report.greedy"]


def sample(prompt: str, text: str) -> dict[str, Any]:
    return {"prompt": prompt, "dense": text, "compressed": text, "tokens": 4, "differs_at": None}


@pytest.mark.parametrize("passes", [3, [1], {"rtn": 4}, "rtn"])
def test_passes_of_another_form(passes: object, finished: Path) -> None:
    manifest = {**read_manifest(finished), "passes": passes}
    assert ("report.figures" in failing(check_reports(finished, manifest))) == isinstance(passes, list)


@pytest.mark.parametrize("kind", ["model", "empty", "file", "nothing"])
def test_what_is_no_artifact(kind: str, pico: Callable[..., Path], tmp_path: Path) -> None:
    place = pico("llama") if kind == "model" else tmp_path / kind
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.write_text("")
    expected = {"model": "not compressed", "empty": "no artifact", "file": "is a file", "nothing": "no such"}[kind]
    with pytest.raises(ModelError, match=expected):
        verify(place, progress=NullProgress())


def test_an_older_reference_still_counts(artifact: Path, tmp_path: Path) -> None:
    import safetensors

    with safetensors.safe_open(str(artifact / REFERENCE), framework="numpy") as handle:
        facts = json.loads(handle.metadata()["reference"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    cases = [{k: v for k, v in case.items() if k not in ("columns", "pixels")} for case in facts["cases"][:5]]
    old = {"version": 1, "task": facts["task"], "cases": cases}
    for name, known in (("old", old), ("newer", {**facts, "version": 99})):
        save_file(tensors, tmp_path / name, metadata={"reference": json.dumps(known)})
    assert not failing(check_reference(OnnxRunner(artifact), tmp_path / "old"))
    assert recorded_companions(tmp_path / "old") is None
    assert "version" in failing(check_reference(OnnxRunner(artifact), tmp_path / "newer"))["parity.reference"]
