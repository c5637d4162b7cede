"""How a model calls its blocks: the calls recorded, blocks run by themselves, other modules put in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from compressor.errors import ModelError
from compressor.model.gated import GatedLinear
from compressor.model.llm_block import LlmBlock
from compressor.model.reduced import ReducedBlock
from compressor.model.token_reduction import TokenTrack
from compressor.model.token_select import Choice


class Stop(Exception):
    """Ends a forward pass as soon as what was wanted has been seen."""


@dataclass(frozen=True)
class Call:
    """What the model passes to a block beside the hidden states: masks, positions.

    Attributes:
        args: positional arguments of the stock block.
        kwargs: its keyword arguments.
        track: of the tokens, where tokens before this block have become fewer.
        choice: of the tokens that go in this block, where it has been made.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    track: TokenTrack | None = None
    choice: Choice | None = None

    def to(self, device: torch.device) -> Call:
        """Return the same call with its tensors on `device`."""
        return Call(*(_moved(getattr(self, field.name), device) for field in fields(self)))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def run_block(module: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Return the hidden states that a block makes of `hidden` [batch, tokens, width]."""
    of_tokens = {"track": call.track, "choice": call.choice} if isinstance(module, ReducedBlock | LlmBlock) else {}
    out = module(hidden, *call.args, **call.kwargs, **of_tokens)
    return torch.as_tensor(out[0] if isinstance(out, tuple) else out)


@contextmanager
def observing(
    module: nn.Module,
    paths: Iterable[str],
    note: Callable[[str, torch.Tensor], torch.Tensor | None],
    *,
    outputs: bool = False,
    once: bool = False,
    raw: bool = False,
) -> Iterator[None]:
    """While entered, call `note` with the path and the input of every submodule in `paths` whenever it is called.

    The input of a linear module with a gate is what its matrix multiplies: silent inputs are 0.

    Args:
        module: the module that is going to run.
        paths: of its submodules, each once.
        note: what it returns, if not None, takes the place of the tensor.
        outputs: note outputs instead of inputs.
        once: end the forward pass, and leave the context without an error, as soon as anything was noted.
        raw: note the inputs of linear modules before their gates.
    """
    # Such contexts can be nested, and each ends a forward pass for itself alone.
    mine = object()

    def seen(path: str, tensor: torch.Tensor) -> torch.Tensor | None:
        replacement = note(path, tensor)
        if once:
            raise Stop(mine)
        return replacement

    with ExitStack() as stack:
        for path in paths:
            part = module.get_submodule(path)
            if outputs:
                handle = part.register_forward_hook(lambda _, args, out, path=path: seen(path, out))
            else:
                read = _as_given if raw else _as_multiplied
                handle = part.register_forward_pre_hook(
                    lambda part, args, path=path, read=read: seen(path, read(part, args[0]))
                )
            stack.callback(handle.remove)
        try:
            yield
        except Stop as reached:
            if reached.args != (mine,):
                raise


def _as_given(_: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return inputs


def _as_multiplied(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return module.gated(inputs) if isinstance(module, GatedLinear) else inputs


@contextmanager
def recorded(module: nn.Module, *paths: str, outputs: bool = False) -> Iterator[list[torch.Tensor]]:
    """While entered, collect the inputs (or `outputs`) of the submodules at `paths`, in the order of the calls."""
    found: list[torch.Tensor] = []
    with observing(module, paths, lambda _, tensor: found.append(tensor), outputs=outputs):
        yield found


def first_input(module: nn.Module, path: str, run: Callable[[], object], *, raw: bool = False) -> torch.Tensor:
    """Call `run`, which runs `module`, until the submodule at `path` is called; return that submodule's input.

    `raw` as in `observing`.

    Raises:
        ModelError: it is never called.
    """
    found: list[torch.Tensor] = []
    with observing(module, [path], lambda _, tensor: found.append(tensor), once=True, raw=raw):
        run()
    if not found:
        raise ModelError(f"the block never calls {path}: the family's table does not fit this model")
    return found[0]


def input_of(module: nn.Module, path: str, hidden: torch.Tensor, call: Call, *, raw: bool = False) -> torch.Tensor:
    """Run a block until the submodule at `path` is called; return that submodule's input (`raw` as in `observing`)."""
    return first_input(module, path, lambda: run_block(module, hidden, call), raw=raw)


class Recorder(nn.Module):
    """Takes a block's place: records each call and returns the hidden states unchanged."""

    def __init__(self, note: Callable[[torch.Tensor, Call], None]) -> None:
        """Call `note` with the hidden states and the rest of the call."""
        super().__init__()
        self._note = note

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Note the call; return `hidden_states`."""
        self._note(hidden_states, Call(args, kwargs))
        return hidden_states


class Injector(nn.Module):
    """Takes a block's place: returns the hidden states that it was made with, whatever its input."""

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
