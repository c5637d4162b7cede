"""Watching the parts of a module while it runs: what is noted, what takes its place, and where a pass ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.walk.calls import first_input, observing, recorded


class Chain(nn.Module):
    """Adds 1, then 10, then 100, and counts how far it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Add(1), Add(10), Add(100)
        self.unused = Add(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.c(self.b(self.a(x))))


class Add(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number, self.calls = number, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.number


ZERO = torch.zeros(1)


def unhooked(chain: Chain) -> bool:
    return not any(part._forward_hooks or part._forward_pre_hooks for part in chain.modules())


@pytest.mark.parametrize(("outputs", "expected"), [(False, [0.0, 11.0]), (True, [1.0, 111.0])])
def test_inputs_and_outputs_in_order(outputs: bool, expected: list[float]) -> None:
    chain = Chain()
    with recorded(chain, "c", "a", outputs=outputs) as seen:
        assert float(chain(ZERO)) == 111.0
    assert [float(tensor) for tensor in seen] == expected and unhooked(chain)


def test_the_empty_path_is_the_module() -> None:
    chain = Chain()
    with recorded(chain, "", outputs=True) as seen:
        chain(ZERO)
    assert [float(tensor) for tensor in seen] == [111.0]


@pytest.mark.parametrize(("outputs", "expected"), [(False, 5.0 + 110.0), (True, 5.0 + 100.0)])
def test_what_a_note_returns_takes_the_place(outputs: bool, expected: float) -> None:
    chain = Chain()
    with observing(chain, ["b"], lambda path, tensor: ZERO + 5, outputs=outputs):
        assert float(chain(ZERO)) == expected
    assert float(chain(ZERO)) == 111.0


def test_the_first_input_ends_the_pass() -> None:
    chain = Chain()
    assert float(first_input(chain, "b", lambda: chain(ZERO))) == 1.0
    assert (chain.a.calls, chain.b.calls, chain.c.calls) == (1, 0, 0) and unhooked(chain)


def test_a_part_that_is_never_called() -> None:
    chain = Chain()
    with pytest.raises(ModelError, match="never calls unused"):
        first_input(chain, "unused", lambda: chain(ZERO))
    assert unhooked(chain)


@pytest.mark.parametrize(("outer", "expected"), [("a", 0.0), ("c", 11.0)])
def test_each_context_ends_for_itself(outer: str, expected: float) -> None:
    """Whoever looks for a later part may itself run inside a pass that ends at an earlier one."""
    chain = Chain()

    def run() -> None:
        assert float(first_input(chain, "b", lambda: chain(ZERO))) == 1.0
        chain(ZERO)

    assert float(first_input(chain, outer, run)) == expected and unhooked(chain)


@pytest.mark.parametrize("watch", [recorded, lambda chain, path: observing(chain, [path], print)])
def test_errors_pass_through(watch: Callable[..., Any]) -> None:
    chain = Chain()
    with pytest.raises(RuntimeError, match="mine"), watch(chain, "a"):
        raise RuntimeError("mine")
    assert unhooked(chain)
