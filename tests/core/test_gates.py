"""Gates: a change of computation that config.json states reaches the walk, loader, graph and modelling file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.data.kinds import Batches
from compressor.errors import ModelError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.folder import ModelFolder, open_model
from compressor.model.gated import GatedActivation, GatedLinear
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.walk.calls import first_input, observing
from tests.core.test_loading import inputs_for, stock
from tests.core.toy import Cut, Gate, toy_batches

Pico = Callable[..., Path]
FAMILIES = ("llama", "opt", "bert", "vit")


def gated(source: ModelFolder, work: Path, threshold: float = 0.05) -> ModelFolder:
    model, _ = apply_pass(Gate(threshold), source, Batches(tuple, 0), Setting(work, "g", 1 << 28))
    return model


def output(model: torch.nn.Module, task: str) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(**inputs_for(task))[0])


def silent_share(model: ModelFolder) -> float:
    """Return the share of the gated modules' inputs that count as 0, on held-out inputs."""
    seen: list[torch.Tensor] = []
    module = model.load()
    for part in module.modules():
        if isinstance(part, GatedLinear):
            part.register_forward_pre_hook(lambda part, args: seen.append(part.gated(args[0]) == 0))
        elif isinstance(part, GatedActivation):
            part.register_forward_hook(lambda _, args, out: seen.append(out == 0))
    output(module, model.task)
    return float(torch.cat([part.flatten() for part in seen]).double().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_silent_inputs_are_left_out_everywhere(pico: Pico, tmp_path: Path, family: str) -> None:
    source = open_model(pico(family))
    model = gated(source, tmp_path / "work")
    assert model.blueprint == Gate().plan(source, Target()) and not model.blueprint.computes_as_stock
    assert 0 < silent_share(model) < 1
    wanted = source.load()
    writer = source.family.ffn.writer
    for name, part in wanted.named_modules():
        if name.endswith(writer) and (family != "bert" or ".attention." not in name):
            part.register_forward_pre_hook(lambda _, args: (args[0] * (args[0].abs() > 0.05),))
    here = output(model.load(), source.task)
    assert torch.equal(here, output(wanted, source.task))
    assert not torch.equal(here, output(source.load(), source.task))


@pytest.mark.parametrize(
    "family", ["llama", "bert", *(pytest.param(f, marks=pytest.mark.exhaustive) for f in ("opt", "vit"))]
)
def test_graphs_leave_them_out_too(pico: Pico, tmp_path: Path, family: str) -> None:
    source = open_model(pico(family))
    model = gated(source, tmp_path / "work")
    here = output(model.load(), source.task)
    (tmp_path / "onnx").mkdir()
    export_onnx(model, tmp_path / "onnx", OnnxOptions())
    inputs = {key: value.numpy() for key, value in inputs_for(source.task).items()}
    np.testing.assert_allclose(OnnxRunner(tmp_path / "onnx").forward(inputs), here.numpy(), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_needs_the_modelling_file(pico: Pico, tmp_path: Path, family: str) -> None:
    model = gated(open_model(pico(family)), tmp_path / "work")
    out = tmp_path / "out"
    out.mkdir()
    export_safetensors(model, out)
    with pytest.raises(ValueError, match="trust_remote_code"):
        stock(out, model.task, trust_remote_code=False)
    torch.testing.assert_close(
        output(stock(out, model.task, trust_remote_code=True), model.task), output(model.load(), model.task)
    )


def test_later_passes_keep_gates_and_see_what_they_leave(pico: Pico, tmp_path: Path) -> None:
    model = gated(open_model(pico("llama")), tmp_path / "gate", threshold=0.2)
    cut, _ = apply_pass(Cut(), model, toy_batches(model.task), Setting(tmp_path / "cut", "c", 1 << 28))
    assert cut.blueprint.gates == model.blueprint.gates
    writer = cut.skeleton().model.layers[1].mlp.down_proj
    assert isinstance(writer, GatedLinear) and writer.in_features == 90


def test_passes_are_shown_what_a_gated_matrix_multiplies(pico: Pico, tmp_path: Path) -> None:
    block = gated(open_model(pico("llama")), tmp_path, threshold=0.2).load().model.layers[0]
    writer, inputs = block.mlp.down_proj, torch.linspace(-1, 1, 3 * block.mlp.down_proj.in_features).reshape(3, -1)
    seen, given = (first_input(block, "mlp.down_proj", lambda: writer(inputs), raw=raw) for raw in (False, True))
    assert torch.equal(seen, torch.where(inputs.abs() > 0.2, inputs, 0.0)) and torch.equal(given, inputs)
    with observing(block, ["mlp.down_proj"], lambda _, tensor: 2 * tensor):
        torch.testing.assert_close(writer(inputs), torch.nn.functional.linear(2 * seen, writer.weight))


def test_a_gate_before_what_is_no_linear_module_is_refused(pico: Pico, tmp_path: Path) -> None:
    gated(open_model(pico("llama")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["compression"]["stacks"][""]["gates"] = {"model.layers.0.input_layernorm": {"threshold": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has a gate and is neither"):
        open_model(tmp_path).skeleton()
