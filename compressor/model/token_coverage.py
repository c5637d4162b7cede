"""A selection of image features that covers a question's tokens and the image itself: pure functions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_SHARPNESS = {"text": 0.02, "image": 0.2}
"""Temperatures of the softmax of cosines, by what is covered."""
_IMAGE = 0.5
"""What covering the image counts, beside covering the text."""
_TINY = 1e-12


def most_covering(features: Tensor, text: Tensor, keep: int) -> Tensor:
    """Return the places of features that together cover a text and all features best, by rising place: [batch, keep].

    MMTok (arXiv 2508.18264): greedily, each time the feature that adds most to the coverage, which is the mean over the
    text's tokens of the likeness of the feature chosen that is most like it, plus half of the same over all features.
    Likeness is a softmax over all features of cosines over a temperature.

    Args:
        features: [batch, patches, width].
        text: [batch, tokens, width]; tokens of zeros are padding and count nothing; there may be none.
        keep: how many.
    """
    return torch.stack([gain.argmax(-1) for gain in _gains(features, text, keep)], dim=1).sort(dim=-1).values


def coverage_gaps(features: Tensor, text: Tensor, keep: int) -> Tensor:
    """Return by how much a chosen feature led the next one, where that was least, over the first gain: [batch]."""
    gaps, first = [], torch.zeros(())
    for number, gain in enumerate(_gains(features, text, keep)):
        best = gain.topk(2, dim=-1).values
        first = best[:, 0] if number == 0 else first
        gaps.append((best[:, 0] - best[:, 1]) / first)
    return torch.stack(gaps).amin(0)


def _gains(features: Tensor, text: Tensor, keep: int) -> Iterator[Tensor]:
    """Yield what each feature would add [batch, patches], for each one to be chosen: the highest is the one."""
    # patches alike add nearly the same: only sums in float64 come out alike in every runtime
    targets = _likeness(features.double(), text.double())  # [batch, features, what is covered]
    batch, patches = targets.shape[:2]
    flat, starts = targets.reshape(batch * patches, -1), torch.arange(batch, device=targets.device) * patches
    places = torch.arange(patches, device=targets.device)
    covered, taken = torch.zeros_like(targets[:, :1]), torch.zeros_like(targets[..., 0])
    for number in range(keep):
        gain = (targets - covered).clamp(min=0).sum(-1) + taken
        yield gain
        if number + 1 < keep:
            chosen = gain.argmax(-1)
            covered = torch.maximum(covered, flat.index_select(0, chosen + starts).unsqueeze(1))
            taken = torch.where(places == chosen.unsqueeze(1), -1.0, taken)  # a chosen one is never chosen again


def _likeness(features: Tensor, text: Tensor) -> Tensor:
    """Return what each feature covers of the text's tokens and of all features: [batch, patches, tokens + patches]."""
    unit = features / features.norm(dim=-1, keepdim=True)
    text = torch.cat([text, torch.zeros_like(unit[:, :1])], dim=1)  # ONNX Runtime reduces nothing to a wrong shape
    lengths = text.norm(dim=-1, keepdim=True)
    real = (lengths > 0).to(unit.dtype)  # [batch, tokens, 1]
    words = text / lengths.clamp(min=_TINY)
    among = (words @ unit.transpose(1, 2) / _SHARPNESS["text"]).softmax(-1) * real
    among = among / real.sum(1, keepdim=True).clamp(min=1)
    alike = (unit @ unit.transpose(1, 2) / _SHARPNESS["image"]).softmax(-1) * (_IMAGE / unit.shape[1])
    return torch.cat([among, alike], dim=1).transpose(1, 2)
