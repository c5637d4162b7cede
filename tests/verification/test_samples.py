"""Probes from calibration data: of the same shapes, of its contents; what a calibrated range would clip is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.data.kinds import Batches
from compressor.measure.torch_runner import TorchRunner
from compressor.storage.grids import GridSpec
from compressor.verification.reference import check_reference, write_reference
from compressor.verification.samples import clipping, collect, draw

RNG = np.random.default_rng(0)


def test_tokens_without_padding_are_collected() -> None:
    part = {"input_ids": np.asarray([[5, 6, 7], [8, 9, 0]]), "attention_mask": np.asarray([[1, 1, 1], [1, 1, 0]])}
    assert collect(Batches(lambda: [part, part], 2))["input_ids"].tolist() == [5, 6, 7, 8, 9] * 2


def test_no_more_images_than_needed_are_read() -> None:
    read = []

    def make():  # type: ignore[no-untyped-def]
        for number in range(9):
            read.append(number)
            yield {"pixel_values": np.full((7, 3, 8, 8), number, np.float32)}

    assert collect(Batches(make, 9))["pixel_values"].shape == (16, 3, 8, 8)
    assert read == [0, 1, 2]


@pytest.mark.parametrize("stream", [3, 50])
def test_windows_of_tokens(stream: int) -> None:
    ids = np.arange(100, 100 + stream)
    probe = {"input_ids": np.zeros((4, 7), np.int64), "attention_mask": np.ones((4, 7), np.int64)}
    drawn = draw(probe, {"input_ids": ids}, RNG)
    assert drawn["input_ids"].shape == (4, 7) and drawn["attention_mask"] is probe["attention_mask"]
    for row in drawn["input_ids"]:
        assert row[0] in ids and np.array_equal((row - row[0]) % stream, np.arange(7) % stream)


@pytest.mark.parametrize(("size", "block"), [(32, 4), (30, 1)])
def test_images_in_blocks(size: int, block: int) -> None:
    images = RNG.standard_normal((2, 3, size, size)).astype(np.float32)
    drawn = draw({"blocks": np.zeros((3, 3, 2, 2), np.float32)}, {"pixel_values": images}, RNG)
    assert drawn["blocks"].shape == (3, 3, size // block, size // block) and int(drawn["block"][0]) == block
    means = {round(float(image.mean()), 5) for image in images}
    assert {round(float(image.mean()), 5) for image in drawn["blocks"]} == means


def test_an_image_for_independent_pixels_keeps_them() -> None:
    images = RNG.standard_normal((2, 3, 32, 32)).astype(np.float32)
    drawn = draw({"noise": np.asarray([7, 1, 3, 32, 32])}, {"pixel_values": images}, RNG)
    assert any(np.array_equal(drawn["blocks"][0], image) for image in images) and int(drawn["block"][0]) == 1


def test_inputs_outside_of_a_calibrated_range_are_counted() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    # Codes 0 to 255 with 100 for zero and steps of 0.01: from -1 to 1.55.
    grids = {"0": GridSpec(8, 0, True, "static", 0.01, 100), "1": GridSpec(8, 0, True)}
    with clipping(model, grids) as found:
        model(torch.tensor([[-1.1, -0.9, 1.5, 1.6]]))
    assert (found.seen, found.outside, found.share) == (4, 2, 0.5)
    model(torch.ones(1, 4))
    assert found.seen == 4, "nothing is counted afterwards"


def test_a_failed_comparison_says_how_much_lies_outside(pico, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = pico("vit")
    name = "vit.layers.0.mlp.fc1"
    samples = {"pixel_values": RNG.standard_normal((2, 3, 32, 32)).astype(np.float32)}
    file = tmp_path / "reference.safetensors"
    runner = TorchRunner(folder)
    write_reference(runner, file, calibration=samples, grids={name: GridSpec(8, 0, True, "static", 1e-4, 128)})
    assert all(check.passed for check in check_reference(runner, file, "int8-static"))
    with torch.no_grad():
        runner.module.get_submodule("classifier").weight.neg_()
    failed = [check for check in check_reference(runner, file, "int8-static") if check.name.endswith("cosine")]
    assert failed and all("lie outside of the ranges that were calibrated" in check.reason for check in failed)
