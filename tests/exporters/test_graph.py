"""The graph itself: operators, weights, names, checker, and the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from compressor import __version__
from compressor.errors import ModelError, UsageError
from tests.exporters.conftest import Exported

EXPORT = """
import sys
from pathlib import Path
from compressor.exporters.onnx import export_onnx
from compressor.model.folder import open_model
export_onnx(open_model(sys.argv[1]), Path(sys.argv[2]))
"""


def operators(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)


def check(folder: Path) -> None:
    """Run onnx's checker; it knows SimplifiedLayerNormalization only outside of its own domain."""
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    if all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.checker.check_model(model)


def test_decoder_operators(exported: Exported) -> None:
    """Two blocks: one packed product and four others each, and the head; every norm in one operator."""
    _, out = exported("llama", head_dim=16, tie_word_embeddings=False)
    found = operators(out)
    assert found["MatMul"] == 2 * 5 + 1
    assert found["GroupQueryAttention"] == 2
    assert found["SimplifiedLayerNormalization"] == 1
    assert found["SkipSimplifiedLayerNormalization"] == 4
    assert not {"Reshape", "Transpose", "Constant", "Pow", "Gemm"} & set(found)


def test_projections_with_bias_are_packed(exported: Exported) -> None:
    for family, overrides in (("qwen2", {"hidden_size": 96}), ("opt", {"num_attention_heads": 3})):
        _, out = exported(family, **overrides)
        graph = onnx.load(out / "model.onnx").graph
        attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
        assert attention and all(list(node.input[1:3]) == ["", ""] for node in attention)
        packed = [w.name for w in graph.initializer if "qkv_proj" in w.name]
        assert len(packed) == 4 and sum(name.endswith(".bias") for name in packed) == 2


@pytest.mark.parametrize(
    ("family", "graph", "opset"),
    [
        ("llama", "auto", 21),
        ("llama", "portable", 20),
        pytest.param("opt", "portable", 20, marks=pytest.mark.exhaustive),
        ("bert", "auto", 20),
        ("vit", "auto", 20),
    ],
)
def test_checker_and_versions(exported: Exported, family: str, graph: str, opset: int) -> None:
    _, out = exported(family, graph)
    check(out)
    model = onnx.load(out / "model.onnx")
    assert model.ir_version == 10
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset


def test_a_tied_embedding_is_stored_once(exported: Exported) -> None:
    _, out = exported("llama")
    sizes = Counter(tuple(w.dims) for w in onnx.load(out / "model.onnx").graph.initializer)
    assert sizes[(320, 48)] == 1 and sizes[(48, 320)] == 0


def test_weights_keep_their_names(exported: Exported) -> None:
    _, out = exported("llama", head_dim=16, tie_word_embeddings=False)
    graph = onnx.load(out / "model.onnx").graph
    weights = {w.name: tuple(w.dims) for w in graph.initializer}
    assert weights["model.layers.1.mlp.down_proj.weight"] == (100, 48)
    assert weights["model.layers.0.self_attn.qkv_proj.weight"] == (48, 6 * 16 + 2 * 2 * 16)
    assert "/model/layers/1/mlp/down_proj/MatMul" in {node.name for node in graph.node}


def test_stamp_and_nothing_else_is_recorded(exported: Exported) -> None:
    source, out = exported("llama")
    model = onnx.load(out / "model.onnx")
    stamps = {entry.key: entry.value for entry in model.metadata_props}
    assert stamps["compressor.version"] == __version__ and stamps["compressor.task"] == "text-generation"
    assert all(key.startswith("compressor.") for key in stamps)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    raw = (out / "model.onnx").read_bytes()
    for trace in (b"pkg.torch", b"/site-packages", os.getcwd().encode(), str(source).encode()):
        assert trace not in raw


def test_same_bytes_in_other_processes_and_folders(exported: Exported, repository: Path, tmp_path: Path) -> None:
    source, first = exported("llama")
    other, out = tmp_path / "elsewhere", tmp_path / "out"
    other.mkdir()
    out.mkdir()
    for file in source.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", EXPORT, str(other), str(out)], check=True, env=environment, cwd=other)
    for file in sorted(first.iterdir()):
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256((out / file.name).read_bytes()).digest()


@pytest.mark.usefixtures("traced_anew")
def test_the_model_is_left_as_it_was(exported: Exported, tmp_path: Path) -> None:
    import torch
    from transformers.models.llama import modeling_llama

    from compressor.exporters.onnx import export_module
    from compressor.model.folder import load

    source, out = exported("llama")
    model = load(source)
    ids = torch.arange(7)[None]
    rotate = modeling_llama.apply_rotary_pos_emb
    with torch.no_grad():
        before = model(ids).logits
        names = set(dict(model.named_buffers()))
        export_module(model, tmp_path, task="text-generation")
        after = model(ids).logits
    assert torch.equal(before, after)
    assert modeling_llama.apply_rotary_pos_emb is rotate and set(dict(model.named_buffers())) == names
    assert model.config._attn_implementation == "sdpa"
    assert (tmp_path / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_companions_are_copied(exported: Exported) -> None:
    for family, names in (
        ("llama", {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}),
        ("vit", {"config.json", "preprocessor_config.json"}),
    ):
        source, out = exported(family)
        for name in names:
            assert (out / name).read_bytes() == (source / name).read_bytes()


def test_large_weights_lie_beside_the_graph(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    from compressor.exporters.onnx import export_onnx, saving
    from compressor.model.folder import open_model

    source, _ = exported("bert")
    monkeypatch.setattr(saving, "INLINE_LIMIT", 1000)
    result = export_onnx(open_model(source), tmp_path)
    assert tmp_path / "model.onnx.data" in result.files
    assert (tmp_path / "model.onnx").stat().st_size < (tmp_path / "model.onnx.data").stat().st_size
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])


def test_an_impossible_opset_is_a_usage_error(exported: Exported, tmp_path: Path) -> None:
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.model.folder import open_model

    source, _ = exported("llama")
    with pytest.raises(UsageError, match="export.opset: 7 is not covered; allowed: auto, or 18 to 23"):
        export_onnx(open_model(source), tmp_path, OnnxOptions(opset=7))


def test_attention_that_cannot_be_expressed_is_an_error() -> None:
    import torch

    from compressor.exporters.onnx.attention import TracedAttention

    heads = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ModelError, match="s_aux"):
        TracedAttention("gqa")(torch.nn.Identity(), heads, heads, heads, None, s_aux=torch.zeros(2))


@pytest.mark.parametrize("opset", [18, pytest.param(23, marks=pytest.mark.exhaustive)])
def test_other_opsets(exported: Exported, tmp_path: Path, opset: int) -> None:
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.model.folder import open_model
    from tests.exporters.session import Decoder, stock
    from tests.exporters.test_decoder import check_parity

    source, _ = exported("llama")
    export_onnx(open_model(source), tmp_path, OnnxOptions(opset=opset))
    versions = {entry.domain: entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import}
    assert versions[""] == opset
    check_parity(stock(source), Decoder(tmp_path))


def test_a_rotation_without_a_table_is_an_error(pico: Callable[..., Path], tmp_path: Path) -> None:
    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ModelError, match="rope_type 'dynamic'"):
        export_onnx(open_model(pico("llama", num_hidden_layers=1, rope_parameters=rope)), tmp_path)
