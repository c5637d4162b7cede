"""Scores of FFN channels from weights and first and second moments alone: cheap ways to say which channels matter.

A channel j is row j of every reader (gate, up) and column j of the writer (down). Scores rank channels of one block;
the least go first. `cfsp` follows the intent of CFSP (arXiv 2409.13199, section 3.3): what a channel writes,
|W_down[:, j]| · ‖a_j‖, and what it reads, |W_up[j]| and |W_gate[j]|, each as a share of its matrix, and added. Averaged
over all channels before they are compared, as in the paper's code, the normalised terms are constant and only ‖a_j‖ is
left: that score is `act` here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import UsageError, did_you_mean
from compressor.passes.surgery import slots

if TYPE_CHECKING:
    import torch

    from compressor.passes.numerics.moments import Moments
    from compressor.walk import BlockView
else:
    torch = lazy("torch")


@dataclass(frozen=True)
class Channels:
    """What scores are made of.

    Attributes:
        readers: one or two matrices [channels, hidden].
        writer: [outputs, channels].
        square_mean: [channels] E[a_j²] over calibration tokens.
        mean: [channels] E[a_j].
        seed: of the `random` score.
    """

    readers: Sequence[torch.Tensor]
    writer: torch.Tensor
    square_mean: torch.Tensor
    mean: torch.Tensor
    seed: int = 0


def channels_of(view: BlockView, moments: Moments, seed: int) -> Channels:
    """Return what scores are made of."""
    ffn = view.family.ffn
    return Channels(
        readers=[slots.read(view.module, path) for path in ffn.reader_paths],
        writer=slots.read(view.module, ffn.writer),
        square_mean=moments.input_energy,
        mean=moments.input_mean,
        seed=seed * 1000 + view.index,
    )


def score(name: str, channels: Channels) -> torch.Tensor:
    """Return one score per channel, [channels] float64, the least important lowest.

    Raises:
        UsageError: there is no score of that name.
    """
    if name not in SCORES:
        raise UsageError(f"importance {name!r}: allowed are {', '.join(SCORES)}{did_you_mean(name, SCORES)}")
    return SCORES[name](channels)


def activation_score(channels: Channels) -> torch.Tensor:
    """Return ‖a_j‖ = E[a_j²]^½: how loud a channel is."""
    loudness: torch.Tensor = channels.square_mean.double().clamp_min(0).sqrt()
    return loudness


def magnitude_score(channels: Channels) -> torch.Tensor:
    """Return the product of the norms of a channel's rows and column: its scale, however it is spread over them."""
    total: torch.Tensor = channels.writer.double().norm(dim=0)
    for reader in channels.readers:
        total = total * reader.double().norm(dim=1)
    return total


def fluctuation_score(channels: Channels) -> torch.Tensor:
    """Return Var[a_j] · ‖W_down[:, j]‖² (FLAP, arXiv 2312.11983, equation 5): what a bias cannot make up for."""
    variance = (channels.square_mean.double() - channels.mean.double().square()).clamp_min(0)
    return variance * channels.writer.double().square().sum(0)


def cfsp_score(channels: Channels) -> torch.Tensor:
    """Return the share of |W_down|·‖a‖, plus the shares of |W_up| and |W_gate|, times ‖a_j‖."""
    loudness = activation_score(channels)
    total = _share(channels.writer.double().abs().sum(0) * loudness)
    for reader in channels.readers:
        total = total + _share(reader.double().abs().sum(1))
    return total * loudness


def random_score(channels: Channels) -> torch.Tensor:
    """Return seeded noise: the floor that every other score must beat."""
    generator = torch.Generator().manual_seed(channels.seed)
    noise: torch.Tensor = torch.rand(channels.writer.shape[1], dtype=torch.float64, generator=generator)
    return noise.to(channels.writer.device)


def _share(values: torch.Tensor) -> torch.Tensor:
    return values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)


SCORES: dict[str, Callable[[Channels], torch.Tensor]] = {
    "act": activation_score,
    "cfsp": cfsp_score,
    "flap": fluctuation_score,
    "magnitude": magnitude_score,
    "random": random_score,
}
