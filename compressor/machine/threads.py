"""How many threads torch computes with: stated, so that the bytes of a result do not depend on the machine's cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compressor._lazy import lazy

torch = lazy("torch")


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside, whatever the environment says, and with as many as before after.

    Sums of floats are cut into one part per thread, and another order of additions gives other last bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
