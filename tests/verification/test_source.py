"""The source gate: what stock transformers loads, and what it says where our reading is another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import CompressorError, ModelError, ResourceError
from compressor.machine import asking
from compressor.machine.fresh import Ended
from compressor.model.folder import ModelFolder, open_model
from compressor.verification import source
from compressor.verification.source import compare, recorded_check, run_gate, source_check, why_skipped
from compressor.verification.source_probes import probes_for

Pico = Callable[..., Path]
COVERED = ["llama", "mistral", "qwen2", "qwen3", "opt", "bert", "vit", "deit", "dinov2"]


@contextmanager
def edited(folder: Path, **config: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Change config keys and, inside the block, the tensors of a model folder."""
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    tensors = load_file(folder / "model.safetensors")
    yield tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def copied(pico: Pico, tmp_path: Path) -> Callable[..., Path]:
    return lambda family, **options: Path(shutil.copytree(pico(family, **options), tmp_path / "model"))


@pytest.mark.parametrize("family", COVERED)
def test_every_family_is_read_as_stock_reads_it(pico: Pico, family: str) -> None:
    facts = compare(open_model(pico(family)))
    assert facts["class"] == json.loads((pico(family) / "config.json").read_text())["architectures"][0]
    assert facts["difference"] <= 1e-6
    assert source_check(facts).passed and recorded_check(facts, facts).passed


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
        ("opt", {"_remove_final_layer_norm": True}),
        ("bert", {"architecture": "BertForSequenceClassification", "num_labels": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": 8}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
        ("vit", {"num_channels": 1, "qkv_bias": False}),
    ],
)
def test_what_config_changes_is_read_as_stock_reads_it(pico: Pico, family: str, options: dict[str, Any]) -> None:
    assert compare(open_model(pico(family, **options)))["difference"] <= 1e-6


def test_in_a_fresh_process(pico: Pico) -> None:
    facts = run_gate(open_model(pico("llama")))
    assert facts["outputs"] and recorded_check(compare(open_model(pico("llama"))), facts).passed


def test_probes_use_the_whole_vocabulary_and_are_the_same_each_time(pico: Pico) -> None:
    model = open_model(pico("llama"))
    probes = probes_for(model.config, model.family, model.task)
    for one, other in zip(probes, probes_for(model.config, model.family, model.task), strict=True):
        assert all(np.array_equal(array, other.inputs[name]) for name, array in one.inputs.items())
    ids = probes[0].inputs["input_ids"]
    assert ids.min() < 10 and ids.max() >= 310 and len(np.unique(ids)) == ids.size
    assert {probe.inputs["attention_mask"].all() for probe in probes} == {True, False}


def test_a_model_with_few_positions_has_short_probes(pico: Pico) -> None:
    model = open_model(pico("bert", max_position_embeddings=6))
    assert max(probe.inputs["input_ids"].shape[1] for probe in probes_for(model.config, model.family, model.task)) == 6
    assert compare(model)["difference"] <= 1e-6


