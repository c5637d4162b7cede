"""Whatever is done to an artifact, verification fails it with exit code 3 or 4 and says why."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compressor.verification import MANIFEST, REFERENCE, Job, Verdict, run_fresh, seal, verify
from compressor.verification.manifest import read_manifest
from tests.verification.conftest import export

Judge = Callable[[Path], Verdict]
Edit = Callable[[Any], Any]


def reasons(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.reason for check in verdict.failures}


def rehash(folder: Path) -> None:
    """Do what a thorough saboteur does: bring sha256 sums and seal in line with the damaged files."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["outputs"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in manifest["outputs"]
        if (folder / name).is_file()
    }
    reseal(folder, manifest)


def reseal(folder: Path, manifest: dict[str, Any]) -> None:
    content = {key: value for key, value in manifest.items() if key != "seal"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    (folder / MANIFEST).write_text(json.dumps({**content, "seal": hashlib.sha256(canonical).hexdigest()}))


def edit_tensor(folder: Path, choose: Callable[[str, Any], bool], edit: Edit) -> str:
    """Change the first tensor that `choose(name, array)` accepts; return its name."""
    path = folder / "model.onnx"
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if choose(tensor.name, array):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(edit(array)), tensor.name))
            onnx.save(model, str(path))
            return str(tensor.name)
    raise AssertionError("the graph has no such tensor")


def is_matrix(name: str, array: Any) -> bool:
    return array.ndim == 2 and array.dtype == np.float32 and 100 in array.shape


def is_norm(name: str, array: Any) -> bool:
    return bool(array.ndim == 1 and array.dtype == np.float32 and array.shape == (48,))


def is_embedding(name: str, array: Any) -> bool:
    return array.ndim == 2 and array.dtype == np.float32 and 320 in array.shape


