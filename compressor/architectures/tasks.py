"""What a model is for: one table of the facts that loading, measuring, timing, exporting and reporting go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compressor.architectures.family import Family
from compressor.errors import ModelError, brief

_HEADS = {
    "labels": ("accuracy", "top1", "kl"),
    "values": ("spearman", "pearson", "rank", "relative_error"),
    "label sets": ("f1", "kl"),
}


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as the hub and optimum call it.
        auto_class: class of transformers that loads a model for it.
        ort_class: class of optimum's ONNX Runtime models that loads its graph.
        endings: how the names of its classes end in config.json's `architectures`; none for a body without a head.
        output: what one number of its output is.
        metrics: kind of evaluation data (see `compressor.data.kinds`) -> the metrics that it allows, in report order;
            the kind that allows most comes first, but for classifiers, whose heads tell their kind.
        phases: what is timed: one `forward` pass, or reading a prompt and making one token; of a model of several
            graphs, the forward pass of each, by the name of its part.
        length: tokens per sample when it is timed, unless stated; 0 for images.
    """

    name: str
    auto_class: str
    ort_class: str
    endings: tuple[str, ...]
    output: Literal["logit", "hidden"]
    metrics: Mapping[str, tuple[str, ...]]
    phases: tuple[str, ...] = ("forward",)
    length: int = 64

    @property
    def classifies(self) -> bool:
        """Whether its models have a classification head."""
        return self.metrics is _HEADS


_EMBEDDINGS = ("cosine", "cosine_min")
_BODY = "feature-extraction"
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="text-generation",
            auto_class="AutoModelForCausalLM",
            ort_class="ORTModelForCausalLM",
            endings=("ForCausalLM", "LMHeadModel"),
            output="logit",
            metrics={"text": ("perplexity", "kl", "top1")},
            phases=("prefill", "decode"),
            length=128,
        ),
        Task(
            name=_BODY,
            auto_class="AutoModel",
            ort_class="ORTModelForFeatureExtraction",
            endings=(),
            output="hidden",
            metrics={
                "pairs": (*_EMBEDDINGS, "spearman"),
                **dict.fromkeys(("sentences", "text", "labels", "images"), _EMBEDDINGS),
            },
        ),
        Task(
            name="text-classification",
            auto_class="AutoModelForSequenceClassification",
            ort_class="ORTModelForSequenceClassification",
            endings=("ForSequenceClassification",),
            output="logit",
            metrics=_HEADS,
        ),
        Task(
            name="image-classification",
            auto_class="AutoModelForImageClassification",
            ort_class="ORTModelForImageClassification",
            endings=("ForImageClassification", "ForImageClassificationWithTeacher"),
            output="logit",
            metrics=_HEADS,
            length=0,
        ),
        Task(
            name="zero-shot-image-classification",
            auto_class="AutoModelForZeroShotImageClassification",
            ort_class="ORTModelForZeroShotImageClassification",
            endings=("CLIPModel", "SiglipModel"),
            output="logit",
            metrics={"labels": ("accuracy", "top1", "kl", "cosine_vision", "cosine_text")},
            phases=("vision", "text"),
        ),
        Task(
            name="image-text-to-text",
            auto_class="AutoModelForImageTextToText",
            ort_class="ORTModelForVision2Seq",
            endings=("LlavaForConditionalGeneration",),
            output="logit",
            metrics={"answers": ("accuracy", "top1", "kl", "greedy")},
            phases=("vision", "prefill", "decode"),
            length=128,
        ),
    )
}
"""All tasks, by name."""

RETURNED = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Settings of config.json that change what a call returns, not what is computed -> what the code here relies on."""


def stated_task(classes: Sequence[str]) -> str | None:
    """Return the task of the first class name that states one; bodies without a head have none of their own."""
    found = (task.name for name in classes for task in TASKS.values() if name.endswith(task.endings))
    return next(found, None)


def task_of(config: Any, family: Family, task: str = "auto") -> str:
    """Return the task that the model of a transformers `config` is loaded for.

    `auto` means the one of the class that `architectures` names, and without a class the family's first.

    Raises:
        ModelError: the family is not covered for the task that was asked for, config.json names no classes, or there
            is no task for the class that it names.
    """
    if task == "auto":
        stated = config.architectures or []
        if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
            raise ModelError(f"config.json: architectures is {brief(stated)}; allowed: a list of class names")
        return _task_of_class(stated[0], config.model_type, family) if stated else family.tasks[0]
    if task not in family.tasks:
        raise ModelError(
            f"model.task: {task!r} is not covered for {family.name}; allowed: {', '.join(('auto', *family.tasks))}"
        )
    return task


@dataclass(frozen=True)
class Head:
    """What the outputs of a classification head mean.

    Attributes:
        kind: the kind of data that it is measured on (see `compressor.data.kinds`): `labels`, one class wins (softmax);
            `values`, one real number (regression, a reward or a relevance); `label sets`, any number of labels hold,
            each by a score of its own (sigmoid).
        names: of the outputs, in order.
    """

    kind: Literal["labels", "values", "label sets"]
    names: tuple[str, ...]


def head_of(config: Any, task: str) -> Head | None:
    """Return the head of the model of a transformers `config` loaded for `task`; None for what is no classifier.

    Like transformers' losses, it goes by `problem_type`; without one, a single output is a real number.

    Raises:
        ModelError: a regression with several outputs.
    """
    if not TASKS[task].classifies:
        return None
    stated, count = getattr(config, "problem_type", None), int(config.num_labels)
    names = tuple(str(config.id2label.get(index, index)) for index in range(count))
    if stated == "multi_label_classification":
        return Head("label sets", names)
    if count == 1:
        return Head("values", names)
    if stated == "regression":
        raise ModelError(
            f"config.json: problem_type is regression with {count} outputs (num_labels); covered is one output",
            hint="Several labels at once have problem_type multi_label_classification, and classes"
            " single_label_classification.",
        )
    return Head("labels", names)


def _task_of_class(name: str, model_type: str, family: Family) -> str:
    """Return the task for which stock transformers loads a class; raise ModelError where the family has none for it."""
    classes = {task: stock_classes(task, model_type) for task in family.tasks}
    if _BODY in classes:
        classes[_BODY] += family.bodies
    for task, names in classes.items():
        if name in names:
            return task
    covered = [f"{known} ({task})" for task, names in classes.items() for known in names]
    leave = f", or set model.task: {_BODY}, which leaves the heads of {name} out" if _BODY in classes else ""
    raise ModelError(
        f"config.json: architectures names {name!r:.80}, for which there is no task here;"
        f" covered for model_type {model_type!r}: {', '.join(covered)}",
        hint=f"Take a model of a covered class{leave}.",
    )


def class_of(config: Any, family: Family, task: str) -> Any:
    """Return the class of transformers that a model is loaded with for a task: a body of its own, or the Auto class."""
    import transformers

    stated = (config.architectures or [""])[0]
    by_name = task == _BODY and stated in family.bodies and not family.own
    return getattr(transformers, stated if by_name else TASKS[task].auto_class)


def stock_classes(task: str, model_type: str) -> tuple[str, ...]:
    """Return the names of the classes that stock transformers loads models of a type with, for a task."""
    import transformers

    names = getattr(transformers, TASKS[task].auto_class)._model_mapping._model_mapping.get(model_type, ())
    return (names,) if isinstance(names, str) else tuple(names)
