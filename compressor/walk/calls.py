"""How a model calls its blocks: the calls recorded, blocks run by themselves, other modules put in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compressor.errors import ModelError


class Stop(Exception):
    """Ends a forward pass as soon as what was wanted has been seen."""


@dataclass(frozen=True)
class Call:
    """What the model passes to a block beside the hidden states: masks, positions."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device) -> Call:
        """Return the same call with its tensors on `device`."""
        return Call(_moved(self.args, device), _moved(self.kwargs, device))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def run_block(module: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Return the hidden states that a block makes of `hidden` [batch, tokens, width]."""
    out = module(hidden, *call.args, **call.kwargs)
    return torch.as_tensor(out[0] if isinstance(out, tuple) else out)


def input_of(module: nn.Module, path: str, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Run `module` until the submodule at `path` is called; return that submodule's input."""
    seen: list[torch.Tensor] = []

    def stop(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0])
        raise Stop

    handle = module.get_submodule(path).register_forward_pre_hook(stop)
    try:
        run_block(module, hidden, call)
    except Stop:
        return seen[0]
    finally:
        handle.remove()
    raise ModelError(f"the block never calls {path}: the family's table does not fit this model")


class Recorder(nn.Module):
    """Stands where a block was; notes how it is called, and hands the hidden states on."""

    def __init__(self, note: Callable[[torch.Tensor, Call], None]) -> None:
        """Call `note` with the hidden states and the rest of the call."""
        super().__init__()
        self._note = note

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Note the call; return `hidden_states`."""
        self._note(hidden_states, Call(args, kwargs))
        return hidden_states


class Injector(nn.Module):
    """Stands where a block was and gives known hidden states, whatever comes in."""

    def __init__(self, hidden: torch.Tensor) -> None:
        """Give `hidden` [batch, tokens, width] at every call."""
        super().__init__()
        self._hidden = hidden

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the known hidden states."""
        return self._hidden


@contextmanager
def replaced(holder: nn.Module, name: str, blocks: list[nn.Module]) -> Iterator[None]:
    """While entered, `holder` has other blocks under `name`."""
    old = getattr(holder, name)
    setattr(holder, name, nn.ModuleList(blocks))
    try:
        yield
    finally:
        setattr(holder, name, old)
