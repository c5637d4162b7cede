"""The sections of a recipe as pydantic models: their fields are the schema, their descriptions the documentation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)

from compressor.recipe.metrics import BOUNDS, GATES, METRICS, Gate

_UNITS = {"b": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgt", 1)
}
TASK_NAMES = (
    *("auto", "text-generation", "feature-extraction", "text-classification", "image-classification"),
    *("zero-shot-image-classification", "image-text-to-text"),
)
"""Those of `compressor.architectures.tasks`, which this wing cannot see."""
PASS_PARTS = ("auto", "vision", "text", "language")
"""What a pass may name as the tower that it is for."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?((?:[kmgt]i?)?b)", re.IGNORECASE)


def parse_bytes(value: Any) -> Any:
    """Return the bytes that `512MB` (10^6) or `512MiB` (2^20) stand for; other values as they are.

    Raises:
        ValueError: text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise ValueError("expected bytes as a number or as text with a unit such as 512MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _opset(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 18 <= value <= 23):
        return value
    raise ValueError("expected auto, or an opset from 18 to 23")


def _task(value: Any) -> Any:
    """Return the task that optimum knows under a synonym, such as `causal-lm`; other values as they are."""
    if not isinstance(value, str) or value in TASK_NAMES:
        return value
    try:
        from optimum.exporters.tasks import TasksManager  # takes seconds: only for names that are not ours
    except ImportError:
        return value
    # What is exported always has a key-value cache.
    return TasksManager.map_from_synonym(value).removesuffix("-with-past")


def _name(value: str) -> str:
    if len(value) > 100 or not _NAME.fullmatch(value):
        raise ValueError("expected letters, digits, '.', '_' and '-', at most 100, the first a letter or digit")
    return value


def _version(value: Any) -> Any:
    if isinstance(value, bool) or value != 1:
        raise ValueError("expected 1, the only version there is")
    return value


def _unique(values: list[str]) -> list[str]:
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"given twice: {', '.join(twice)}")
    return values


def _present(value: Any) -> Any:
    """Return a section that is left empty (`verify:` in a file, `--set verify=null`) as one without keys."""
    return {} if value is None else value


def _asks(value: str) -> str:
    if not value.replace("\n", "").isprintable() or value.count("{question}") != 1:
        raise ValueError("expected a text of visible characters that holds {question} once")
    return value


def _one_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("must be one line of visible text")
    return value


Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(ge=0, le=1 << 50),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9.]+ ?([kKmMgGtT]i?)?[bB]$"}]}
    ),
]
Opset = Annotated[
    Any,
    BeforeValidator(_opset),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 18, "maximum": 23}]}),
]
Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_one_line)]
if TYPE_CHECKING:
    Metric: TypeAlias = str
    TaskName: TypeAlias = str
else:
    Metric = Literal[*METRICS]
    TaskName = Annotated[Literal[TASK_NAMES], BeforeValidator(_task)]
Name = Annotated[
    str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$", "maxLength": 100})
]


class Section(BaseModel):
    """Common settings: unknown keys are errors, nothing is converted silently, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which model to compress, and how it is opened."""

    id: Line | None = Field(
        default=None, description="Local model folder, hub id (owner/name) or `demo`; -m overrides it."
    )
    task: TaskName = Field(
        default="auto",
        description="What the model is for; auto reads it from its config.json. Synonyms that optimum knows, such as"
        " causal-lm or sentence-similarity, are understood as well.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Type of the weights to compress and store; auto keeps that of the model."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that the model's repository brings; off unless asked."
    )
    part: Literal["vision", "text", "language"] | None = Field(
        default=None,
        description="The tower to compress, of a model of several (CLIP, SigLIP: vision, text; LLaVA: vision,"
        " language); the artifact is that tower. Without it the artifact holds all.",
    )
    prompt: Annotated[str, Field(max_length=1000), AfterValidator(_asks)] | None = Field(
        default=None,
        description="How a question about an image is put to a LLaVA model that is taken whole: a text with {question}"
        " and the model's token for an image, such as `<image> {question} answer :`. The model's own chat template if"
        " absent.",
    )
    revision: Line | None = Field(
        default=None, description="Branch, tag or commit of a hub model; the default branch if absent."
    )


class CalibrationSection(Section):
    """Inputs that show the passes which parts of the model matter."""

    data: Line = Field(
        description="Text (.txt, .jsonl), sentences or pairs with their labels (.csv, .tsv), an image folder with"
        " labels.csv, questions about images (.jsonl), or demo:train (docs/data.md has the forms); looked for beside"
        " the recipe, then in the working folder."
    )
    prompts: Line | None = Field(
        default=None,
        description="Sentences for the text tower of a model of two towers, whose image tower reads `data`.",
    )
    samples: int = Field(
        default=128, ge=1, description="Windows of text, sentences or images; too few there is an error."
    )
    length: int = Field(
        default=512, ge=1, description="Tokens per window of text, at most per sentence; unused for images."
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 32, description="Of the choice of samples and all random decisions of passes."
    )
    cache_memory: Bytes = Field(
        default=1_000_000_000,
        description="Bytes of activations kept in memory, as a number or such as 512MB; the rest spills to disk.",
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Threads that the passes compute with. The bytes of the result depend on this number, and never on"
        " the cores of the machine or on OMP_NUM_THREADS.",
    )


class EvaluationSection(Section):
    """Inputs on which the artifact is compared with the dense model."""

    data: Line = Field(description="Held-out data, in the forms of calibration.data, or demo:valid.")
    prompts: Line | None = Field(
        default=None,
        description="Table of label and prompt for a model of two towers: the texts that stand for the labels of the"
        " images in `data`.",
    )
    metrics: Annotated[list[Metric], AfterValidator(_unique)] = Field(
        default_factory=list, description="What to report; all that task and data allow if absent."
    )
    samples: int | None = Field(
        default=None, ge=1, description="How many windows, pairs, sentences or images; all if absent."
    )
    length: int = Field(
        default=512, ge=1, description="Tokens per window of text, at most per sentence; unused for images."
    )


class ExportSection(Section):
    """What is written, and how."""

    format: Literal["onnx", "ort", "safetensors"] = Field(
        default="onnx",
        description="onnx for ONNX Runtime; ort for its minimal builds as well; safetensors for PyTorch.",
    )
    opset: Opset = Field(
        default="auto", description="Version of the ONNX operator set, 18 to 23; auto takes the fastest."
    )
    graph: Literal["auto", "portable"] = Field(
        default="auto",
        description="auto uses ONNX Runtime's fused attention where it helps; portable uses standard operators alone"
        " and allows left padding and batches that continue a cache.",
    )
    dtype: Literal["auto", "float32", "float16"] = Field(
        default="auto", description="Type of the weights in the artifact."
    )
    target: Literal["auto", "x86-avx2", "x86-vnni", "arm64"] = Field(
        default="auto",
        description="The processor that will run the artifact; auto takes the kind of this machine's. It decides how"
        " 8-bit products are computed, and speed is judged only on a machine of that kind.",
    )
    kept_mask: bool = Field(
        default=False,
        description="Of a graph in which image tokens go: one output more, kept_mask (batch, reductions, tokens), that"
        " says which of the first tokens are left behind each reduction.",
    )

    @model_validator(mode="after")
    def _with_effect(self) -> ExportSection:
        """Refuse what is said of a graph where none is written."""
        stated = [f"{key}: {getattr(self, key)}" for key in ("graph", "opset") if getattr(self, key) != "auto"]
        stated += ["kept_mask: true"] if self.kept_mask else []
        if self.format == "safetensors" and stated:
            raise ValueError(f"format: safetensors has no graph, so leave out {' and '.join(stated)}")
        return self


class ReportSection(Section):
    """What the report shows beside figures."""

    images: int = Field(
        default=0,
        ge=0,
        le=8,
        description="Evaluation images on which the page shows what is kept of their tokens. They become part of"
        " report.json and report.html, which are published with the artifact; so there are none unless asked.",
    )


class Bound(Section):
    """Limits for one measured value; at least one of them."""

    min: float | None = Field(default=None, description="Smallest value that passes.")
    max: float | None = Field(default=None, description="Largest value that passes.")

    @model_validator(mode="after")
    def _possible(self) -> Bound:
        """Refuse bounds that bind nothing or that no value can meet."""
        if self.min is None and self.max is None:
            raise ValueError("needs min or max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no value can be at least {self.min:g} and at most {self.max:g}")
        return self

    def to_json(self) -> dict[str, float]:
        """Return the limits that are set."""
        return {key: value for key, value in (("min", self.min), ("max", self.max)) if value is not None}


def _within(low: float, high: float) -> AfterValidator:
    """Return a validator that refuses bounds outside of what the value can be."""

    def check(bound: Bound) -> Bound:
        if bound.min is not None and bound.min > high:
            raise ValueError(f"min {bound.min:g} can never be reached: the value is at most {high:g}")
        if bound.max is not None and bound.max < low:
            raise ValueError(f"max {bound.max:g} can never be met: the value is at least {low:g}")
        return bound

    return AfterValidator(check)


NO_BOUND = Bound.model_construct()
"""Stands for a gate that the recipe switches off."""


def _gate_field(gate: Gate) -> Any:
    """Return type and description of the key of a gate: false, or another bound where it has one."""
    if gate.limits is None:
        return bool, Field(default=True, description=f"{gate.text} false: not judged.")
    limits = " and ".join(f"{side} {limit:g}" for side, limit in gate.limits.items())
    text = gate.text + (f" Default: {limits}." if limits else "") + " false: not judged."
    kind = Annotated[Bound, _within(gate.low, gate.high)] | Literal[False] | None
    return kind, Field(default=None, description=text)


VerifySection: type[Section] = create_model(
    "VerifySection",
    __base__=Section,
    __doc__="Bounds that the artifact must meet; a run that misses one ends with exit code 4.",
    **{
        name: (Annotated[Bound, _within(value.low, value.high)] | None, Field(default=None, description=value.text))
        for name, value in BOUNDS.items()
    },
    **{name: _gate_field(gate) for name, gate in GATES.items()},  # type: ignore[call-overload]
)


def bounds_of(section: BaseModel | None) -> dict[str, Bound]:
    """Return the bounds that a `verify` section states; `NO_BOUND` for a gate that it switches off."""
    stated = {name: getattr(section, name) for name in VerifySection.model_fields}
    return {name: bound or NO_BOUND for name, bound in stated.items() if bound is not None and bound is not True}


_Values = Annotated[list[Any], Field(min_length=1, max_length=16)]


class Head(Section):
    """A recipe: which model, what to do to it, and what the result must be worth. `passes` is checked by itself."""

    version: Annotated[Literal[1], BeforeValidator(_version)] = Field(description="Version of the recipe format: 1.")
    name: Name = Field(
        description="Name of the recipe and default name of the artifact folder; letters, digits, '.', '_' and '-'."
    )
    model: Annotated[ModelSection, BeforeValidator(_present)] = Field(
        default_factory=ModelSection, description="The trained model to compress."
    )
    calibration: CalibrationSection | None = Field(
        default=None, description="Inputs that show the passes what matters; passes that need none run without."
    )
    evaluation: EvaluationSection | None = Field(
        default=None, description="Inputs on which the artifact is compared with the dense model."
    )
    export: Annotated[ExportSection, BeforeValidator(_present)] = Field(
        default_factory=ExportSection, description="The form of the artifact."
    )
    verify: Annotated[VerifySection, BeforeValidator(_present)] = Field(  # type: ignore[valid-type]
        default_factory=VerifySection, description="Bounds that the artifact must meet (exit code 4 if not)."
    )
    sweep: Annotated[dict[str, _Values], Field(min_length=1, max_length=1)] | None = Field(
        default=None,
        description="Values at which the model is measured as well, for a curve in the report: METHOD.KEY of a pass and"
        " its values, such as evit.keep: [0.9, 0.8, 0.6]. The artifact is the one that `passes` says.",
    )
    report: Annotated[ReportSection, BeforeValidator(_present)] = Field(
        default_factory=ReportSection, description="What report.json and the page show on request."
    )
