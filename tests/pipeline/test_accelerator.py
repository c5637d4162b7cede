"""Devices: passes and recipes give on a second device what they give on the CPU, to the bit, and mix no tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from tests.core.test_loading import inputs_for
from tests.core.toy import toy_batches
from tests.pipeline.on_accelerator import PLENTY, SOLVED, THIRD, names

Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, corpus: Path, repository: Path) -> Found:
    """What the stand-in device gave, in a process of its own."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.pipeline.on_accelerator"]
    folder = tmp_path_factory.mktemp("accelerator")
    done = subprocess.run(
        [*command, str(folder), str(corpus)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: Found = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("job", names())
def test_same_bytes_on_the_device(found: Found, job: str) -> None:
    assert not found["jobs"][job], found["jobs"][job]


def test_the_device_refuses_what_cuda_refuses(found: Found) -> None:
    assert len(found["refusals"]) > 20
    wrong = {
        name: said
        for name, said in found["refusals"].items()
        if not any(part in said for part in ("same device", "device type for generator", "to numpy"))
    }
    assert not wrong


def test_the_device_computes_what_cuda_allows(found: Found) -> None:
    assert len(found["allowed"]) > 5
    assert all(found["allowed"].values()), found["allowed"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "options"), [("width", THIRD), ("gptq", SOLVED)])
def test_cuda_comes_as_close_to_the_dense_model(
    pico: Callable[..., Path], name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Sums in another order may tip single choices of channels or codes, so distances are compared, not weights."""
    source, method = open_model(pico("llama")), methods()[name]
    distances = []
    for device in ("cpu", "cuda"):
        setting = Setting(work=tmp_path / device, fingerprint="cuda", cache_bytes=PLENTY, device=device)
        model, _ = apply_pass(method(method.Options(**options)), source, toy_batches(source.task), setting)
        distances.append(distance(model, source))
    assert distances[1] == pytest.approx(distances[0], rel=0.01)


def distance(model: ModelFolder, dense: ModelFolder) -> float:
    """Return E‖y − ŷ‖² / E‖y‖² of the logits."""
    with torch.no_grad():
        ours, theirs = (folder.load()(**inputs_for(dense.task))[0].double() for folder in (model, dense))
    return float((ours - theirs).square().sum() / theirs.square().sum())
