"""What the parts of an artifact do together, measured in a fresh process: `python -m compressor.verification.joint`.

Each part is verified by itself, as an artifact of one graph. Here what they give is joined as the whole model joins it:
embeddings of images and texts by their cosine, image features by their places in a prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.data.kinds import AnswerData
from compressor.data.questions import load_answers
from compressor.data.reading import DataRequest
from compressor.data.zero_shot import load_named, load_prompts
from compressor.errors import DataError, UsageError
from compressor.machine.asking import answer, ask
from compressor.measure.answers import SeeingModel, measure_answers
from compressor.measure.opening import open_runner
from compressor.measure.scores import Quality
from compressor.measure.zero_shot import TwoTowers, measure_zero_shot
from compressor.storage.json_files import read_json
from compressor.verification import crash
from compressor.verification.continuations import PROMPTS, told
from compressor.verification.quality import check_sanity
from compressor.verification.verdict import Bounds, Check, failed

_IMAGE, _TEXT, _LANGUAGE = "vision", "text", "language"


@dataclass(frozen=True)
class Side:
    """One of the two models that are compared.

    Attributes:
        parts: name of a part -> folder in which it is laid out.
        scalars: by which their embeddings are joined.
        image_token: whose places in a prompt image features take; None where embeddings are joined.
    """

    parts: Mapping[str, Path]
    scalars: Mapping[str, float]
    image_token: int | None = None

    def towers(self, threads: int) -> TwoTowers:
        """Return a model of two towers, loaded.

        Raises:
            ModelError: a part cannot be loaded.
        """
        image, text = (open_runner(self.parts[part], threads) for part in (_IMAGE, _TEXT))
        return TwoTowers(image, text, self.scalars)

    def seeing(self, threads: int) -> SeeingModel:
        """Return a language model that reads image features, loaded.

        Raises:
            ModelError: a part cannot be loaded.
        """
        assert self.image_token is not None, "of models that are asked questions"
        image, language = (open_runner(self.parts[part], threads) for part in (_IMAGE, _LANGUAGE))
        return SeeingModel(image, language, self.image_token)


@dataclass(frozen=True)
class Together:
    """What the parts do together, as JSON values.

    Attributes:
        checks: of the outputs; a failed one where they could not be measured.
        ours: metric -> value.
        dense: the same for the dense model.
        intervals: (low, high) of the metrics of ours and of the dense model; see `Quality.intervals`.
        samples: images that were classified, or questions that were answered.
        kinds: accuracy by kind of question; see `compressor.measure.answers.Answered`.
        greedy: how both models answer some questions; see `compressor.verification.continuations`.
    """

    checks: list[Check]
    ours: dict[str, float] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)
    intervals: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    samples: int | None = None
    kinds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    greedy: list[dict[str, Any]] = field(default_factory=list)


def measure_together(
    ours: Side,
    dense: Side | None,
    images: DataRequest,
    prompts: DataRequest | None,
    bounds: Bounds,
    threads: int = 1,
) -> Together:
    """Measure zero-shot classification, or answers to questions about images, in a process of its own.

    Args:
        ours: the artifact.
        dense: the dense model; None leaves out what compares with it.
        images: an image folder whose labels.csv names labels, or questions about images.
        prompts: the table of labels and prompts; None for questions.
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
        "data": [_plain(asdict(request)) for request in (images, prompts) if request is not None],
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
    requests = [DataRequest(**{**d, "bases": tuple(map(Path, d["bases"]))}) for d in asked["data"]]
    measured = _classified if ours.image_token is None else _answered
    return measured(ours, dense, requests, asked["bounds"], threads)


def _classified(
    ours: Side, dense: Side | None, requests: Sequence[DataRequest], bounds: Bounds, threads: int
) -> Together:
    reference = dense.towers(threads) if dense is not None else None
    images, prompts = requests
    texts = load_prompts(prompts, ours.parts[_TEXT])
    data = load_named(images, ours.parts[_IMAGE], texts.labels)
    return _judged(lambda: (measure_zero_shot(ours.towers(threads), reference, data, texts), {}), bounds)


def _answered(
    ours: Side, dense: Side | None, requests: Sequence[DataRequest], bounds: Bounds, threads: int
) -> Together:
    reference = dense.seeing(threads) if dense is not None else None
    data = load_questions(ours, requests[0])

    def measured() -> tuple[Quality, dict[str, Any]]:
        found = measure_answers(ours.seeing(threads), reference, data, shown=PROMPTS)
        return found.quality, {"kinds": found.kinds, "greedy": told(ours.parts[_LANGUAGE], found.samples)}

    return _judged(measured, bounds)


def load_questions(side: Side, request: DataRequest) -> AnswerData:
    """Return the questions that are asked for as a model reads them.

    Raises:
        DataError: they cannot be used.
    """
    assert side.image_token is not None, "of models that are asked questions"
    return load_answers(request, side.parts[_LANGUAGE], side.parts[_IMAGE], side.image_token)


def _judged(measure: Callable[[], tuple[Quality, dict[str, Any]]], bounds: Bounds) -> Together:
    """Return what `measure` gives with the checks of it; a failed one where it could not be measured."""
    try:
        quality, more = measure()
    except (UsageError, DataError):
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        return Together([failed("quality.measured", error)])
    checks = check_sanity(quality, bounds)
    return Together(checks, quality.ours, quality.dense, quality.intervals(), quality.samples, **more)


def _side(stated: Mapping[str, Any] | None) -> Side | None:
    if stated is None:
        return None
    parts = {part: Path(path) for part, path in stated["parts"].items()}
    return Side(parts, stated["scalars"], stated["image_token"])


def _carry_out(request: Path) -> dict[str, Any]:
    found = _measure(read_json(request))
    return {**asdict(replace(found, checks=[])), "checks": [asdict(check) for check in found.checks]}


if __name__ == "__main__":
    sys.exit(answer(Path(sys.argv[1]), Path(sys.argv[2]), _carry_out))
