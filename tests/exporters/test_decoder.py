"""Decoder graphs against stock transformers: shapes that differ from the trace, padding, decoding with the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exporters.conftest import Exported
from tests.exporters.session import Decoder, stock, torch_logits

# Cases: head sizes for which the kernel rotates (16), does not (8), or cannot work at all (12).
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("llama", {}, False),
    ("llama", {"head_dim": 16, "tie_word_embeddings": False}, False),
    ("llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True, "dtype": "bfloat16"}, False),
    ("mistral", {"sliding_window": 6}, False),
    ("qwen2", {"hidden_size": 96}, False),
    ("qwen3", {}, False),
    ("opt", {"num_attention_heads": 3}, False),
    ("opt", {"num_attention_heads": 3, "do_layer_norm_before": False}, False),
    ("opt", {}, True),
]
IDS = [f"{family}-{'-'.join(map(str, overrides.values()))}" for family, overrides, _ in CASES]
TOLERANCE = 1e-4


@pytest.mark.parametrize(("family", "overrides", "falls_back"), CASES, ids=IDS)
def test_equals_transformers(exported: Exported, family: str, overrides: dict[str, Any], falls_back: bool) -> None:
    check_graph(*exported(family, "auto", **overrides), portable=falls_back)


@pytest.mark.parametrize(
    ("family", "overrides"), [("llama", {}), ("mistral", {"sliding_window": 6}), ("qwen3", {})], ids=lambda v: str(v)
)
def test_portable_equals_transformers(exported: Exported, family: str, overrides: dict[str, Any]) -> None:
    check_graph(*exported(family, "portable", **overrides), portable=True)


def check_graph(source: Path, out: Path, *, portable: bool) -> None:
    model, decoder = stock(source), Decoder(out)
    assert decoder.portable == portable
    check_parity(model, decoder)
    check_right_padding(model, decoder)
    if portable:
        check_left_padding(model, decoder)


def check_parity(model: Any, decoder: Decoder) -> None:
    """Prefill, five single steps, then a chunk after a past, for several batches and lengths."""
    random = np.random.default_rng(0)
    for batch, length in [(1, 1), (1, 9), (2, 3), (3, 17)]:
        chunk = [6] if batch == 1 or decoder.portable else []
        ids = random.integers(2, model.config.vocab_size, (batch, length + 5 + sum(chunk)))
        expected = torch_logits(model, ids)
        done, past = 0, None
        for step in [length, 1, 1, 1, 1, 1, *chunk]:
            end = done + step
            logits, past = decoder.run(ids[:, done:end], np.ones((batch, end), np.int64), past)
            np.testing.assert_allclose(logits, expected[:, done:end], atol=TOLERANCE, rtol=0)
            assert past[0].shape[2] == end
            done = end


def check_right_padding(model: Any, decoder: Decoder) -> None:
    """Rows of 9 and 5 tokens in a batch: both are right, and so is the token that follows each."""
    random = np.random.default_rng(1)
    ids = random.integers(2, model.config.vocab_size, (2, 10))
    mask = np.ones((2, 9), np.int64)
    mask[1, 5:] = 0
    logits, past = decoder.run(ids[:, :9], mask)
    short = ids[1:, [0, 1, 2, 3, 4, 9]]
    np.testing.assert_allclose(logits[0], torch_logits(model, ids[:1, :9])[0], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(logits[1, :5], torch_logits(model, short)[0, :5], atol=TOLERANCE, rtol=0)
    logits, _ = decoder.run(ids[:, 9:], np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1), past)
    np.testing.assert_allclose(logits[0, 0], torch_logits(model, ids[:1])[0, -1], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(logits[1, 0], torch_logits(model, short)[0, -1], atol=TOLERANCE, rtol=0)


def check_left_padding(model: Any, decoder: Decoder) -> None:
    random = np.random.default_rng(2)
    ids = random.integers(2, model.config.vocab_size, (2, 12))
    mask = np.ones((2, 9), np.int64)
    mask[1, :4] = 0
    logits, past = decoder.run(ids[:, :9], mask)
    np.testing.assert_allclose(logits[1, 4:], torch_logits(model, ids[1:, 4:9])[0], atol=TOLERANCE, rtol=0)
    logits, _ = decoder.run(ids[:, 9:], np.concatenate([mask, np.ones((2, 3), np.int64)], axis=1), past)
    np.testing.assert_allclose(logits[1], torch_logits(model, ids[1:, 4:])[0, 5:], atol=TOLERANCE, rtol=0)


def test_shapes_that_differ_from_block_to_block(uneven: tuple[Path, Path]) -> None:
    from compressor.model.folder import load

    source, out = uneven
    decoder = Decoder(out)
    assert [cache.shape[1] for cache in decoder.cache[::2]] == [2, 1, 3]
    check_parity(load(source), decoder)


def test_float16(exported: Exported) -> None:
    source, out = exported("llama", "portable", "float16", head_dim=16)
    decoder = Decoder(out)
    ids = np.random.default_rng(0).integers(2, 300, (2, 11))
    logits, past = decoder.run(ids, np.ones_like(ids))
    expected = torch_logits(stock(source), ids)
    assert logits.dtype == np.float32 and past[0].dtype == np.float16
    assert np.abs(logits - expected).max() <= 5e-3 * np.abs(expected).max()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-wt2", pytest.param("stories260K-llama", marks=pytest.mark.exhaustive)])
def test_real_models(data_root: Path, tmp_path: Path, name: str) -> None:
    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    source = data_root / "models" / name
    export_onnx(open_model(source), tmp_path)
    check_parity(stock(source), Decoder(tmp_path))
