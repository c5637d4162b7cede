"""How far an artifact may be from what was recorded when it was made, by its precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from its reference at one precision.

    Attributes:
        absolute: largest difference, for outputs of unit scale.
        relative: largest difference over the largest output.
        cosine: between output rows of all probes: smallest mean, and what all but one in a hundred must reach.
        agreement: smallest share of equal winners; 1 allows only ties within the tolerance to differ.
        greedy: whether greedy continuations must be equal.
    """

    absolute: float | None = None
    relative: float | None = None
    cosine: tuple[float, float] | None = None
    agreement: float = 1.0
    greedy: bool = False


TOLERANCES = {
    "float32": Tolerance(absolute=1e-4, greedy=True),
    "float16": Tolerance(relative=5e-3, agreement=0.99),
    "bfloat16": Tolerance(relative=3e-2, agreement=0.9),
    "int8-dynamic": Tolerance(cosine=(0.99, 0.98), agreement=0.9),
    "int8-static": Tolerance(cosine=(0.99, 0.97), agreement=0.9),
    # Inputs are rounded as for int4, so near ties are lost as often; a wrong computation fails `parity.exact`.
    "int8-weights": Tolerance(cosine=(0.999, 0.99), agreement=0.93),
    "int4": Tolerance(cosine=(0.99, 0.97), agreement=0.93),
}
