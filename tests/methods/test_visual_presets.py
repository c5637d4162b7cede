"""Presets behind an image encoder: their selections against the papers' formulas, image by image in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from pydantic import ValidationError

from compressor.errors import UsageError
from compressor.exporters.modeling_ends import _handed_on
from compressor.exporters.onnx import export_onnx
from compressor.exporters.onnx.trace import BATCH, trace
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.blueprint import Reduction
from compressor.model.folder import ModelFolder, open_model
from compressor.model.token_margins import margins
from compressor.model.token_pixels import patch_entropy
from compressor.model.token_reduction import TokenTrack, choose, reduce
from compressor.model.token_regions import budgets, region_labels, shared_out
from compressor.model.token_scores import Seen
from compressor.passes import methods
from tests.methods.test_tokens import loaded, pixels, planned
from tests.methods.visual_papers import BLOCKS, PRESETS, Image, shared

Pico = Callable[..., Path]


def images_of(dense: Any, source: ModelFolder, inputs: torch.Tensor) -> list[Image]:
    """Run the dense encoder and collect what its blocks see, in plain steps."""
    seen: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": [], "hidden": []}
    handles = [dense.select_tokens.register_forward_hook(lambda _, __, out: seen["hidden"].append(out))]
    for block in dense.vision_tower.encoder.layers:
        for name in "qkv":
            part = getattr(block.self_attn, f"{name}_proj")
            handles.append(part.register_forward_hook(lambda _, __, out, name=name: seen[name].append(out)))
    with torch.no_grad():
        dense(pixel_values=inputs)
    for handle in handles:
        handle.remove()
    width = source.shapes.head_dim
    q, k, v = (torch.stack(seen[name], 1).unflatten(-1, (-1, width)).transpose(2, 3).numpy() for name in "qkv")
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(width)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    attention = weights / weights.sum(-1, keepdims=True)
    hidden, images = seen["hidden"][0].numpy(), inputs.numpy()
    return [Image(hidden[i], attention[i], k[i], v[i], images[i]) for i in range(len(inputs))]


@pytest.fixture(scope="module")
def encoder(pico: Pico) -> tuple[ModelFolder, Any, torch.Tensor, list[Image]]:
    source = open_model(pico("llava_vision"))
    dense, inputs = source.load().double(), pixels(source, 3).double()
    return source, dense, inputs, images_of(dense, source, inputs)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_paper_s_tokens_go_on(encoder: tuple[ModelFolder, Any, torch.Tensor, list[Image]], name: str) -> None:
    source, dense, inputs, images = encoder
    step, preset, options = PRESETS[name]
    folder = planned(source, preset, {"tokens": 8, **options})
    with torch.no_grad():
        found = loaded(source, folder).double()(pixel_values=inputs).last_hidden_state
        wanted = torch.stack(
            [
                torch.from_numpy(np.array([image.hidden[1:][group].mean(0) for group in step(image, 8)]))
                for image in images
            ]
        )
        torch.testing.assert_close(found, dense.multi_modal_projector(wanted), atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_modelling_file_selects_the_same(pico: Pico, name: str) -> None:
    _, preset, options = PRESETS[name]
    folder = planned(open_model(pico("llava_vision")), preset, {"tokens": 8, **options})
    (reduction,) = folder.blueprint.reductions
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 17, 48, generator=generator)

    def block() -> dict[str, torch.Tensor]:
        keys, values = (torch.randn(2, 17, 4, 12, generator=generator) for _ in range(2))
        return {"keys": keys, "values": values, "attention": torch.rand(2, 4, 17, 17, generator=generator).softmax(-1)}

    *earlier, last = (block() for _ in range(len(reduction.also) + 1))
    images = torch.randn(2, 3, 32, 32, generator=generator)
    seen = Seen(hidden=hidden, earlier=tuple(Seen(**each) for each in earlier), **last)
    seen = replace(seen, entropy=patch_entropy(images, 16, 4))
    track = TokenTrack.start(hidden)
    wanted = reduce(reduction, choose(reduction, seen, track), hidden, track)[0]
    theirs = {**last, "hidden": hidden, "earlier": earlier, "pixels": images}
    found = _handed_on(reduction.stated(), theirs, hidden)
    assert found.shape == (2, reduction.keep, 48)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    near = margins(reduction, seen)
    assert near.shape == (2, 17) and (near[:, 0] == torch.inf).all() and (near[:, 1:] >= 0).all()


class Chooses(torch.nn.Module):
    """Every preset's selection, of what blocks have seen of the same images."""

    def __init__(self, reductions: list[Reduction]) -> None:
        super().__init__()
        self.reductions = reductions

    def forward(self, hidden: torch.Tensor, keys: torch.Tensor, attention: torch.Tensor, pixels: torch.Tensor) -> Any:
        blocks = [Seen(keys[:, i], 1, keys[:, i] + 1, attention[:, i], hidden=hidden) for i in range(BLOCKS)]
        seen = replace(blocks[-1], entropy=patch_entropy(pixels, 16, 4))
        made = []
        for reduction in self.reductions:
            given = replace(seen, earlier=tuple(blocks[i] for i in reduction.also))
            track = TokenTrack.start(hidden)
            made.append(reduce(reduction, choose(reduction, given, track), hidden, track)[0])
        return tuple(made)


