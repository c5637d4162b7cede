"""`tokens.overlap`: the tokens that a graph keeps are those that PyTorch keeps, but for near ties."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.data.kinds import Batches
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.blueprint import Reduction
from compressor.model.folder import ModelFolder, open_model
from compressor.model.token_margins import margins
from compressor.model.token_places import Places, kept_masks
from compressor.model.token_reduction import TokenTrack, choose
from compressor.model.token_scores import Seen
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.verification import REFERENCE, write_reference
from compressor.verification.kept import kept_tokens
from compressor.verification.overlap import check_overlap, compared, keeps_of
from compressor.verification.reference_file import recorded_tensors
from compressor.verification.verdict import Check
from compressor.verification.weights import open_weights


@pytest.fixture(scope="module")
def reduced(pico: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model that fuses tokens in its last three blocks."""
    evit = methods()["evit"]
    setting = Setting(tmp_path_factory.mktemp("evit") / "work", "t", 1 << 28)
    method = evit(evit.Options(keep=0.7, layers=(2, 3, 4)))
    return apply_pass(method, open_model(pico("vit", num_hidden_layers=4)), Batches(tuple, 0), setting)[0]


@pytest.fixture(scope="module")
def graph(reduced: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its graph, with the output `kept_mask`, and its reference."""
    folder = tmp_path_factory.mktemp("graph") / "evit"
    folder.mkdir()
    export_onnx(reduced, folder, OnnxOptions(kept_mask=True))
    write_reference(TorchRunner(reduced.path), folder / REFERENCE)
    return folder


def checks(folder: Path, precision: str = "float32") -> list[Check]:
    weights, runner = open_weights(folder), OnnxRunner(folder)
    return check_overlap(weights, runner, recorded_tensors(folder / REFERENCE), precision, 1)


def changed(graph: Path, out: Path, change: Callable[[Any], object]) -> Path:
    folder = Path(shutil.copytree(graph, out))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / "model.onnx")
    return folder


def test_the_graph_keeps_what_pytorch_keeps(graph: Path, reduced: ModelFolder, tmp_path: Path) -> None:
    (check,) = checks(graph)
    assert (check.name, check.passed, check.value) == ("tokens.overlap", True, 1.0)
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    runner = OnnxRunner(graph)
    (mask,) = runner.named({"pixel_values": images}, ["kept_mask"])
    assert mask.dtype == np.bool_ and mask.shape == (5, 3, 17)
    assert mask[:, :, 0].all(), "the class token"
    assert mask[:, 0].sum(-1).tolist() == [12] * 5, "16 x 0.7, and the class token"
    fused = 9 - mask[:, 1].sum(-1)
    assert set(fused.tolist()) <= {0, 1}, "a token made of others may stay in the place of one of the first"
    silent = changed(graph, tmp_path / "silent", lambda g: g.output.pop())
    for folder, runs in ((silent, OnnxRunner(silent)), (graph, TorchRunner(reduced.path))):
        keeps = keeps_of(open_weights(folder), runs, 1)
        assert keeps is not None
        np.testing.assert_array_equal(keeps({"pixel_values": images}), mask)


def test_a_graph_that_keeps_others_fails(graph: Path, tmp_path: Path) -> None:
    def reverse(model: Any) -> None:
        node = next(node for node in model.node if node.op_type == "TopK")
        flag = next((a for a in node.attribute if a.name == "largest"), None)
        if flag is None:
            node.attribute.append(onnx.helper.make_attribute("largest", 0))
        else:
            flag.i = 1 - flag.i

    (check,) = checks(changed(graph, tmp_path / "wrong", reverse))
    assert not check.passed and isinstance(check.value, float) and check.value < 0.9 and "near no tie" in check.reason


def test_what_8_bit_activations_carry_across_is_told_and_not_judged(graph: Path) -> None:
    shipped, exact = checks(graph, "int8-dynamic")
    assert shipped.reason.startswith("not judged") and shipped.value == 1.0
    assert (exact.name, exact.passed) == ("tokens.overlap.exact", True)


def test_a_sample_is_compared_up_to_its_first_difference() -> None:
    wanted = np.ones((2, 3, 4), np.bool_)
    found, tied = wanted.copy(), np.zeros_like(wanted)
    found[0, 1, 2] = found[0, 2, 3] = found[1, 2, 0] = False
    tied[0, 1, 2] = True
    overlap = compared(found, wanted, tied)
    assert (overlap.explained, overlap.unexplained, overlap.share) == (1, 1, 21 / 24)


def test_places_of_tokens_that_are_made_and_come_back() -> None:
    places = Places(1, 5)
    places.go_on(np.array([[0, 2, 4]]), 4)  # and one made of the others
    assert places.of(np.array([[False, True, False, True]])).tolist() == [[False, False, True, False, False]]
    places.go_on(np.array([[0, 2, 3]]), 3)
    assert places.kept.tolist() == [[True, False, False, False, True]]
    masks = kept_masks([np.array([[0, 2, 4]]), np.array([[0, 2, 3]])], [4, 3], 5)
    assert masks[:, 1].tolist() == places.kept.tolist()


SEEN = {
    "received": Reduction(0, 9, "received", "topk", "drop"),
    "fuse": Reduction(0, 9, "received", "topk", "fuse"),
    "alike": Reduction(0, 9, "received", "topk_alike", "drop", similar=3),
    "pairs": Reduction(0, 13, "mean_key", "bipartite", "merge"),
}


@pytest.mark.parametrize("name", SEEN)
def test_only_tokens_near_the_border_change_sides(name: str) -> None:
    reduction, generator = SEEN[name], torch.Generator().manual_seed(3)
    keys = torch.randn(256, 17, 2, 8, generator=generator)
    attention = torch.randn(256, 2, 17, 17, generator=generator).softmax(-1)
    seen = Seen(keys, attention=attention)
    more = torch.randn(keys.shape, generator=generator), torch.randn(attention.shape, generator=generator)
    noisy = Seen(keys + 5e-4 * more[0], attention=attention * (1 + 2e-3 * more[1]))
    track = TokenTrack.start(torch.zeros(256, 17, 1))
    kept = [set(row.tolist()) for row in choose(reduction, seen, track).kept]
    others = [set(row.tolist()) for row in choose(reduction, noisy, track).kept]
    near = margins(reduction, seen) < 2e-3
    moved = [(row, token) for row in range(256) for token in kept[row] ^ others[row]]
    assert moved and all(near[row, token] for row, token in moved)
    assert near.float().mean() < 0.5, "a border, not everything"


def test_shares_and_images_for_the_report(graph: Path) -> None:
    images = np.random.default_rng(1).standard_normal((40, 3, 32, 32)).astype(np.float32)
    batches = Batches(lambda: ({"pixel_values": images[start : start + 16]} for start in (0, 16, 32)), 3)
    from compressor.data.kinds import ImageData

    found = kept_tokens(OnnxRunner(graph), ImageData(batches, 40), 2, 1)
    assert (found["grid"], found["blocks"], found["samples"], len(found["images"])) == ([4, 4], [2, 3, 4], 32, 2)
    first = np.array([list(bytes.fromhex(row)) for row in found["shares"]]).mean(axis=1) / 255
    assert abs(first[0] - 11 / 16) < 0.01 and first[0] > first[1] > first[2]
    kept = np.unpackbits(np.frombuffer(bytes.fromhex(found["images"][0]["kept"][0]), np.uint8))
    assert kept.sum() == 11 and found["images"][0]["picture"].startswith("data:image/jpeg;base64,")
    assert kept_tokens(OnnxRunner(graph), ImageData(batches, 40), 0, 1)["images"] == []
