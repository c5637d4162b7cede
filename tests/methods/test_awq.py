"""AWQ: folding changes nothing, the scale is the best of those tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.model.folder import open_model
from compressor.passes.quantize.awq import Awq, maker_of, shared_loudness
from compressor.passes.quantize.rtn import Rtn
from compressor.passes.surgery.linears import attention_sharings, ffn_sharings
from compressor.storage.grids import GridSpec, fit_grid
from compressor.walk import Walk
from tests.core.toy import toy_batches
from tests.methods.quantized import check_on_grids, outputs, run

Make = Callable[..., Path]


class Scrambled(Awq):
    """Folds random scales between 1/e² and e², and quantizes nothing."""

    def _scale(self, block: Any, sharing: Any, stats: Any) -> torch.Tensor:
        noise = torch.rand(len(stats.mean_abs), generator=torch.Generator().manual_seed(block.index))
        return torch.exp(4 * shared_loudness(block, sharing, noise) - 2)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "opt", "bert", "vit"])
def test_folded_scales_change_no_output(family: str, pico: Make, tmp_path: Path) -> None:
    """Grouped heads, biases, LayerNorms and tied embeddings included."""
    model = open_model(pico(family))
    found, _ = run(Scrambled, model, tmp_path, exclude=["*"])
    torch.testing.assert_close(outputs(found), outputs(model), atol=1e-4, rtol=1e-4)
    old, new = model.load().state_dict(), found.load().state_dict()
    value = next(name for name in old if name.endswith(f".0.{model.family.attention.value.path}.weight"))
    assert float((old[value] - new[value]).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("family", "makers"),
    [
        ("llama", ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj")),
        ("opt", ("self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm", "fc1")),  # ReLU
        ("vit", ("layernorm_before", "attention.v_proj", "layernorm_after", None)),  # GELU
        ("bert", (None, "attention.self.value", None, None)),  # post-norm and GELU
    ],
)
def test_what_a_scale_is_folded_into(family: str, makers: tuple[str | None, ...], pico: Make, tmp_path: Path) -> None:
    model = open_model(pico(family))
    sharings = (*attention_sharings(model.family), *ffn_sharings(model.family))
    for view in Walk(model, toy_batches(model.task), work=tmp_path, cache_bytes=1 << 26).survey():
        assert tuple(maker_of(view, sharing) for sharing in sharings) == makers


def test_the_scale_is_the_best_of_those_tried(pico: Make, tmp_path: Path) -> None:
    """Against float64 products with the inputs themselves, weight by weight."""
    model, steps = open_model(pico("qwen2")), 8
    sharing, spec = attention_sharings(model.family)[0], GridSpec(4, 32, False)
    found: list[torch.Tensor | None] = []
    rows: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []

    class Noted(Awq):
        def _scale(self, block: Any, sharing: Any, stats: Any) -> torch.Tensor | None:
            scale = super()._scale(block, sharing, stats)
            if block.index == 0 and sharing.name == "attention":
                found.append(scale)
                weights.extend(block.module.get_submodule(path).weight.data.double() for path in sharing.paths)
                norm = block.module.get_submodule(sharing.norm)
                rows.extend(norm(block.current_in(k)).flatten(0, 1).double() for k in range(len(block)))
            return scale

    run(Noted, model, tmp_path, steps=steps)
    inputs = torch.cat(rows)
    loudness = inputs.abs().mean(0)

    def lost(alpha: float) -> float:
        scale = loudness**alpha
        scale = scale / (scale.max() * scale.min()).sqrt()
        values = [fit_grid(w * scale, spec).rounded(w * scale) / scale for w in weights]
        return float(sum(((v - w) @ inputs.T).square().sum() for v, w in zip(values, weights, strict=True)))

    errors = [lost(step / steps) for step in range(steps + 1)]
    best = min(range(steps + 1), key=errors.__getitem__)
    scale = found[0]
    assert sharing.name == "attention" and best > 0 and scale is not None
    wanted = loudness ** (best / steps)
    torch.testing.assert_close(scale.double(), wanted / (wanted.max() * wanted.min()).sqrt(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "opt", "bert", "vit"])
def test_weights_lie_on_their_grids_and_lose_less_than_rtn(family: str, pico: Make, tmp_path: Path) -> None:
    model = open_model(pico(family))
    found, changes = run(Awq, model, tmp_path / "awq", bits=4, group_size=128)
    plain, _ = run(Rtn, model, tmp_path / "rtn", bits=4, group_size=128)
    assert check_on_grids(found).keys() == plain.grids.keys() and len(changes) == 3
    dense = outputs(model)
    errors = [float((outputs(m) - dense).square().mean()) for m in (found, plain)]
    assert errors[0] < errors[1]
