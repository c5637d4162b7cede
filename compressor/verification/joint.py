"""What the parts of an artifact do together, measured in a fresh process: `python -m compressor.verification.joint`.

Each part is verified by itself, as an artifact of one graph. Here the embeddings of all are joined as the whole model
joins them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.data.reading import DataRequest
from compressor.data.zero_shot import load_named, load_prompts
from compressor.errors import DataError, UsageError
from compressor.machine.asking import answer, ask
from compressor.measure.opening import open_runner
from compressor.measure.zero_shot import TwoTowers, measure_zero_shot
from compressor.storage.json_files import read_json
from compressor.verification import crash
from compressor.verification.quality import check_sanity
from compressor.verification.verdict import Bounds, Check, failed

_IMAGE, _TEXT = "vision", "text"


@dataclass(frozen=True)
class Side:
    """One of the two models that are compared.

    Attributes:
        parts: name of a part -> folder in which it is laid out.
        scalars: by which their embeddings are joined.
    """

    parts: Mapping[str, Path]
    scalars: Mapping[str, float]

    def open(self, threads: int) -> TwoTowers:
        """Return the model, loaded.

        Raises:
            ModelError: a part cannot be loaded.
        """
        image, text = (open_runner(self.parts[part], threads) for part in (_IMAGE, _TEXT))
        return TwoTowers(image, text, self.scalars)


@dataclass(frozen=True)
class Together:
    """What the parts do together, as JSON values.

    Attributes:
        checks: of the outputs; a failed one where they could not be measured.
        ours: metric -> value.
        dense: the same for the dense model.
        intervals: (low, high) of the metrics of ours and of the dense model; see `Quality.intervals`.
        samples: images that were classified.
    """

    checks: list[Check]
    ours: dict[str, float] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)
    intervals: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    samples: int | None = None


def measure_together(
    ours: Side, dense: Side | None, images: DataRequest, prompts: DataRequest, bounds: Bounds, threads: int = 1
) -> Together:
    """Measure zero-shot classification in a process of its own.

    Args:
        ours: the artifact.
        dense: the dense model; None leaves out what compares with it.
        images: an image folder whose labels.csv names labels.
        prompts: the table of labels and prompts.
        bounds: the recipe's.
        threads: of the runtime.

    Raises:
        DataError: the data cannot be used.
        ModelError: the dense model cannot be loaded.
        VerificationError: the process crashed.
    """
    request = {
        "ours": _plain(asdict(ours)),
        "dense": _plain(asdict(dense)) if dense is not None else None,
        "data": [_plain(asdict(images)), _plain(asdict(prompts))],
        "bounds": {name: dict(limits) for name, limits in bounds.items()},
        "threads": threads,
    }
    found = ask("compressor.verification.joint", request, crashed=crash, threads=threads)
    return Together(**{**found, "checks": [Check(**check) for check in found["checks"]]})


def _plain(value: Any) -> Any:
    """Return a copy whose paths are text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _measure(asked: Mapping[str, Any]) -> Together:
    ours, dense = (_side(asked[name]) for name in ("ours", "dense"))
    assert ours is not None, "always asked for"
    threads = int(asked["threads"])
    reference = dense.open(threads) if dense is not None else None
    images, prompts = (DataRequest(**{**d, "bases": tuple(map(Path, d["bases"]))}) for d in asked["data"])
    texts = load_prompts(prompts, ours.parts[_TEXT])
    data = load_named(images, ours.parts[_IMAGE], texts.labels)
    try:
        quality = measure_zero_shot(ours.open(threads), reference, data, texts)
    except (UsageError, DataError):
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        return Together([failed("quality.measured", error)])
    checks = check_sanity(quality, asked["bounds"])
    return Together(checks, quality.ours, quality.dense, quality.intervals(), quality.samples)


def _side(stated: Mapping[str, Any] | None) -> Side | None:
    if stated is None:
        return None
    return Side({part: Path(path) for part, path in stated["parts"].items()}, stated["scalars"])


def _carry_out(request: Path) -> dict[str, Any]:
    found = _measure(read_json(request))
    return {**asdict(replace(found, checks=[])), "checks": [asdict(check) for check in found.checks]}


if __name__ == "__main__":
    sys.exit(answer(Path(sys.argv[1]), Path(sys.argv[2]), _carry_out))
