"""The language part of a LLaVA model as two graphs: tokens to embeddings, and embeddings to logits with a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from compressor.errors import ModelError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.folder import open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.verification.graph import check_graph
from compressor.verification.weights import open_weights
from tests.core.toy import batches_of

Pico = Callable[..., Path]
PAIR = {"name": "decoder_model_merged.onnx", "embeddings": "embed_tokens.onnx"}
IDS = np.arange(2, 24).reshape(2, 11)


@pytest.fixture(scope="module")
def pair(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both graphs, read-only."""
    folder = tmp_path_factory.mktemp("pair")
    result = export_onnx(open_model(pico("llava"), part="language"), folder, OnnxOptions(graph="portable", **PAIR))
    assert result.inputs[:3] == ["inputs_embeds", "attention_mask", "position_ids"]
    assert not (folder / "genai_config.json").exists(), "onnxruntime-genai takes tokens"
    return folder


def test_logits_and_greedy_tokens_are_those_of_the_whole_model(pico: Pico, pair: Path) -> None:
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(pico("llava")).eval()
    with torch.no_grad():
        wanted = whole(torch.from_numpy(IDS)).logits.numpy()
        tokens = whole.generate(torch.from_numpy(IDS), max_new_tokens=6, do_sample=False, eos_token_id=None)
    runner = OnnxRunner(pair)
    np.testing.assert_allclose(runner.forward({"input_ids": IDS}), wanted, atol=1e-5)
    first, past = runner.extend({"input_ids": IDS[:, :6]})
    rest, _ = runner.extend({"input_ids": IDS[:, 6:], "attention_mask": np.ones_like(IDS)}, past)
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), wanted, atol=1e-5)
    np.testing.assert_array_equal(runner.generate(IDS, 6), tokens[:, IDS.shape[1] :].numpy())


def test_plain_sessions_run_both_graphs(pair: Path) -> None:
    embedding, decoder = (onnxruntime.InferenceSession(str(pair / name)) for name in reversed(PAIR.values()))
    (embeds,) = embedding.run(["inputs_embeds"], {"input_ids": IDS})
    assert embeds.shape == (2, 11, 40) and "input_ids" not in {value.name for value in decoder.get_inputs()}


def test_what_is_checked_is_both_graphs_as_one(pair: Path) -> None:
    weights = open_weights(pair)
    assert weights.apart and "model.embed_tokens.weight" in weights.table()
    assert all(check.passed for check in check_graph(weights))
    joined = OnnxRunner(pair, graph=weights.model.SerializeToString())
    np.testing.assert_array_equal(joined.forward({"input_ids": IDS}), OnnxRunner(pair).forward({"input_ids": IDS}))


def test_a_missing_or_foreign_embedding_is_said(pair: Path, tmp_path: Path) -> None:
    for file in pair.iterdir():
        if file.suffix != ".onnx" or file.name == PAIR["name"]:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"embed_tokens\.onnx is not beside it"):
        OnnxRunner(tmp_path)
    graph = onnx.load(pair / PAIR["embeddings"])
    graph.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 48
    onnx.save(graph, tmp_path / PAIR["embeddings"])
    with pytest.raises(ModelError, match=r"inputs_embeds is given as .*48\] and taken as .*40\]"):
        open_weights(tmp_path)


@pytest.mark.parametrize(("tied", "options"), [(True, {}), (False, {"head": "none"})])
def test_a_table_of_bytes_goes_with_its_scales(pico: Pico, tmp_path: Path, tied: bool, options: dict[str, str]) -> None:
    source = open_model(pico("llama", tie_word_embeddings=tied))
    method = methods()["int8-dynamic"]
    setting = Setting(work=tmp_path / "work", fingerprint="apart", cache_bytes=1 << 30)
    model, _ = apply_pass(method(method.Options(**options)), source, batches_of(source), setting)
    folders = [tmp_path / name for name in ("pair", "one")]
    for folder, names in zip(folders, (PAIR, {}), strict=True):
        folder.mkdir()
        export_onnx(model, folder, OnnxOptions(**names))
    pair, one = (OnnxRunner(folder) for folder in folders)
    np.testing.assert_allclose(pair.forward({"input_ids": IDS}), one.forward({"input_ids": IDS}), atol=1e-6)
    assert open_weights(folders[0]).table() == open_weights(folders[1]).table()
