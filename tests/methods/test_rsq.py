"""RSQ: the rotation is exact, the importance is what attention pays, the refusals are clear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.model.folder import ModelFolder, open_model
from compressor.passes.base import Target
from compressor.passes.numerics.rotation import hadamard, random_rotation
from compressor.passes.quantize._weights.concentration import concentration, scaled
from compressor.passes.quantize.rsq import Rsq
from compressor.passes.quantize.rtn import Rtn
from compressor.walk import Walk
from tests.core.toy import toy_batches
from tests.methods.quantized import check_on_grids, outputs, padded, run

Make = Callable[..., Path]
ROTATABLE = ("llama", "mistral", "qwen2", "qwen3", "opt", "vit", "deit", "dinov2")


def untied(pico: Make, family: str) -> ModelFolder:
    own = {} if family in ("mistral", "qwen2", "vit", "deit") else {"tie_word_embeddings": False}
    return open_model(pico(family, **own))


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 48, 60, 256, 576, 768, 896])
def test_hadamard_matrices(order: int) -> None:
    found = hadamard(order)
    assert found is not None and found.abs().eq(1).all() and found[:, 0].eq(1).all()
    assert torch.equal(found.T @ found, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 28, 36, 50, 100])
def test_orders_without_a_hadamard_matrix_get_a_random_rotation(order: int) -> None:
    """36 and 28 have Hadamard matrices, though not of Paley's first kind."""
    assert hadamard(order) is None
    for centre in (True, False):
        matrix = random_rotation(order, 3, centre=centre).matrix
        whole = matrix + 1 / order if centre else matrix
        torch.testing.assert_close(whole.T @ whole, torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("width", [48, 50])
def test_a_centring_rotation_takes_the_mean_off_and_keeps_all_else(width: int) -> None:
    site = random_rotation(width, 1, centre=True)
    rows = torch.randn(10, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    stream = site.stream(rows)
    torch.testing.assert_close(stream.mean(1), torch.zeros(10, dtype=torch.float64))
    torch.testing.assert_close(stream.square().sum(1), (rows - rows.mean(1, keepdim=True)).square().sum(1))
    assert not torch.equal(site.matrix, random_rotation(width, 2, centre=True).matrix)


@pytest.mark.parametrize("family", ROTATABLE)
def test_a_rotated_model_computes_what_it_did(family: str, pico: Make, tmp_path: Path) -> None:
    """Nothing quantized: the logits are the dense ones, though every matrix on the stream is another."""
    model = untied(pico, family)
    found, _ = run(Rsq, model, tmp_path, rotate=True, exclude=["*"])
    assert not found.grids and found.parameters == model.parameters
    torch.testing.assert_close(outputs(found), outputs(model), atol=1e-4, rtol=1e-4)
    old, new = model.load().state_dict(), found.load().state_dict()
    paths = (model.family.attention.output, model.family.ffn.writer, *model.family.attention.readers)
    for name in (f"{path}.weight" for path in paths):
        full = next(key for key in old if key.endswith(f".1.{name}"))
        assert float((old[full] - new[full]).norm() / old[full].norm()) > 0.5


def test_rotation_spreads_a_loud_channel(pico: Make, tmp_path: Path) -> None:
    """Weights of one channel 30 times larger spoil the groups that they are in; rotated, 4 bits lose less."""
    model = untied(pico, "mistral")
    module: Any = model.load()
    factor = torch.ones(48)
    factor[5] = 30.0
    for layer in module.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data /= factor
        for reader in (
            layer.self_attn.q_proj,
            layer.self_attn.k_proj,
            layer.self_attn.v_proj,
            layer.mlp.gate_proj,
            layer.mlp.up_proj,
        ):
            reader.weight.data *= factor
    module.save_pretrained(tmp_path / "loud")
    loud = open_model(tmp_path / "loud")
    dense = outputs(model)
    torch.testing.assert_close(outputs(loud), dense, atol=1e-4, rtol=1e-4)
    plain = {"importance": "none", "correct": False, "refine": 0}
    errors = [
        float((outputs(run(Rsq, loud, tmp_path / str(rotate), rotate=rotate, **plain)[0]) - dense).square().mean())
        for rotate in (True, False)
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_models_that_allow_no_rotation(family: str, pico: Make, tmp_path: Path) -> None:
    """A tied head and post-norms: true is refused, auto leaves the stream alone."""
    model = open_model(pico(family))
    with pytest.raises(ModelError, match=f"rotate: true .* {family} .*(tied|pre-norms)") as caught:
        Rsq(Rsq.Options(rotate=True)).plan(model, Target())
    assert "auto" in str(caught.value.hint)
    found, _ = run(Rsq, model, tmp_path)
    old, new = model.load().state_dict(), found.load().state_dict()
    embedding = next(name for name in old if "embed" in name and name.endswith("weight"))
    assert torch.equal(old[embedding], new[embedding]) and found.blueprint.tied == model.blueprint.tied
    check_on_grids(found)


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "vit"])
def test_concentration_is_the_column_sum_of_stock_attention(family: str, pico: Make, tmp_path: Path) -> None:
    """Against the probabilities that transformers' eager attention reports."""
    model = open_model(pico(family))
    batches = padded() if model.task == "text-generation" else toy_batches(model.task)
    found: list[torch.Tensor] = []
    for view in Walk(model, batches, work=tmp_path, cache_bytes=1 << 26).survey():
        found.append(concentration(view, view.dense_in(0), 0))
    inputs = {key: torch.as_tensor(value) for key, value in next(iter(batches)).items()}
    module: Any = model.load()
    module.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = module(**inputs, output_attentions=True).attentions
    mask = inputs.get("attention_mask", torch.ones(attentions[0].shape[0], attentions[0].shape[2]))
    for sums, shares in zip(found, attentions, strict=True):
        wanted = (shares.mean(1) * mask[:, :, None]).sum(1)
        torch.testing.assert_close(sums * mask, wanted * mask, atol=1e-4, rtol=1e-4)


def test_concentration_is_scaled_within_each_sample() -> None:
    sums = torch.tensor([[9.0, 1.0, 5.0, 0.0], [2.0, 2.0, 2.0, 7.0]])
    real = torch.tensor([[True, True, True, False], [True, True, True, False]])
    factors = scaled(sums, 0.2, real)
    np.testing.assert_allclose(factors[:, :3].numpy(), [[1.0, 0.2, 0.6], [0.2, 0.2, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(scaled(sums[:1], 0.2, None).numpy(), [[1.0, 0.2 + 0.8 / 9, 0.2 + 4 / 9, 0.2]], rtol=1e-6)


@pytest.mark.parametrize("family", ["mistral", "vit"])
def test_weights_lie_on_their_grids_and_lose_less_than_rtn(family: str, pico: Make, tmp_path: Path) -> None:
    model = open_model(pico(family))
    found, _ = run(Rsq, model, tmp_path / "rsq")
    plain, _ = run(Rtn, model, tmp_path / "rtn")
    assert check_on_grids(found).keys() == plain.grids.keys()
    dense = outputs(model)
    errors = [float((outputs(m) - dense).square().mean()) for m in (found, plain)]
    assert errors[0] < errors[1]


def test_a_killed_run_resumes_to_the_same_bytes(pico: Make, tmp_path: Path) -> None:
    model = open_model(pico("mistral"))
    run(Rsq, model, tmp_path)
    whole = {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")}
    state = json.loads((tmp_path / "state.json").read_text())
    state["done"] = {key: note for key, note in state["done"].items() if key in ("findings", "block-0000")}
    (tmp_path / "state.json").write_text(json.dumps(state))
    run(Rsq, model, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")} == whole