def test_wrong_norm_order_is_seen(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(pico("opt"))
    right = ModelFolder.skeleton

    def wrong(self: ModelFolder) -> Any:
        module = right(self)
        for block in module.model.decoder.layers:
            block.do_layer_norm_before = False
        return module

    monkeypatch.setattr(ModelFolder, "skeleton", wrong)
    with pytest.raises(
        ModelError, match=r"differently from stock transformers' OPTForCausalLM: logits is off by .*single"
    ):
        compare(model)


def test_a_config_key_that_we_drop_is_named(pico: Pico) -> None:
    model = open_model(pico("llama"))
    config = type(model.config).from_dict({**model.config.to_dict(), "rms_norm_eps": 1e-2})
    with pytest.raises(ModelError, match="config.json is understood differently in rms_norm_eps"):
        compare(replace(model, config=config))


def test_a_tensor_with_other_values_is_named(pico: Pico) -> None:
    model = open_model(pico("llama"))
    one, other = (f"model.layers.{index}.mlp.up_proj.weight" for index in (0, 1))
    model.weights._entries[one] = model.weights.entry(other)
    with pytest.raises(ModelError, match=f"other values for {one}"):
        compare(model)


def test_a_head_that_only_we_tie_is_seen(pico: Pico) -> None:
    model = open_model(pico("qwen2"))
    with pytest.raises(ModelError, match="tie"):
        compare(model.with_blueprint(replace(model.blueprint, tied=True)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_values_are_said_to_be_damaged(copied: Callable[..., Path], value: float) -> None:
    folder = copied("llama")
    with edited(folder) as tensors:
        tensors["model.norm.weight"][3] = value
    with pytest.raises(ModelError, match="model.norm.weight holds NaN or infinite"):
        compare(open_model(folder))


def test_a_model_whose_outputs_are_not_finite(copied: Callable[..., Path]) -> None:
    folder = copied("llama")
    with edited(folder) as tensors:
        tensors["model.norm.weight"].fill_(3e38)
    with pytest.raises(ModelError, match="logits of the stock model is not finite"):
        compare(open_model(folder))


def test_a_refusal_of_stock_is_passed_on(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(*given: Any, **options: Any) -> Any:
        raise ValueError("no such thing\nas this")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="stock transformers cannot load the model: no such thing$"):
        compare(open_model(pico("llama")))


def test_another_model_is_not_the_recorded_one(pico: Pico, copied: Callable[..., Path]) -> None:
    facts, folder = compare(open_model(pico("llama"))), copied("llama")
    with edited(folder) as tensors:
        tensors["model.layers.2.mlp.down_proj.weight"] *= 1.02
    check = recorded_check(compare(open_model(folder)), facts)
    assert not check.passed and "not the one that was compressed" in check.reason


def test_another_processor_may_round_differently(pico: Pico) -> None:
    facts = compare(open_model(pico("llama")))
    moved = {k: {**v, "projections": [x + 1e-5 for x in v["projections"]]} for k, v in facts["values"].items()}
    assert recorded_check(facts, {**facts, "outputs": "another", "values": moved}).passed


@pytest.mark.parametrize("recorded", [None, {}, {"values": 3}, {"values": {}}, {"values": {"single.logits": {}}}])
def test_a_damaged_record_is_a_failed_check(pico: Pico, recorded: Any) -> None:
    assert not recorded_check(
        {"outputs": "x", "values": {"single.logits": {"projections": [1.0], "scale": 1.0}}}, recorded
    ).passed


def test_what_the_program_compressed_is_no_source(pico: Pico) -> None:
    model = open_model(pico("llama"))
    assert why_skipped(model) is None
    model.config.compression = {"version": 2}
    try:
        assert "compressed by this program" in str(why_skipped(model))
    finally:
        del model.config.compression


def test_a_model_that_cannot_be_run(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def fail(*given: Any, **options: Any) -> Any:
        raise IndexError("index out of range in self")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)
    with pytest.raises(
        ModelError, match=r"as stock transformers loads it cannot be run \(probe single\): IndexError: index"
    ):
        compare(open_model(pico("llama")))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(12, "Cannot allocate memory")],
)
def test_too_little_memory(pico: Pico, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    import transformers

    def fail(*given: Any, **options: Any) -> Any:
        raise error

    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text(
        json.dumps({"path": str(pico("llama")), "task": "auto", "part": None, "trust_remote_code": False})
    )
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", fail)
    code = asking.answer(request, answer, source._carry_out, source.known)
    assert code == ResourceError.exit_code
    assert json.loads(answer.read_text())["error"]["exit_code"] == ResourceError.exit_code


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [(-9, ResourceError, "want of memory"), (-11, ModelError, "signal 11"), (1, CompressorError, "ValueError: x")],
)
def test_a_process_that_ends_without_an_answer(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[CompressorError], text: str
) -> None:
    ended = Ended(code, "", "\nValueError: x\n")
    monkeypatch.setattr(asking, "run_preloaded", lambda *given, **options: ended)
    with pytest.raises(kind, match=text):
        run_gate(open_model(pico("llama")))
