"""`bits: auto`: allocation against all assignments there are, losses against a plain forward pass, exact budgets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compressor.errors import UsageError
from compressor.model.folder import open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.passes.quantize._weights.mixed import Choice, allocate, block_choices, output_distance
from compressor.storage.grids import GridSpec, fit_grid
from tests.core.toy import toy_batches

Pico = Callable[..., Path]


def total(choices: list[Choice], levels: Any, what: str) -> float:
    return sum(getattr(choice, what)[level] for choice, level in zip(choices, levels, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_allocation_is_near_the_best_there_is(seed: int) -> None:
    rng = random.Random(seed)
    choices = []
    for index in range(6):
        size, loss = rng.choice([64, 128, 256]), rng.random()
        losses = (loss, loss * rng.uniform(0.001, 0.2), 0.0)
        choices.append(Choice(str(index), (5 * size, 9 * size, 32 * size), losses))
    share = rng.uniform(0.2, 0.9)
    found = allocate(choices, share)
    budget = int(share * total(choices, [2] * 6, "bytes"))
    assert total(choices, found, "bytes") <= budget
    fitting = [c for c in itertools.product(range(3), repeat=6) if total(choices, c, "bytes") <= budget]
    best = min(total(choices, levels, "losses") for levels in fitting)
    largest_step = max(max(choice.losses) for choice in choices)
    assert best <= total(choices, found, "losses") <= best + largest_step
    uniform = max((level for level in range(3) if total(choices, [level] * 6, "bytes") <= budget), default=0)
    assert total(choices, found, "losses") <= total(choices, [uniform] * 6, "losses") + 1e-12


def test_too_small_a_budget_names_the_least() -> None:
    with pytest.raises(UsageError, match=r"budget: 0\.1 .* the fewest bits take 0\.1562"):
        allocate([Choice("a", (5, 9, 32), (1.0, 0.5, 0.0))], 0.1)


def test_distance_against_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(2, 3, 7, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    p, q = wanted.double().softmax(-1)[mask], found.double().softmax(-1)[mask]
    assert output_distance(found, wanted, mask, logits=True) == pytest.approx(
        float((p * (p / q).log()).sum()), rel=1e-5
    )
    a, b = found.double()[mask], wanted.double()[mask]
    cosine = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    assert output_distance(found, wanted, mask, logits=False) == pytest.approx(float((1 - cosine).sum()), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_bits_follow_the_losses_within_the_budget(pico: Pico, tmp_path: Path, family: str) -> None:
    source = open_model(pico(family))
    method = methods()["rtn"]
    instance = method(method.Options(bits="auto", budget=0.4))
    model, changes = apply_pass(instance, source, toy_batches(source.task), Setting(tmp_path, "auto", 1 << 30))
    levels = [{name: GridSpec(bits, 32, False) for name in instance.plan(source, Target()).grids} for bits in (4, 8)]
    everything = [s.removesuffix(".weight") for s in model.weights.names() if s.removesuffix(".weight") in model.grids]
    assert {spec.bits for spec in model.grids.values()} <= {4, 8}
    names = sorted(set(everything) | set(levels[0]))
    choices = block_choices(
        source, [{n: GridSpec(b, 32, False) for n in names} for b in (4, 8)], {n: [0, 0] for n in names}
    )
    used = sum(
        c.bytes[(4, 8).index(model.grids[c.name].bits)] if c.name in model.grids else c.bytes[-1] for c in choices
    )
    assert used <= 0.4 * sum(c.bytes[-1] for c in choices)
    assert all(change.figures["bits_before"] == 32 for change in changes)
    assert all(change.figures["loss_at_4_bits"] > change.figures["loss_at_8_bits"] > 0 for change in changes)


def test_loss_of_a_block_is_that_of_the_whole_model(pico: Pico, tmp_path: Path) -> None:
    """One batch, so that nothing is thinned: KL of a plain forward pass in which block 1 alone is rounded."""
    source = open_model(pico("llama"))
    batches = toy_batches(source.task, count=1)
    instance = methods()["rtn"](methods()["rtn"].Options(bits="auto", budget=0.4))
    _, changes = apply_pass(instance, source, batches, Setting(tmp_path, "x", 1 << 30))
    model = source.load()
    inputs = {name: torch.as_tensor(array) for name, array in next(iter(batches)).items()}
    with torch.no_grad():
        dense = model(**inputs).logits
        for module in model.model.layers[1].modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = fit_grid(module.weight.data, GridSpec(4, 32, False)).rounded(module.weight.data)
        moved = model(**inputs).logits
    log_p, log_q = dense.double().log_softmax(-1), moved.double().log_softmax(-1)
    expected = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert changes[1].figures["loss_at_4_bits"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("options", [{"bits": "auto"}, {"bits": 4, "budget": 0.2}, {"bits": "auto", "budget": 1.5}])
def test_bits_and_budget_need_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        methods()["rtn"].Options(**options)
