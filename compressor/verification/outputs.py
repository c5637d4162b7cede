"""What is judged over the outputs of all probes together: cosines, and outputs that have no winner.

A classifier may have one real number, or labels each of which holds by itself. The cosine of two outputs of one column
is 1 or -1 and their argmax is always 0: such outputs are held to their order over samples and to their difference,
measured against how much they differ between samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.architectures.tasks import TASKS
from compressor.measure.runner import Array, Runner, read_config
from compressor.measure.statistics import F64, spearman
from compressor.model.folder import open_model
from compressor.verification.cases import COLUMNS, Case
from compressor.verification.verdict import Check, bounded

SAMPLES = "samples"
"""Name of the probe of real inputs."""
_ENOUGH = 8
"""Samples from which an order can be told."""
_LOW = 0.01


@dataclass(frozen=True)
class Ordering:
    """How far single outputs may be from their reference, over the samples of all probes together.

    Attributes:
        rank: smallest rank correlation.
        error: largest root mean square difference over the spread of the reference.
    """

    rank: float
    error: float


ORDERINGS = {
    "float16": Ordering(0.99, 0.1),
    "bfloat16": Ordering(0.95, 0.3),
    # An error of half the spread leaves a correlation of 0.9.
    "int8-dynamic": Ordering(0.9, 0.5),
    "int8-static": Ordering(0.9, 0.5),
    "int8-weights": Ordering(0.97, 0.25),
    "int4": Ordering(0.9, 0.5),
}
"""By precision; at float32 the probes' own bound on the largest difference is far below any spread."""


def check_cosines(cosines: Mapping[Case, F64], least: tuple[float, float], why: str, group: str) -> list[Check]:
    """Check the cosines of output rows, those of all probes together.

    Where inputs of products are rounded, single tokens of a good model come out quite different: those at which a few
    activations are a hundred times the others. `parity.exact` compares every one of them without rounding.

    Args:
        cosines: by probe, one for each row.
        least: the smallest mean, and what all rows but one in a hundred must reach.
        why: what a failed check says beside its figure.
        group: prefix of the checks' names.
    """
    mean = float(np.concatenate(list(cosines.values())).mean())
    checks = [bounded(f"{group}.cosine", mean, least=least[0], why=why)]
    # Of many tokens, seen in few columns, the low ones say little of rounding.
    full = [values for case, values in cosines.items() if case.columns == COLUMNS]
    if full:
        low = float(np.quantile(np.concatenate(full), _LOW, method="lower"))
        checks.append(bounded(f"{group}.cosine_low", low, least=least[1], why=why))
    return checks


def hands_some_on(runner: Runner) -> bool:
    """Tell whether a model hands on tokens of an image that it has chosen: their mean is what is compared.

    Where inputs of products are rounded, a token near a tie gives way to another, and all rows between the two move by
    one place. That each row is right is compared without rounding (`parity.exact`), and so is the choice.

    Raises:
        ModelError: config.json does not describe a model.
    """
    model = open_model(runner.folder)
    return model.family.selector is not None and bool(model.blueprint.reductions)


def row_cosines(a: Array, b: Array) -> F64:
    """Return the cosine [N] between the rows of two arrays [N, C]; NaN where a row is zero."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    scale = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.asarray((a64 * b64).sum(axis=1) / np.where(scale > 0, scale, np.nan), dtype=np.float64)


def check_spread(compared: Mapping[str, tuple[Array, Array]], precision: str, group: str) -> list[Check]:
    """Check outputs without a winner against how much they differ between samples, and their order if there is but one.

    Several labels, whose answers are compared elsewhere, are held to this where there are real samples.

    Args:
        compared: by the name of the probe, values found and wanted [N, C].
        precision: of the artifact.
        group: prefix of the checks' names.
    """
    if not compared or precision not in ORDERINGS:
        return []
    found, wanted = _judged(compared)
    alone = wanted.shape[1] == 1
    if not alone and SAMPLES not in compared:
        return []
    limits = ORDERINGS[precision]
    spread = float(np.square(wanted - wanted.mean(axis=0)).sum())
    error = math.sqrt(float(np.square(found - wanted).sum()) / spread) if spread > 0 else math.nan
    why = "as a share of the spread between probes"
    checks = [bounded(f"{group}.relative_error", error, most=limits.error, why=why)]
    if alone:
        why = f"the {len(found)} probes are ranked differently"
        checks.append(bounded(f"{group}.rank", spearman(found[:, 0], wanted[:, 0]), least=limits.rank, why=why))
    return checks


def _judged(compared: Mapping[str, tuple[Array, Array]]) -> tuple[F64, F64]:
    """Return the values of all probes, or of the real samples alone if random ones say little in comparison."""
    found, wanted = (np.concatenate([pair[side] for pair in compared.values()]).astype(np.float64) for side in (0, 1))
    real = compared.get(SAMPLES)
    if real is None or len(real[1]) < _ENOUGH:
        return found, wanted
    made_up = np.concatenate([pair[1] for name, pair in compared.items() if name != SAMPLES])
    if float(made_up.std(axis=0).mean()) >= float(real[1].std(axis=0).mean()) / 2:
        return found, wanted
    return real[0].astype(np.float64), real[1].astype(np.float64)


def has_one_output(runner: Runner) -> bool:
    """Tell whether a classifier has a single output."""
    if not TASKS[runner.task].classifies:
        return False
    config = read_config(runner.folder)
    return len(config.get("id2label") or range(int(config.get("num_labels", 2)))) == 1


def has_label_sets(runner: Runner) -> bool:
    """Tell whether each output of a model is a label that holds by itself."""
    return read_config(runner.folder).get("problem_type") == "multi_label_classification"


def same_labels(found: Array, wanted: Array, tie: float) -> NDArray[Any]:
    """Return, label by label, whether both say alike that it holds [N * C]; within `tie` of 0.5, either is right."""
    equal = ((found > 0) == (wanted > 0)) | (np.abs(wanted) <= tie)
    return np.where(np.isfinite(found), equal, np.nan).ravel()
