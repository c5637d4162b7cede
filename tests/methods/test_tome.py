"""ToMe: the selection against the paper's formula; a change of computation that reaches every part of the program."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
from compressor.model.cost import count_flops
from compressor.model.folder import ModelFolder, open_model
from compressor.model.reduced import ReducedBlock
from compressor.model.token_merge import merge
from compressor.model.token_select import bipartite
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from tests.core.toy import toy_batches

Pico = Callable[..., Path]
IMAGE_FAMILIES = ("vit", "deit", "dinov2")


def reduced(source: ModelFolder, work: Path, r: int = 3, **options: bool) -> ModelFolder:
    tome = methods()["tome"]
    model, _ = apply_pass(tome(tome.Options(r=r, **options)), source, Batches(tuple, 0), Setting(work, "t", 1 << 28))
    return model


def pixels(model: ModelFolder, count: int = 2, seed: int = 0) -> torch.Tensor:
    size = model.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def logits(model: ModelFolder, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model.load()(pixel_values=images).logits)


def papers_merge(
    keys: np.ndarray, x: np.ndarray, sizes: np.ndarray, r: int, protect: int
) -> tuple[np.ndarray, np.ndarray, list[set[int]]]:
    """ToMe, arXiv 2210.09461, section 3 and appendix D, for one sample in float64, as sets of tokens."""
    tokens = len(x)
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    edges = []
    for a in range(0, tokens, 2):
        if a < protect:
            continue
        partners = [b for b in range(1, tokens, 2) if b >= protect]
        best = max(partners, key=lambda b: unit[a] @ unit[b])
        edges.append((unit[a] @ unit[best], a, best))
    edges.sort(reverse=True)
    groups = {token: {token} for token in range(tokens)}
    for _, a, b in edges[:r]:
        groups[b] |= groups.pop(a)
    ordered = [groups[token] for token in sorted(groups)]
    new_sizes = np.array([sum(sizes[t] for t in group) for group in ordered])
    merged = np.array([sum(sizes[t] * x[t] for t in group) for group in ordered]) / new_sizes[:, None]
    return merged, new_sizes, ordered


@pytest.mark.parametrize("protect", [1, 2])
@pytest.mark.parametrize(("tokens", "r"), [(17, 4), (18, 7), (50, 12)])
def test_the_papers_formula(tokens: int, r: int, protect: int) -> None:
    rng = np.random.default_rng(tokens + r)
    keys, x = rng.standard_normal((3, tokens, 8)), rng.standard_normal((3, tokens, 5))
    sizes = rng.integers(1, 4, (3, tokens, 1)).astype(np.float64)
    choice = bipartite(torch.from_numpy(keys), tokens - r, protect)
    got, got_sizes = merge(choice, torch.from_numpy(x), torch.from_numpy(sizes))
    for i in range(3):
        wanted, wanted_sizes, groups = papers_merge(keys[i], x[i], sizes[i, :, 0], r, protect)
        np.testing.assert_allclose(got[i].numpy(), wanted, atol=1e-12)
        np.testing.assert_allclose(got_sizes[i, :, 0].numpy(), wanted_sizes)
        assert [group == {place} for place, group in enumerate(groups[:protect])] == [True] * protect
        for gone, into in zip(choice.gone[i].tolist(), choice.into[i].tolist(), strict=True):
            assert gone in groups[into] and choice.kept[i, into].item() in groups[into]


def test_the_block_computes_what_the_paper_says(pico: Pico, tmp_path: Path) -> None:
    """One image through the model, written out in float64: merges between attention and FFN, log-size attention."""
    model = reduced(open_model(pico("vit")), tmp_path, r=4)
    module, images = model.load().double(), pixels(model, 1).double()
    vit = module.vit
    x = vit.embeddings(images)[0].detach()
    sizes = torch.ones(len(x), dtype=torch.float64)
    for block in vit.layers:
        attention = block.attention
        normed = block.layernorm_before(x)
        heads = attention.num_attention_heads
        q, k, v = (
            part(normed).reshape(len(x), heads, -1).transpose(0, 1)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + sizes.log()
        x = x + attention.o_proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1))
        keys = k.mean(0).detach().numpy()
        merged, new, _ = papers_merge(keys, x.detach().numpy(), sizes.numpy(), 4, 1)
        x, sizes = torch.from_numpy(merged), torch.from_numpy(new)
        x = x + block.mlp(block.layernorm_after(x))
    wanted = module.classifier(vit.layernorm(x)[0])
    with torch.no_grad():
        found = module(pixel_values=images).logits[0]
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    assert sizes.sum() == 17


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_plan_is_what_comes_out_and_config_states_it(pico: Pico, tmp_path: Path, family: str) -> None:
    source = open_model(pico(family))
    tome = methods()["tome"]
    planned = tome(tome.Options(r=3)).plan(source, Target())
    model = reduced(source, tmp_path)
    leading = source.family.leading_tokens
    assert model.blueprint == planned
    assert [reduction.keep for reduction in planned.reductions] == [16 + leading - 3 * i for i in (1, 2, 3)]
    assert all(reduction.protect == leading for reduction in planned.reductions)
    section = json.loads((tmp_path / "config.json").read_text())["compression"]
    assert section["version"] == 2 and [entry["keep"] for entry in section["stacks"][""]["tokens"]]
    assert model.parameters == source.parameters
    assert count_flops(model, 0) < count_flops(source, 0)


def test_more_than_there_is_stops_where_tokens_run_out(pico: Pico, tmp_path: Path) -> None:
    model = reduced(open_model(pico("vit")), tmp_path, r=100)
    assert [reduction.keep for reduction in model.blueprint.reductions] == [9, 5, 3], "half of what is not protected"
    assert torch.isfinite(logits(model, pixels(model))).all()


def test_decoders_and_reduced_models_are_refused_by_name(pico: Pico, tmp_path: Path) -> None:
    tome = methods()["tome"]
    with pytest.raises(ModelError, match="tome: family llama: tokens can be reduced only in image models"):
        tome(tome.Options(r=1)).plan(open_model(pico("llama")), Target())
    with pytest.raises(ModelError, match="reduced already"):
        tome(tome.Options(r=1)).plan(reduced(open_model(pico("vit")), tmp_path), Target())


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_an_image_does_not_depend_on_its_batch(pico: Pico, tmp_path: Path, family: str) -> None:
    model = reduced(open_model(pico(family)), tmp_path)
    images = pixels(model, 4)
    together, alone = logits(model, images), torch.cat([logits(model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("proportional", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_the_graph_computes_it_at_any_batch(pico: Pico, tmp_path: Path, family: str, proportional: bool) -> None:
    model = reduced(open_model(pico(family)), tmp_path / "work", proportional=proportional)
    (tmp_path / "onnx").mkdir()
    export_onnx(model, tmp_path / "onnx", OnnxOptions())
    runner = OnnxRunner(tmp_path / "onnx")
    for count in (1, 2, 5):
        images = pixels(model, count, seed=count)
        np.testing.assert_allclose(
            runner.forward({"pixel_values": images.numpy()}), logits(model, images).numpy(), atol=1e-4
        )
    config = json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert config["model_type"] == family, "a graph computes what it computes: stock tools may read its config"


LOADER = """
import sys, numpy, torch, transformers
folder, trusted = sys.argv[1:]
model = transformers.AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=trusted == "yes" or None)
assert not any(name.startswith("compressor") for name in sys.modules)
images = torch.from_numpy(numpy.load(folder + "/images.npy"))
with torch.no_grad():
    numpy.save(folder + "/logits.npy", model.eval()(pixel_values=images).logits.numpy())