@pytest.mark.parametrize(
    "names",
    [
        ("holov", "recoverable"),
        pytest.param(("todre", "prunesid"), marks=pytest.mark.exhaustive),
        pytest.param(("hired", "globalcom2", "correlation", "flowcut"), marks=pytest.mark.exhaustive),
    ],
)
def test_one_graph_makes_selections_alone_as_in_a_batch(pico: Pico, names: tuple[str, ...]) -> None:
    source = open_model(pico("llava_vision"))
    cases = [PRESETS[name] for name in names]
    folders = [planned(source, preset, {"tokens": 8, **options}) for _, preset, options in cases]
    module = Chooses([folder.blueprint.reductions[0] for folder in folders]).eval()
    generator = torch.Generator().manual_seed(2)
    hidden, keys, attention, images = (
        torch.randn(3, *shape, generator=generator)
        for shape in ((17, 48), (BLOCKS, 17, 4, 12), (BLOCKS, 4, 17, 17), (3, 32, 32))
    )
    inputs = (hidden, keys, attention.softmax(-1), images)
    graph = ir.to_proto(trace(module, inputs, ({0: BATCH},) * 4, 20))
    for tensor in graph.graph.initializer:
        assert np.isfinite(onnx.numpy_helper.to_array(tensor)).all(), "an artifact of it would fail"
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    together, ports = module(*inputs), session.get_inputs()
    for samples in (slice(None), slice(1, 2)):
        found = session.run(None, {port.name: x[samples].numpy() for port, x in zip(ports, inputs, strict=True)})
        for case, ours, theirs in zip(names, found, together, strict=True):
            np.testing.assert_allclose(ours, theirs[samples].numpy(), atol=1e-5, err_msg=case)


@pytest.mark.parametrize("name", ["vflowopt", pytest.param("visionzip", marks=pytest.mark.exhaustive)])
def test_the_graph_selects_the_same(pico: Pico, tmp_path: Path, name: str) -> None:
    source = open_model(pico("llava_vision"))
    _, preset, options = PRESETS[name]
    folder, images = planned(source, preset, {"tokens": 8, **options}), pixels(source, 3)
    with torch.no_grad():
        wanted = loaded(source, folder)(pixel_values=images).last_hidden_state.numpy()
    export_onnx(folder, tmp_path)
    np.testing.assert_allclose(OnnxRunner(tmp_path).forward({"pixel_values": images.numpy()}), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "rooms", "total"),
    [
        ([1, 1, 1, 1], [4, 4, 4, 4], 8),
        ([100, 1, 1, 2], [4, 4, 4, 4], 11),  # more than there is room for, and then again
        ([5, 3, 2, 0.001], [9, 9, 9, 9], 17),
        ([1, 0, 0, 0], [2, 3, 4, 5], 13),  # what has no weight takes up the rest
        ([0.3, 0.3, 0.3, 0.1], [4, 4, 4, 4], 5),  # equal remainders: the first
    ],
)
def test_budgets_sum_up_and_what_is_over_is_handed_on(weights: list[float], rooms: list[int], total: int) -> None:
    given = torch.tensor([weights, weights[::-1]], dtype=torch.float32)
    space = torch.tensor([rooms, rooms[::-1]], dtype=torch.float32)
    found = budgets(shared_out(given, space, total), total)
    assert found.sum(-1).tolist() == [total, total] and (found <= space).all()
    assert found[0].tolist() == shared([max(weight, 1e-6) for weight in weights], rooms, total)


def test_regions_divide_any_grid() -> None:
    labels = region_labels(30, 6, 4).reshape(5, 6)
    assert labels.tolist() == [[0, 0, 0, 1, 1, 1]] * 3 + [[2, 2, 2, 3, 3, 3]] * 2
    assert region_labels(36, 6, 16).bincount().tolist() == [4, 2, 4, 2, 2, 1, 2, 1, 4, 2, 4, 2, 2, 1, 2, 1]


def test_what_does_not_fit_is_refused(pico: Pico) -> None:
    source = open_model(pico("llava_vision"))
    with pytest.raises(UsageError, match=r"hiprune.earlier: \[3\] for block 3"):
        planned(source, "hiprune", {"tokens": 8, "earlier": [3]})
    with pytest.raises(UsageError, match=r"hired.regions: 25 regions of 4 x 4 patches"):
        planned(source, "hired", {"tokens": 8, "regions": 25})
    mechanism = methods()["visual-tokens"].Options
    for options in ({"score": "hidden_state"}, {"select": "neighbours"}, {"earlier": [1]}, {"quota": "density"}):
        with pytest.raises(ValidationError, match="goes with"):
            mechanism(tokens=8, **options)
