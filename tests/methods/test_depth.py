"""What is alive while a pass runs does not grow with the number of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data.kinds import Batches
from compressor.model.folder import open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from tests.bench.synthetic import Geometry, write_llama
from tests.live import LiveBytes

SHALLOW, DEEP = 3, 12
RUNS: list[Any] = [
    ("width", {"importance": "obs", "allocation": "global", "sparsity": 0.3}),
    pytest.param("slicegpt", {"rotation": "shared", "reduction": 0.2}, marks=pytest.mark.exhaustive),
    ("slicegpt", {"rotation": "per_layer", "refit": False, "reduction": 0.2}),
    pytest.param("rsq", {"bits": 4, "group_size": 32}, marks=pytest.mark.exhaustive),
    ("int8-static", {}),
]


def geometry(layers: int) -> Geometry:
    return Geometry(layers, hidden=64, ffn=160, heads=4, kv_heads=2, head_dim=16, vocabulary=64, positions=64)


def peak(folder: Path, layers: int, name: str, options: dict[str, Any]) -> int:
    """Return the most bytes of tensors that were alive at once; activations lie on disk."""
    source = open_model(write_llama(folder / "model", geometry(layers), seed=layers))
    ids = np.random.default_rng(0).integers(0, 64, (2, 4, 32))
    batches = Batches(lambda: ({"input_ids": batch} for batch in ids), len(ids))
    method = methods()[name]
    with LiveBytes() as live:
        apply_pass(method(method.Options(**options)), source, batches, Setting(folder / "work", "f", cache_bytes=0))
    return live.peak


@pytest.mark.parametrize(("name", "options"), RUNS, ids=lambda value: value if isinstance(value, str) else "")
def test_memory_is_flat_in_depth(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    shallow, deep = (peak(tmp_path / str(layers), layers, name, options) for layers in (SHALLOW, DEEP))
    block = 4 * geometry(1).block_parameters
    assert deep <= shallow + block / 2  # a search may take more steps, and keep more of them, on another model
