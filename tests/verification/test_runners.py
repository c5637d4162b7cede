"""Both runtimes behind one face give the same numbers, with padding, caches and greedy decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import ModelError, UsageError
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.opening import open_runner
from compressor.measure.runner import complete, task_of
from compressor.measure.torch_runner import TorchRunner


def ids(batch: int, length: int, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 320, (batch, length), dtype=np.int64)


def test_open_runner_takes_the_graph_where_there_is_one(artifact: Path, pico: Callable[..., Path]) -> None:
    assert isinstance(open_runner(artifact), OnnxRunner)
    assert isinstance(open_runner(pico("llama")), TorchRunner)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_torch_cache_equals_no_cache(family: str, pico: Callable[..., Path]) -> None:
    runner = TorchRunner(pico(family))
    assert runner.task == "text-generation"
    tokens = ids(2, 12)
    whole = runner.forward({"input_ids": tokens})
    _, past = runner.extend({"input_ids": tokens[:, :8]})
    part, past = runner.extend({"input_ids": tokens[:, 8:11]}, past)
    last, _ = runner.extend({"input_ids": tokens[:, 11:]}, past)
    assert np.concatenate([part, last], axis=1) == pytest.approx(whole[:, 8:], abs=2e-4)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_torch_padding_changes_nothing(family: str, left: bool, pico: Callable[..., Path]) -> None:
    runner = TorchRunner(pico(family))
    tokens, padding = ids(1, 9), np.zeros((1, 3), np.int64)
    real, none = np.ones_like(tokens), np.zeros_like(padding)
    rows = ([padding, tokens], [none, real]) if left else ([tokens, padding], [real, none])
    padded, mask = (np.concatenate(parts, axis=1) for parts in rows)
    out = runner.forward({"input_ids": padded, "attention_mask": mask})
    kept = out[:, 3:] if left else out[:, :9]
    assert kept == pytest.approx(runner.forward({"input_ids": tokens}), abs=2e-4)


def test_greedy_continuations_are_equal(artifact: Path, pico: Callable[..., Path]) -> None:
    prompt = ids(2, 7)
    made = OnnxRunner(artifact).generate(prompt, 20)
    assert made.shape == (2, 20)
    assert np.array_equal(made, TorchRunner(pico("llama")).generate(prompt, 20))


def test_greedy_is_what_transformers_generates(pico: Callable[..., Path]) -> None:
    import torch

    runner = TorchRunner(pico("llama"))
    prompt = ids(1, 7)
    wanted = runner._model.generate(
        torch.from_numpy(prompt), attention_mask=torch.ones(1, 7), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert np.array_equal(runner.generate(prompt, 12), wanted[:, 7:].numpy())


def test_positions_count_unmasked_tokens() -> None:
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    given = complete({"input_ids": ids(2, 2), "attention_mask": mask}, {"position_ids"}, past=3)
    assert given["position_ids"].tolist() == [[1, 2], [3, 4]]


def test_encoders_get_the_inputs_that_they_need(pico: Callable[..., Path]) -> None:
    runner = TorchRunner(pico("bert"))
    tokens = ids(2, 6)
    full = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    assert runner.forward({"input_ids": tokens}) == pytest.approx(runner.forward(full))
    with pytest.raises(UsageError, match="no key-value cache"):
        runner.extend({"input_ids": tokens})


def test_images_give_class_logits(pico: Callable[..., Path]) -> None:
    runner = TorchRunner(pico("vit"))
    assert runner.task == "image-classification"
    assert runner.forward({"pixel_values": np.zeros((3, 3, 32, 32), np.float32)}).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("ViTForImageClassification", "image-classification"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertForMaskedLM", "feature-extraction"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_tasks(name: str, task: str) -> None:
    assert task_of({"architectures": [name]}) == task


def test_unloadable_folders(tmp_path: Path, pico: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="no model.onnx"):
        OnnxRunner(tmp_path)
    with pytest.raises(ModelError, match=r"no config\.json"):
        TorchRunner(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match="cannot be read"):
        TorchRunner(tmp_path)
    (tmp_path / "config.json").write_bytes((pico("llama") / "config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot load"):
        TorchRunner(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        OnnxRunner(tmp_path)
