"""Channel scores against the formulas, written out over single numbers."""

from __future__ import annotations

import math

import pytest
import torch

from compressor.errors import UsageError
from compressor.passes.structure._width.importance import SCORES, Channels, score


def channels(readers: int = 2, seed: int = 0) -> tuple[Channels, torch.Tensor]:
    """Return an FFN of 7 channels and its activations [50, 7]."""
    generator = torch.Generator().manual_seed(seed)
    signals = torch.randn(50, 7, generator=generator) * torch.arange(1, 8) + 0.5
    made = Channels(
        readers=[torch.randn(7, 5, generator=generator) for _ in range(readers)],
        writer=torch.randn(4, 7, generator=generator),
        square_mean=signals.double().square().mean(0),
        mean=signals.double().mean(0),
        seed=seed,
    )
    return made, signals


def loudness(signals: torch.Tensor, j: int) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in signals[:, j]) / len(signals))


def test_act_is_the_norm_of_the_activation() -> None:
    given, signals = channels()
    assert score("act", given).tolist() == pytest.approx([loudness(signals, j) for j in range(7)], rel=1e-6)


@pytest.mark.parametrize("readers", [1, 2])
def test_cfsp_adds_shares_of_what_is_written_and_read(readers: int) -> None:
    given, signals = channels(readers)
    written = [sum(abs(float(w)) for w in given.writer[:, j]) * loudness(signals, j) for j in range(7)]
    expected = []
    for j in range(7):
        total = written[j] / sum(written)
        for reader in given.readers:
            total += float(reader[j].abs().sum()) / float(reader.abs().sum())
        expected.append(total * loudness(signals, j))
    assert score("cfsp", given).tolist() == pytest.approx(expected, rel=1e-6)


def test_cfsp_is_not_the_activation_norm_in_disguise() -> None:
    given, _ = channels()
    ranks = [score(name, given).argsort().tolist() for name in ("cfsp", "act")]
    assert ranks[0] != ranks[1]


def test_flap_is_variance_times_squared_column() -> None:
    given, signals = channels()
    variance = signals.double().var(0, correction=0)
    expected = [float(variance[j] * given.writer[:, j].double().square().sum()) for j in range(7)]
    assert score("flap", given).tolist() == pytest.approx(expected, rel=1e-6)


def test_magnitude_does_not_change_when_scale_moves_between_row_and_column() -> None:
    given, _ = channels()
    readers = [given.readers[0] * 4, given.readers[1]]
    moved = Channels(readers, given.writer / 4, given.square_mean, given.mean)
    torch.testing.assert_close(score("magnitude", moved), score("magnitude", given))
    expected = [
        float(given.writer[:, j].norm() * given.readers[0][j].norm() * given.readers[1][j].norm()) for j in range(7)
    ]
    assert score("magnitude", given).tolist() == pytest.approx(expected, rel=1e-5)


def test_random_follows_its_seed() -> None:
    first, again, other = (score("random", channels(seed=s)[0]) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_name_is_known_and_others_are_refused() -> None:
    given, _ = channels()
    for name in SCORES:
        assert score(name, given).shape == (7,)
    with pytest.raises(UsageError, match="did you mean 'cfsp'"):
        score("cfps", given)
