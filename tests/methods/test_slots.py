"""Slots give the same matrix as plain indexing, wherever it is stored, and writing one leaves its neighbours alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from compressor.architectures import Slot
from compressor.passes.surgery import slots

OUT, IN, HEAD = 6, 4, 2
STACKED = [Slot("m", part, 2) for part in range(2)]
PER_HEAD = [Slot("m", part, 3, per_head=True) for part in range(3)]


def holder(module: nn.Module) -> nn.Module:
    """Return a module that has `module` under the name m, every number of it another one."""
    for number, parameter in enumerate(module.parameters()):
        values = torch.arange(parameter.numel(), dtype=torch.float32) + 1000 * number
        parameter.data = values.reshape(parameter.shape)
    return nn.ModuleDict({"m": module}).requires_grad_(False)


def rows_of(slot: Slot, rows: int) -> list[int]:
    """Return which rows of a stored matrix are the slot's, by the definition of the two layouts."""
    if slot.per_head:
        return [row for row in range(rows) if row // HEAD % slot.parts == slot.part]
    size = rows // slot.parts
    return list(range(slot.part * size, (slot.part + 1) * size))


@pytest.mark.parametrize("slot", [Slot("m"), *STACKED, *PER_HEAD], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_read_and_write(slot: Slot, kind: str) -> None:
    rows = OUT * slot.parts
    module = nn.Linear(IN, rows) if kind == "linear" else Conv1D(rows, IN)
    root = holder(module)
    stored, bias = module.weight.data.clone(), module.bias.data.clone()
    own = rows_of(slot, rows)
    matrix = stored[own] if kind == "linear" else stored[:, own].T
    assert torch.equal(slots.read(root, slot, head_dim=HEAD), matrix)
    found = slots.read_bias(root, slot, head_dim=HEAD)
    assert found is not None and torch.equal(found, bias[own])

    new, new_bias = torch.rand(OUT, IN, dtype=torch.float64), torch.rand(OUT, dtype=torch.float64)
    slots.write(root, slot, new, new_bias, head_dim=HEAD)
    matrix, offset = new.float(), new_bias.float()
    (stored if kind == "linear" else stored.T)[own], bias[own] = matrix, offset
    assert torch.equal(module.weight, stored) and torch.equal(module.bias, bias)
    assert module.weight.is_contiguous() and module.weight.dtype == torch.float32
    x = torch.rand(2, 3, IN)
    torch.testing.assert_close(module(x)[..., own], x @ matrix.T + offset)


def test_query_key_value_of_neox() -> None:
    """Transformers' own split of the fused matrix: [tokens, heads, 3 · head_dim] cut in three."""
    module, x = nn.Linear(IN, 3 * OUT), torch.rand(5, IN)
    root = holder(module)
    split = module(x).view(5, OUT // HEAD, 3 * HEAD).chunk(3, dim=-1)
    for slot, expected in zip(PER_HEAD, split, strict=True):
        weight, bias = slots.read(root, slot, head_dim=HEAD), slots.read_bias(root, slot, head_dim=HEAD)
        torch.testing.assert_close(nn.functional.linear(x, weight, bias), expected.reshape(5, OUT))


@pytest.mark.parametrize("module", [nn.Linear(IN, OUT), Conv1D(OUT, IN)], ids=["linear", "conv1d"])
def test_another_shape(module: nn.Module) -> None:
    root, x = holder(module), torch.rand(2, 3)
    weight, bias = torch.rand(5, 3), torch.rand(5)
    slots.write(root, "m", weight, bias)
    assert torch.equal(slots.read(root, "m"), weight)
    torch.testing.assert_close(module(x), x @ weight.T + bias)
    sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (module.nx, module.nf)
    assert sizes == (3, 5)


def test_a_shared_matrix_keeps_its_rows() -> None:
    root = holder(nn.Linear(IN, 2 * OUT))
    with pytest.raises(RuntimeError):
        slots.write(root, STACKED[0], torch.rand(OUT - 1, IN))


def test_without_bias() -> None:
    module = nn.Linear(IN, OUT, bias=False)
    root = holder(module)
    assert slots.read_bias(root, "m") is None
    slots.write(root, "m", torch.ones(OUT, IN))
    assert module.bias is None and torch.equal(slots.read(module, ""), torch.ones(OUT, IN))


def test_a_tied_weight_stays_tied() -> None:
    embedding, head = nn.Embedding(OUT, IN), nn.Linear(IN, OUT, bias=False)
    head.weight = embedding.weight
    slots.write(embedding, "", torch.ones(OUT, IN))
    assert torch.equal(slots.read(head, ""), torch.ones(OUT, IN))


def test_a_weight_on_meta_becomes_real() -> None:
    with torch.device("meta"):
        module = nn.Linear(IN, OUT)
    slots.write(module, "", torch.ones(OUT, IN), torch.zeros(OUT))
    assert torch.equal(module(torch.ones(1, IN)), torch.full((1, OUT), float(IN)))
