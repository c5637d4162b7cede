"""RTN: nearest values of grids, without data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compressor.data.kinds import Batches
from compressor.model.folder import open_model
from compressor.model.modules import submodule
from compressor.passes.quantize.rtn import Rtn
from tests.methods.quantized import check_on_grids, run

Make = Callable[..., Path]
NOTHING = Batches(lambda: iter(()), 0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_weight_is_at_the_nearest_value_of_its_group(symmetric: bool, pico: Make, tmp_path: Path) -> None:
    """Against numpy, group by group; widths of 48 and 100 leave short last groups of 32."""
    model = open_model(pico("mistral"))
    found, _ = run(Rtn, model, tmp_path, NOTHING, symmetric=symmetric)
    before, after = model.load(), found.load()
    grids = check_on_grids(found)
    assert len(grids) == 3 * 7
    for name, grid in grids.items():
        old, new = (submodule(m, name).weight.data.double().numpy() for m in (before, after))
        for start in range(0, old.shape[1], 32):
            part, scale = old[:, start : start + 32], grid.scale[:, start // 32].double().numpy()[:, None]
            zero = 8.0 if grid.zero_point is None else grid.zero_point[:, start // 32].double().numpy()[:, None]
            values = (np.arange(16)[None] - zero) * scale
            nearest = np.abs(part[:, :, None] - values[:, None]).min(2)
            np.testing.assert_allclose(np.abs(part - new[:, start : start + 32]), nearest, atol=1e-6)
            if symmetric:
                extreme = np.take_along_axis(part, np.abs(part).argmax(1)[:, None], 1)
                np.testing.assert_allclose(-8 * scale, extreme, rtol=1e-6)
            else:
                low, high = part.min(1, keepdims=True).clip(max=0), part.max(1, keepdims=True).clip(min=0)
                np.testing.assert_allclose(scale, (high - low) / 15, rtol=1e-6)


def test_excluded_modules_stay_and_embedding_and_head_follow_when_asked(pico: Make, tmp_path: Path) -> None:
    model = open_model(pico("mistral"))
    found, _ = run(Rtn, model, tmp_path, NOTHING, exclude=["*.1.*"], embedding=8, head=4)
    grids = check_on_grids(found)
    assert not any(".1." in name for name in grids) and len(grids) == 2 * 7 + 2
    assert grids["model.embed_tokens"].spec.bits == 8 and grids["lm_head"].spec.bits == 4
    old, new = model.load().state_dict(), found.load().state_dict()
    assert all((old[name] == new[name]).all() for name in old if ".1." in name)
