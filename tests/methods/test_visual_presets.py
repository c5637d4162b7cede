"""Presets behind an image encoder: their selections against the papers' formulas, image by image in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compressor.errors import UsageError
from compressor.exporters.modeling_tokens import _reduced
from compressor.exporters.onnx import export_onnx
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.folder import ModelFolder, open_model
from compressor.model.token_margins import margins
from compressor.model.token_reduction import TokenTrack, choose, reduce
from compressor.model.token_scores import Seen
from compressor.passes import methods
from tests.methods.test_tokens import loaded, pixels, planned
from tests.methods.token_papers import Array, best, cosine

Pico = Callable[..., Path]
COLUMNS, BLOCKS = 4, 3


@dataclass
class Image:
    """What the blocks of an encoder have seen of one image: attention [blocks, heads, tokens, tokens] and so on."""

    hidden: Array
    attention: Array
    keys: Array
    values: Array

    def class_attention(self, block: int = -1) -> Array:
        """Of the patches."""
        return np.asarray(self.attention[block, :, 0, 1:].mean(0))


Kept = list[list[int]]
"""For each token that goes on the patches that it is the mean of, in order of their first."""


def alone(patches: list[int]) -> Kept:
    return [[patch] for patch in sorted(patches)]


def divprune(s: Image, left: int) -> Kept:
    x = s.hidden[1:]
    distance = np.array([[1 - cosine(a, b) for b in x] for a in x])
    everything = list(range(len(x)))
    chosen = [max(everything, key=lambda i: min(distance[i, j] for j in everything if j != i))]
    while len(chosen) < left:
        rest = [i for i in everything if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(distance[i, j] for j in chosen)))
    return alone(chosen)


def fopru_rank(s: Image, left: int) -> Kept:
    return alone(best(s.class_attention(), list(range(16)), left))


def fopru_rows(s: Image, left: int) -> Kept:
    sums = [sum(s.class_attention()[row * COLUMNS : (row + 1) * COLUMNS]) for row in range(4)]
    rows = best(np.array(sums), list(range(4)), left // COLUMNS)
    return alone([row * COLUMNS + column for row in rows for column in range(COLUMNS)])


def visionzip(s: Image, left: int) -> Kept:
    contextual = 2
    dominant = best(s.class_attention(), list(range(16)), left - contextual)
    rest = [i for i in range(16) if i not in dominant]
    centres = rest[:: len(rest) // contextual][:contextual]
    keys = s.keys[-1].mean(0)[1:]
    groups = {i: [i] for i in [*dominant, *centres]}
    for i in rest:
        if i not in centres:
            groups[max(centres, key=lambda c: cosine(keys[i], keys[c]))].append(i)
    return [groups[i] for i in sorted(groups)]


def vtc_cls(s: Image, left: int) -> Kept:
    scores = np.mean([s.class_attention(block) for block in range(BLOCKS)], axis=0)
    return alone(best(scores, list(range(16)), left))


def hiprune(s: Image, left: int) -> Kept:
    middle, deep = (s.attention[block].mean((0, 1))[1:] for block in (1, 2))
    (anchor,) = best(middle, list(range(16)), 1)
    row, column = divmod(anchor, COLUMNS)
    around = [(row + down, column + right) for down, right in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))]
    first = [r * COLUMNS + c for r, c in around if 0 <= r < 4 and 0 <= c < COLUMNS]
    return alone([*first, *best(deep, [i for i in range(16) if i not in first], left - len(first))])


def flowcut(s: Image, left: int) -> Kept:
    total: Array | None = None
    for block in range(BLOCKS):
        values = s.values[block].transpose(1, 0, 2).reshape(17, -1)
        products = np.exp(values @ values[0])
        alike = products / products.sum()
        score = (s.attention[block, :, 0].mean(0) + alike) * np.abs(values).sum(1)
        total = score if total is None else 0.5 * total + 0.5 * score
    assert total is not None
    return alone(best(total[1:], list(range(16)), left))


PRESETS: dict[str, tuple[Callable[[Image, int], Kept], str, dict[str, Any]]] = {
    "divprune": (divprune, "divprune", {}),
    "fopru": (fopru_rank, "fopru", {}),
    "fopru rows": (fopru_rows, "fopru", {"select": "rows"}),
    "visionzip": (visionzip, "visionzip", {"anchors": 0.25}),
    "vtc-cls": (vtc_cls, "vtc-cls", {}),
    "hiprune": (hiprune, "hiprune", {"earlier": [2], "anchors": 0.7}),
    "flowcut": (flowcut, "flowcut", {}),
}


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
    return [Image(seen["hidden"][0][i].numpy(), attention[i], k[i], v[i]) for i in range(len(inputs))]


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
    seen = Seen(hidden=hidden, earlier=tuple(Seen(**each) for each in earlier), **last)
    track = TokenTrack.start(hidden)
    wanted = reduce(reduction, choose(reduction, seen, track), hidden, track)[0]
    theirs = {**last, "hidden": hidden, "earlier": earlier}
    found = _reduced(reduction.stated(), theirs, hidden, {"sizes": torch.ones(2, 17, 1)})[0]
    assert found.shape == (2, reduction.keep, 48)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    near = margins(reduction, seen)
    assert near.shape == (2, 17) and (near[:, 0] == torch.inf).all() and (near[:, 1:] >= 0).all()


@pytest.mark.parametrize("name", ["divprune", pytest.param("visionzip", marks=pytest.mark.exhaustive)])
def test_the_graph_selects_the_same(pico: Pico, tmp_path: Path, name: str) -> None:
    source = open_model(pico("llava_vision"))
    _, preset, options = PRESETS[name]
    folder, images = planned(source, preset, {"tokens": 8, **options}), pixels(source, 3)
    with torch.no_grad():
        wanted = loaded(source, folder)(pixel_values=images).last_hidden_state.numpy()
    export_onnx(folder, tmp_path)
    np.testing.assert_allclose(OnnxRunner(tmp_path).forward({"pixel_values": images.numpy()}), wanted, atol=1e-4)


def test_what_does_not_fit_is_refused(pico: Pico) -> None:
    source = open_model(pico("llava_vision"))
    with pytest.raises(UsageError, match=r"hiprune.earlier: \[3\] for block 3"):
        planned(source, "hiprune", {"tokens": 8, "earlier": [3]})
    mechanism = methods()["visual-tokens"].Options
    for options in ({"score": "hidden_state"}, {"select": "neighbours"}, {"earlier": [1]}):
        with pytest.raises(ValidationError, match="goes with"):
            mechanism(tokens=8, **options)