"""


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_a_checkpoint_loads_with_its_modelling_file_and_fails_loudly_without(
    pico: Pico, tmp_path: Path, family: str
) -> None:
    model = reduced(open_model(pico(family)), tmp_path / "work")
    out = tmp_path / "out"
    out.mkdir()
    export_safetensors(model, out)
    images = pixels(model)
    np.save(out / "images.npy", images.numpy())
    command = [sys.executable, "-c", LOADER, str(out)]
    refused = subprocess.run([*command, "no"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert refused.returncode != 0 and "trust_remote_code=True" in refused.stderr
    assert not (out / "logits.npy").exists(), "nothing was computed by stock modules without a word"
    done = subprocess.run([*command, "yes"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(out / "logits.npy"), logits(model, images).numpy(), atol=1e-5)
    reopened = open_model(out)
    assert reopened.blueprint == model.blueprint and reopened.task == "image-classification"
    torch.testing.assert_close(logits(reopened, images), logits(model, images), atol=0, rtol=0)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [f"Compressed{open_model(pico(family)).config.architectures[0]}"]
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForImageClassification"}


@pytest.mark.parametrize("name", ["width", pytest.param("gptq", marks=pytest.mark.exhaustive), "int8-static"])
def test_later_passes_run_on_the_reduced_stream(pico: Pico, tmp_path: Path, name: str) -> None:
    """A pass that comes after sees fewer tokens; what it makes is what loader and graph compute."""
    source = reduced(open_model(pico("vit")), tmp_path / "tome")
    method = methods()[name]
    options = {"width": {"sparsity": 0.3}, "gptq": {"accuracy_level": 0}}.get(name, {})
    setting = Setting(tmp_path / "next", "n", 1 << 28)
    model, changes = apply_pass(method(method.Options(**options)), source, toy_batches(source.task), setting)
    assert model.blueprint.reductions == source.blueprint.reductions and len(changes) == 3
    assert all(np.isfinite(value) for change in changes for value in change.figures.values())
    blocks = model.skeleton().vit.layers
    assert all(isinstance(block, ReducedBlock) for block in blocks)
    (tmp_path / "onnx").mkdir()
    export_onnx(model, tmp_path / "onnx", OnnxOptions())
    images = pixels(model)
    found, wanted = (
        OnnxRunner(tmp_path / "onnx").forward({"pixel_values": images.numpy()}),
        logits(model, images).numpy(),
    )
    if name == "int8-static":
        cosine = (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert cosine.min() > 0.98
    else:
        np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_the_walk_follows_the_dense_streams_choice(pico: Pico, tmp_path: Path) -> None:
    """Rows of both streams stand for the same tokens, and a pass that changes nothing leaves the model's output."""
    from compressor.passes.structure.width import Width, WidthOptions
    from compressor.walk import BlockView, Change

    source = reduced(open_model(pico("vit")), tmp_path / "tome")

    class Noisy(Width):
        """Moves the current stream away from the dense one, and looks at whose choice is followed."""

        choices: list[bool] = []

        def change_block(self, block: BlockView) -> Change:
            for k in range(len(block)):
                call = block.call(k)
                own, _ = block.module.look(block.current_in(k), *call.args, track=call.track, **call.kwargs)
                dense, _ = block.dense.look(block.dense_in(k), *call.args, track=call.track, **call.kwargs)
                assert torch.equal(call.choice.kept, dense.kept)
                self.choices.append(bool(torch.equal(own.kept, dense.kept)))
                middle = block.to_middle(block.module, block.current_in(k), k)
                assert middle.shape[1] == block.module.reduction.keep
            for parameter in block.module.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            return Change(block.layer)

        def plan(self, source: ModelFolder, target: Target) -> object:
            return source.blueprint

    noisy = Noisy(WidthOptions(sparsity=0.5, allocation="uniform"))
    apply_pass(noisy, source, toy_batches(source.task), Setting(tmp_path / "next", "n", 1 << 28))
    assert not all(noisy.choices), "the streams differ enough that their own choices would"


def test_a_killed_run_goes_on_to_the_same_bytes(pico: Pico, tmp_path: Path) -> None:
    source = open_model(pico("vit"))
    whole = reduced(source, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    state = json.loads((tmp_path / "part" / "state.json").read_text())
    state["done"] = {key: note for key, note in state["done"].items() if key in ("block-0000", "block-0001")}
    (tmp_path / "part" / "state.json").write_text(json.dumps(state))
    resumed = reduced(source, tmp_path / "part")
    assert resumed.blueprint == whole.blueprint
    for file in whole.path.glob("*.safetensors"):
        assert (resumed.path / file.name).read_bytes() == file.read_bytes()


def test_a_reduction_that_is_not_known_is_refused(pico: Pico, tmp_path: Path) -> None:
    model = reduced(open_model(pico("vit")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["compression"]["stacks"][""]["tokens"][0]["select"] = "magic"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="select 'magic'; allowed: bipartite"):
        open_model(model.path).skeleton()
