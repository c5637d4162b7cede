"""Embeddings of sentences: against sums written out token by token, and modules against torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from compressor.data.reading import DataRequest, load_data
from compressor.measure.embedding import open_embedder, pool, similarity
from compressor.storage.sentence import POOLING_MODES
from tests.pico import write_tokenizer

RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((3, 5, 4))
MASKS = {
    "right": np.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], np.float64),
    "left": np.asarray([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], np.float64),
}


def by_hand(tokens: NDArray[np.float64], mode: str, skipped: int) -> NDArray[np.float64]:
    """Pool the real tokens [T, H] of one sentence, of which the first few are left out."""
    kept = list(enumerate(tokens, 1))[skipped:]
    if mode == "cls":
        return kept[0][1]
    if mode == "lasttoken":
        return kept[-1][1]
    if mode == "max":
        return np.asarray([max(token[i] for _, token in kept) for i in range(tokens.shape[1])])
    if mode == "weightedmean":
        return sum(place * token for place, token in kept) / sum(place for place, _ in kept)
    total = np.sum([token for _, token in kept], axis=0)
    return total / (len(kept) if mode == "mean" else math.sqrt(len(kept)))


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling(mode: str, side: str) -> None:
    mask, hidden = MASKS[side], HIDDEN.copy()
    hidden[mask == 0] = np.nan  # padding never counts
    for skipped, rows in ((0, range(3)), (2, range(2))):
        found = pool(hidden, mask, (mode,), skipped)
        for row in rows:
            expected = by_hand(HIDDEN[row, mask[row] > 0], mode, skipped)
            assert found[row] == pytest.approx(expected, abs=1e-12), (mode, side, row)


def test_modes_are_joined_in_their_order() -> None:
    mask = MASKS["right"]
    both = pool(HIDDEN, mask, ("mean", "cls"))
    assert np.array_equal(both, np.concatenate([pool(HIDDEN, mask, ("mean",)), pool(HIDDEN, mask, ("cls",))], axis=1))


class Hidden:
    """A runner whose hidden states are given."""

    def forward(self, inputs: object) -> NDArray[np.float32]:
        return HIDDEN.astype(np.float32)

    def pooled(self, inputs: object) -> None:
        return None


@pytest.mark.parametrize("residual", [None, 4, 3])
@pytest.mark.parametrize("name", ["Tanh", "GELU", "Identity"])
def test_modules_behind_the_pooling(name: str, residual: int | None, tmp_path: Path) -> None:
    out = residual or 3
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Norm": "LayerNorm", "4_N": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    dense = {"in_features": 4, "out_features": out, "use_residual": residual is not None}
    dense["activation_function"] = f"torch.nn.modules.activation.{name}"
    linear, norm = torch.nn.Linear(4, out).double(), torch.nn.LayerNorm(out).double()
    torch.nn.init.normal_(norm.weight)
    extra = torch.randn(3, 4, dtype=torch.float64)
    stored = {"linear.weight": linear.weight, "linear.bias": linear.bias}
    stored |= {"residual.weight": extra} if residual == 3 else {}
    for path, config, tensors in (
        ("1_Pooling", {"pooling_mode": "mean"}, {}),
        ("2_Dense", dense, stored),
        ("3_Norm", {"dimension": out}, {"norm.weight": norm.weight, "norm.bias": norm.bias}),
    ):
        (tmp_path / path).mkdir()
        (tmp_path / path / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(
                {key: tensor.detach().clone() for key, tensor in tensors.items()}, tmp_path / path / "model.safetensors"
            )
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    mask = MASKS["right"]
    found = open_embedder(tmp_path).embed(Hidden(), {"attention_mask": mask})  # type: ignore[arg-type]
    x = torch.from_numpy(pool(HIDDEN.astype(np.float32).astype(np.float64), mask))
    y = getattr(torch.nn, name)()(linear(x))
    if residual is not None:
        y = y + (x @ extra.T if residual == 3 else x)
    expected = torch.nn.functional.normalize(norm(y), dim=1)
    assert found == pytest.approx(expected.detach().numpy(), abs=1e-12)


def test_similarities() -> None:
    a, b = RNG.standard_normal((2, 4, 3))
    assert similarity("dot", a, b) == pytest.approx([np.dot(*rows) for rows in zip(a, b, strict=True)])
    assert similarity("euclidean", a, b) == pytest.approx(-np.sqrt(((a - b) ** 2).sum(axis=1)))
    assert similarity("manhattan", a, b) == pytest.approx(-np.abs(a - b).sum(axis=1))
    assert similarity("cosine", 3 * a, b) == pytest.approx(similarity("cosine", a, b))
    assert np.isnan(similarity("cosine", np.zeros((1, 3)), b[:1])).all()


def test_sentences_are_tokenised_as_the_encoder_states(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "wordpiece", 64)
    config = {"model_type": "bert", "vocab_size": 320, "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": False}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    prompt = {"prompts": {"q": "the miller"}, "default_prompt_name": "q"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompt))
    (tmp_path / "texts.txt").write_text(" sold seven apples by the harbour and forgot the last candle\n")
    request = DataRequest(str(tmp_path / "texts.txt"), (), None, 64, 0, "evaluation")
    data = load_data(request, "feature-extraction", tmp_path)
    (batch,) = data.batches  # type: ignore[union-attr]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        batch["input_ids"][0].tolist()
        == tokenizer("the millersold seven apples", truncation=True, max_length=7)["input_ids"]
    )
    assert open_embedder(tmp_path).prompt_tokens == len(tokenizer("the miller")["input_ids"]) - 1
