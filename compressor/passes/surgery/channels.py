"""FFN channels and attention outputs of one block: what flows through them, and how they are cut and refit.

Written for separate linear matrices [out, in]; `check_covered` refuses the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy
from compressor.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compressor.architectures import Family
    from compressor.walk.walk import BlockView
else:
    torch = lazy("torch")


class _Enough(Exception):
    """Ends a forward pass as soon as what was wanted has been seen."""


def check_covered(method: str, family: Family) -> None:
    """Raise ModelError where a family's FFN is not made of separate [out, in] matrices."""
    if family.transposed or any(slot.parts > 1 for slot in family.ffn.readers):
        raise ModelError(
            f"{method}: family {family.name} stacks or transposes its FFN matrices, which this method cannot cut yet",
            hint="Methods that do not change shapes (quantize) work on it.",
        )


@contextmanager
def _seen(module: nn.Module, *, outputs: bool, stop: bool) -> Iterator[list[torch.Tensor]]:
    """Collect the inputs or outputs of `module` while the context is entered; `stop` raises _Enough at the first."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> None:
        found.append(tensor)
        if stop:
            raise _Enough

    def before(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        note(args[0])

    def after(_: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        note(out)

    handle = module.register_forward_hook(after) if outputs else module.register_forward_pre_hook(before)
    try:
        yield found
    except _Enough:
        pass
    finally:
        handle.remove()


def channel_signals(view: BlockView, module: nn.Module, middle: torch.Tensor, k: int) -> torch.Tensor:
    """Return the writer's input h, [batch, tokens, channels], for what `to_middle` returned."""
    with _seen(module.get_submodule(view.family.ffn.writer), outputs=False, stop=True) as found:
        view.from_middle(module, middle, k)
    return found[0].reshape(*middle.shape[:2], -1)


def ffn_half(view: BlockView, module: nn.Module, middle: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the block's output and what the FFN's writer added to `middle`, both [batch, tokens, width]."""
    with _seen(module.get_submodule(view.family.ffn.writer), outputs=True, stop=False) as found:
        out = view.from_middle(module, middle, k)
    return out, found[0].reshape(middle.shape)


def attention_half(
    view: BlockView, module: nn.Module, hidden: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the middle and what attention's output matrix added to the stream, both [batch, tokens, width]."""
    with _seen(module.get_submodule(view.family.attention.output), outputs=True, stop=False) as added:
        middle = view.to_middle(module, hidden, k)
    return middle, added[0].reshape(hidden.shape)


def reader_signal(view: BlockView, module: nn.Module, stream: torch.Tensor, norm: str) -> torch.Tensor:
    """Return what readers see of `stream`: normed by the module at `norm`; bare where norms stand behind the sums."""
    return stream if view.family.residual == "post" else torch.as_tensor(module.get_submodule(norm)(stream))


def rows(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the tokens of a batch, [tokens, width], without padding."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if mask is None else flat[mask.reshape(-1)]


def matrix(module: nn.Module, path: str) -> torch.Tensor:
    """Return the weight [out, in] of the linear module at `path`."""
    return torch.as_tensor(module.get_submodule(path).weight.data)


def bias(module: nn.Module, path: str) -> torch.Tensor | None:
    """Return the bias of the linear module at `path`, None where it has none."""
    found: Any = getattr(module.get_submodule(path), "bias", None)
    return None if found is None else torch.as_tensor(found.data)


def assign(module: nn.Module, path: str, weight: torch.Tensor, offset: torch.Tensor | None) -> None:
    """Give the linear module at `path` a float32 weight, and a bias if `offset` is one."""
    from compressor.model.skeleton import set_weight

    set_weight(
        module.get_submodule(path),
        weight.to(torch.float32).contiguous(),
        None if offset is None else offset.to(torch.float32).contiguous(),
    )


def keep_channels(module: nn.Module, family: Family, kept: torch.Tensor) -> None:
    """Cut an FFN down to the channels `kept`: rows of its readers, columns of its writer."""
    for path in family.ffn.reader_paths:
        offset = bias(module, path)
        assign(module, path, matrix(module, path)[kept], None if offset is None else offset[kept])
    writer = family.ffn.writer
    assign(module, writer, matrix(module, writer)[:, kept], None)


def compose(module: nn.Module, paths: Sequence[str], weight: torch.Tensor, offset: torch.Tensor | None) -> None:
    """Let readers at `paths` see weight·z + offset instead of z: W ← W·weight, b ← b + W·offset."""
    for path in paths:
        old, shift = matrix(module, path).double(), bias(module, path)
        moved = None if offset is None or shift is None else shift.double() + old @ offset
        assign(module, path, old @ weight, moved)