def externalise(folder: Path) -> Path:
    """Move the weights into model.onnx.data and seal again: a healthy artifact of the other form."""
    model = onnx.load(str(folder / "model.onnx"))
    (folder / "model.onnx").unlink()
    onnx.save(
        model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    seal(folder, read_manifest(folder))
    return folder


def test_a_healthy_artifact_passes(artifact: Path, judge: Judge) -> None:
    verdict = judge(artifact)
    assert reasons(verdict) == {}
    assert verdict.exit_code == 0
    assert {c.name.split(".")[0] for c in verdict.checks} >= {
        "files",
        "graph",
        "weights",
        "shapes",
        "tokenizer",
        "parity",
    }
    assert verdict.compressed["metrics"]["perplexity"] > 1.0


WEIGHTS: dict[str, tuple[Callable[[str, Any], bool], Edit]] = {
    "zeroed": (is_matrix, np.zeros_like),
    "scaled": (is_matrix, lambda a: a * np.float32(1.02)),
    "rows flipped": (is_matrix, lambda a: a[::-1]),
    "columns flipped": (is_matrix, lambda a: a[:, ::-1]),
    "one row zeroed": (is_matrix, lambda a: np.where(np.arange(len(a))[:, None] == 3, np.float32(0), a)),
    "norm shifted": (is_norm, lambda a: a + np.float32(0.05)),
    "norm zeroed": (is_norm, np.zeros_like),
    "embedding rolled": (is_embedding, lambda a: np.roll(a, 1, axis=0)),
    "rounded to half": (is_matrix, lambda a: a.astype(np.float16).astype(np.float32)),
    "NaN": (is_matrix, lambda a: np.where(np.arange(a.size).reshape(a.shape) == 7, np.float32("nan"), a)),
    "infinity": (is_norm, lambda a: np.where(np.arange(a.size) == 7, np.float32("inf"), a)),
}


# Where hashes are not renewed they tell of every alteration; two show that the other checks do too.
@pytest.mark.parametrize(
    ("name", "covered"),
    [
        *(pytest.param(name, True, id=f"rehashed-{name}") for name in WEIGHTS),
        *(
            pytest.param(
                name, False, id=f"plain-{name}", marks=() if name in ("scaled", "NaN") else pytest.mark.exhaustive
            )
            for name in WEIGHTS
        ),
    ],
)
def test_weights(name: str, covered: bool, victim: Path, judge: Judge) -> None:
    edit_tensor(victim, *WEIGHTS[name])
    if covered:
        rehash(victim)
    verdict = judge(victim)
    found = reasons(verdict)
    assert verdict.exit_code == 4
    assert ("files.unchanged" in found) != covered
    assert any(check.startswith("parity.") for check in found), found
    if name == "zeroed":
        assert "all zeros" in found["weights.nonzero"]
    if name in ("NaN", "infinity"):
        assert "NaN or infinity" in found["weights.finite"]
    if name == "NaN":
        assert "quality.finite" in found
        assert verdict.compressed["metrics"]["perplexity"] != verdict.compressed["metrics"]["perplexity"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_truncated_graph(keep: float, victim: Path, judge: Judge) -> None:
    path = victim / "model.onnx"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code in (3, 4)
    assert {"weights.readable", "graph.session"} & set(reasons(verdict)), reasons(verdict)


@pytest.mark.parametrize("covered", [False, True], ids=["plain", "rehashed"])
def test_truncated_data(covered: bool, victim: Path, judge: Judge) -> None:
    path = externalise(victim) / "model.onnx.data"
    assert judge(victim).passed
    path.write_bytes(path.read_bytes()[:-5000])
    if covered:
        rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 3
    assert "truncated" in reasons(verdict)["files.external.length"]


@pytest.mark.parametrize("covered", [False, True], ids=["plain", "rehashed"])
def test_data_file_of_another_model(covered: bool, victim: Path, judge: Judge) -> None:
    path = externalise(victim) / "model.onnx.data"
    data = np.frombuffer(path.read_bytes(), np.float32)
    path.write_bytes(np.random.default_rng(0).permutation(data).tobytes())
    if covered:
        rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 4
    assert "parity.prefill.max_abs" in reasons(verdict)


def test_data_file_missing(victim: Path, judge: Judge) -> None:
    (externalise(victim) / "model.onnx.data").unlink()
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 3
    assert "model.onnx.data" in reasons(verdict)["files.external.present"]


@pytest.mark.parametrize("location", ["../stolen.data", "/etc/passwd"])
def test_data_outside_the_folder_is_never_read(location: str, victim: Path, judge: Judge) -> None:
    path = externalise(victim) / "model.onnx.data"
    shutil.move(path, victim.parent / "stolen.data")
    model = onnx.load(str(victim / "model.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (victim / "model.onnx").write_bytes(model.SerializeToString())
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code in (3, 4)
    assert "outside" in reasons(verdict)["files.external.inside"]
    assert "graph.session" in reasons(verdict)


def test_data_behind_a_link_is_never_read(victim: Path, judge: Judge) -> None:
    path = externalise(victim) / "model.onnx.data"
    shutil.move(path, victim.parent / "stolen.data")
    path.symlink_to(victim.parent / "stolen.data")
    verdict = judge(victim)
    found = reasons(verdict)
    assert "files.inside" in found
    assert "model.onnx.data" in found["files.links"]
    assert not any(check.name.startswith("graph.session") for check in verdict.checks)


@pytest.mark.parametrize("kind", ["pipe", "loop", "outside"])
@pytest.mark.parametrize("name", ["config.json", "compression.json", "chat_template.jinja"])
def test_what_is_no_file_of_the_folder_is_named_and_keeps_nobody_waiting(
    name: str, kind: str, victim: Path, judge: Judge
) -> None:
    (victim / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(victim / name)
    else:
        (victim / name).symlink_to(name if kind == "loop" else "../elsewhere.json")
        (victim.parent / "elsewhere.json").write_text("{}")
    verdict = judge(victim)
    assert verdict.exit_code in (3, 4)
    assert name in reasons(verdict)["files.links"]
    assert "graph.session" not in {check.name for check in verdict.checks}


@pytest.mark.parametrize("covered", [False, True], ids=["plain", "rehashed"])
def test_foreign_tokenizer(covered: bool, victim: Path, pico: Callable[..., Path], judge: Judge) -> None:
    shutil.copy(pico("bert") / "tokenizer.json", victim / "tokenizer.json")
    if covered:
        rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 4
    assert {"tokenizer.same", "tokenizer.probe"} <= set(reasons(verdict))


def test_tokenizer_with_more_tokens_than_the_embedding(victim: Path, judge: Judge) -> None:
    path = victim / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["vocab"]["one more"] = 320
    path.write_text(json.dumps(state))
    rehash(victim)
    assert "321 tokens" in reasons(judge(victim))["tokenizer.vocabulary"]


def test_tokenizer_missing_or_broken(victim: Path, judge: Judge) -> None:
    (victim / "tokenizer.json").write_text("{")
    assert judge(victim).exit_code == 3
    (victim / "tokenizer.json").unlink()
    verdict = judge(victim)
    assert verdict.exit_code == 3
    assert "tokenizer.present" in reasons(verdict)


CONFIGS = {
    "intermediate_size": (96, "shapes.graph"),
    "num_key_value_heads": (3, "shapes.graph"),
    "vocab_size": (400, "shapes.graph"),
    "num_hidden_layers": (4, "shapes.layers"),
    "hidden_size": (96, "shapes.parameters"),
    "model_type": ("nonsense", "shapes.config"),
}


@pytest.mark.parametrize("key", CONFIGS)
def test_stale_config(key: str, victim: Path, judge: Judge) -> None:
    value, expected = CONFIGS[key]
    config = json.loads((victim / "config.json").read_text())
    (victim / "config.json").write_text(json.dumps({**config, key: value}))
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code in (3, 4)
    assert expected in reasons(verdict)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_config_unreadable(content: str | None, victim: Path) -> None:
    (victim / "config.json").unlink()
    if content is not None:
        (victim / "config.json").write_text(content)
    rehash(victim)
    verdict = verify(Job(victim, timing=False))
    assert verdict.exit_code == 3
    assert "config.json" in reasons(verdict)["shapes.config"]


@pytest.mark.parametrize(
    ("key", "edit", "expected"),
    [
        ("parameters", lambda v: v // 2, "shapes.parameters"),
        ("layers", lambda v: [{**layer, "intermediate_size": 50} for layer in v], "shapes.layers"),
        ("layers", lambda v: v[:-1], "shapes.layers"),
        ("weights", lambda v: {k: [d[0], *reversed(d[1:])] for k, d in v.items()}, "shapes.weights"),
        ("precision", lambda v: "int4", "precision.stated"),
        ("precision", lambda v: "sloppy", "parity.precision"),
        ("outputs", lambda v: {k: s for k, s in v.items() if k != "model.onnx"}, "files.listed"),
        ("outputs", lambda v: {}, "files.listed"),
        ("outputs", lambda v: {**v, "../../secret": "0" * 64}, "files.inside"),
        ("outputs", lambda v: {**v, "/etc/passwd": "0" * 64}, "files.inside"),
        ("outputs", lambda v: {k: "0" * 64 for k in v}, "files.unchanged"),
        ("tokenizer", lambda v: {**v, "ids": v["ids"][1:]}, "tokenizer.probe"),
    ],
)
@pytest.mark.parametrize("covered", [False, True], ids=["plain", "resealed"])
def test_edited_manifest(key: str, edit: Edit, expected: str, covered: bool, victim: Path, judge: Judge) -> None:
    manifest = read_manifest(victim)
    manifest[key] = edit(manifest[key])
    if covered:
        reseal(victim, manifest)
    else:
        (victim / MANIFEST).write_text(json.dumps(manifest))
    verdict = judge(victim)
    assert verdict.exit_code == 4
    assert expected in reasons(verdict)
    assert ("files.seal" in reasons(verdict)) != covered


def test_manifest_edited_where_nothing_else_looks(victim: Path, judge: Judge) -> None:
    manifest = read_manifest(victim)
    (victim / MANIFEST).write_text(json.dumps({**manifest, "seed": 1}))
    assert set(reasons(judge(victim))) == {"files.seal"}


@pytest.mark.parametrize("content", [None, "", "[]", "{", "null"])
def test_manifest_unreadable(content: str | None, victim: Path, judge: Judge) -> None:
    (victim / MANIFEST).unlink()
    if content is not None:
        (victim / MANIFEST).write_text(content)
    verdict = judge(victim)
    assert verdict.exit_code == 3
    assert MANIFEST in reasons(verdict)["files.manifest"]


def test_strangers_and_missing_files(victim: Path, judge: Judge) -> None:
    (victim / "payload.py").write_text("")
    (victim / "genai_config.json").unlink()
    verdict = judge(victim)
    assert "payload.py" in reasons(verdict)["files.no_strangers"]
    assert "genai_config.json" in reasons(verdict)["files.present"]
    assert verdict.exit_code == 3


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 64])
def test_reference_lost(content: bytes | None, victim: Path, judge: Judge) -> None:
    (victim / REFERENCE).unlink()
    if content is not None:
        (victim / REFERENCE).write_bytes(content)
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 3
    assert REFERENCE in reasons(verdict)["parity.reference"]


def test_graph_of_another_task(victim: Path, pico: Callable[..., Path], judge: Judge, tmp_path: Path) -> None:
    encoder = export(pico("bert"), tmp_path / "encoder")
    shutil.copy(encoder / "model.onnx", victim / "model.onnx")
    (victim / "genai_config.json").unlink()
    rehash(victim)
    verdict = judge(victim)
    assert verdict.exit_code == 3, "a file that a decoder needs is missing"
    assert "feature-extraction" in reasons(verdict)["graph.task"]


def test_model_and_reference_of_another_model(
    victim: Path, pico: Callable[..., Path], judge: Judge, tmp_path: Path
) -> None:
    """A whole other model with its own valid seal agrees with itself: only quality against dense can tell."""
    other = export(pico("llama", seed=5), tmp_path / "other")
    verdict = judge(other)
    assert set(reasons(verdict)) == {"quality.top1"}
    assert verdict.exit_code == 4


def test_fresh_process_gives_the_same_exit_code(victim: Path, artifact: Path) -> None:
    edit_tensor(victim, *WEIGHTS["norm shifted"])
    rehash(victim)
    verdict = run_fresh(Job(victim, dense=artifact, timing=False))
    assert verdict.exit_code == 4
    assert set(reasons(verdict)) == set(reasons(verify(Job(victim, dense=artifact, timing=False))))
    assert "parity.batch.max_abs" in str(verdict.error())
