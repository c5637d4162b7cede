"""Parity: an artifact must compute what the compressed PyTorch model computed when it was exported.

`write_reference` runs that model on seeded probe inputs of several shapes and keeps, for every real token, a seeded
choice of output columns, the sum over *all* columns with fixed signs (no column can change unnoticed), the
log-sum-exp and the winner. `check_reference` runs the artifact on the same inputs. The file stays small: at most 1024
columns, whatever the vocabulary, and fewer for the probes of many tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.architectures.tasks import TASKS
from compressor.data.kinds import Inputs
from compressor.errors import ModelError
from compressor.measure.runner import Array, Runner, read_config
from compressor.measure.scores import log_softmax
from compressor.measure.statistics import F64
from compressor.storage.grids import GridSpec
from compressor.verification.cases import (
    COLUMNS,
    Case,
    Tokens,
    cases_of,
    image_span,
    make_probe,
    positions,
    restore,
    rows_of_text,
)
from compressor.verification.choices import choices_of
from compressor.verification.companions import companion_record
from compressor.verification.outputs import (
    SAMPLES,
    check_cosines,
    check_spread,
    hands_some_on,
    has_label_sets,
    has_one_output,
    row_cosines,
    same_labels,
)
from compressor.verification.reference_file import VERSION, read_reference
from compressor.verification.samples import clipping, draw
from compressor.verification.tables import table_record
from compressor.verification.tolerances import TOLERANCES, Tolerance
from compressor.verification.verdict import Check, bounded, failed, yes

NEW_TOKENS = 24
_MUCH_OUTSIDE = 0.001
_NO_GRIDS: Mapping[str, GridSpec] = MappingProxyType({})
_ROWS = 64


@dataclass(frozen=True)
class _Rows:
    """Outputs of all real tokens of a case, reduced: values [N, C], projection [N], logsumexp [N], argmax, margin."""

    values: Array
    projection: Array
    logsumexp: Array
    argmax: NDArray[np.int64]
    margin: Array


def write_reference(
    runner: Runner,
    path: Path,
    *,
    seed: int = 0,
    samples: Inputs | None = None,
    calibration: Inputs | None = None,
    grids: Mapping[str, GridSpec] = _NO_GRIDS,
    companions: bool = True,
) -> None:
    """Run the compressed PyTorch model on the probes and write the file `path`.

    Args:
        runner: usually `TorchRunner(folder)` on the compressed weights, or with `model=` on the module in memory.
        path: the file to write; its folder is made.
        seed: of the probes.
        samples: a batch of real inputs, to be one of the probes.
        calibration: what the other probes are drawn from (see `compressor.verification.samples`); None for noise.
        grids: of the weights, whose calibrated ranges are compared with what the probes give; of a `TorchRunner`.
        companions: whether to record what the other files in the runner's folder say and do.

    Raises:
        ModelError: an output of the model is not finite, or its tokenizer or image processor cannot be used.
    """
    from safetensors.numpy import save

    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    outside: dict[str, float] = {}
    cases, tokens = cases_of(runner), Tokens(runner, rng)
    if has_one_output(runner):  # an order takes more samples than the other probes have
        by_token = runner.inputs == "tokens"
        cases = (*cases, Case("scores", 32, (min(16, positions(runner)),) if by_token else ()))
    if samples is not None:
        cases = (*cases, Case(SAMPLES, len(samples["input_ids"]), (samples["input_ids"].shape[1],)))
    for case in cases:
        if samples is not None and case.name == SAMPLES:
            probe = samples
        else:
            probe = make_probe(runner, case, tokens, rng)
            probe = probe if calibration is None else draw(probe, calibration, rng)
        inputs = restore(probe)
        module = getattr(runner, "module", None)
        with clipping(module, grids) as clipped, choices_of(module if runner.inputs == "pixels" else None) as choices:
            outputs = _run(runner, case, inputs)
        outside[case.name] = clipped.share
        if not np.isfinite(outputs).all():
            raise ModelError(f"{runner.folder}: the compressed model gives NaN or infinite outputs (probe {case.name})")
        key = _columns_key(case)
        if key not in tensors:
            width = outputs.shape[-1]
            tensors[key] = np.sort(rng.permutation(width)[:COLUMNS]).astype(np.int64)
        rows = _reduce(outputs, inputs.get("attention_mask"), case.chosen(tensors[key]))
        tensors |= {f"{case.name}.input.{name}": np.asarray(value) for name, value in probe.items()}
        tensors |= {f"{case.name}.{name}": value for name, value in vars(rows).items()}
        tensors |= choices.tensors(case.name) if not case.pooled else {}
    if runner.task == "text-generation":
        prompt = tokens.take(3, 8)
        made, margins = _greedy(runner, prompt, max(1, min(NEW_TOKENS, positions(runner) - 8)))
        tensors |= {"greedy.prompt": prompt, "greedy.tokens": made, "greedy.margin": margins}
    facts: dict[str, Any] = {"version": VERSION, "task": runner.task, "cases": [asdict(case) for case in cases]}
    if grids:
        facts["outside"] = outside
    if companions:
        facts["companions"] = companion_record(runner.folder, runner.inputs)
        tensors |= table_record(runner)
    # One metadata key only: the order of several is not deterministic.
    arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(save(arrays, metadata={"reference": json.dumps(facts)}))


def check_reference(runner: Runner, path: Path, precision: str = "float32", *, group: str = "parity") -> list[Check]:
    """Compare an artifact with its reference at the tolerance of its precision; `group` names the checks."""
    try:
        tensors, facts = read_reference(path)
        tolerance = TOLERANCES[precision]
    except ModelError as error:
        return [failed(f"{group}.reference", error)]
    except KeyError:
        known = ", ".join(TOLERANCES)
        return [yes(f"{group}.precision", False, f"precision {precision!r} is unknown; there are {known}")]
    if facts["task"] != runner.task:
        return [yes(f"{group}.task", False, f"the reference is for {facts['task']}, the artifact for {runner.task}")]
    checks: list[Check] = []
    winners: list[Any] = []
    compared: dict[str, tuple[Array, Array]] = {}
    cosines: dict[Case, F64] = {}
    for entry in facts["cases"]:
        case = Case(**{**entry, "chunks": tuple(entry["chunks"])})
        if case.padding == "left" and not runner.left_padding:
            continue  # documented limit of GroupQueryAttention: such graphs take right padding only
        if case.pixels == "noise" and precision == "int8-static":
            continue  # no image of the calibration data is like that; `parity.exact` compares it without rounding
        try:
            checks += _check_case(runner, case, tensors, tolerance, group, winners, compared, cosines)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
            checks.append(failed(f"{group}.{case.name}", error))
    if tolerance.cosine is not None and cosines:
        checks += check_cosines(cosines, tolerance.cosine, _clipped(facts.get("outside"), cosines), group)
    if winners:  # of all probes together: a short one has too few tokens for a share
        share = float(np.concatenate(winners).astype(np.float64).mean())
        checks.append(bounded(f"{group}.argmax", share, least=tolerance.agreement, why="other tokens or classes win"))
    checks += check_spread(compared, precision, group)
    if runner.task == "text-generation" and tolerance.greedy:
        try:
            checks.append(_check_greedy(runner, tensors, f"{group}.greedy"))
        except Exception as error:
            checks.append(failed(f"{group}.greedy", error))
    return checks


def check_determinism(runner: Runner, path: Path) -> Check:
    """Check that the same input gives the same bits twice."""
    try:
        tensors, facts = read_reference(path)
        entry = facts["cases"][-1]
        inputs = restore(
            {k.split(".input.")[1]: v for k, v in tensors.items() if k.startswith(f"{entry['name']}.input.")}
        )
        first, second = runner.forward(inputs), runner.forward(inputs)
    except Exception as error:
        return failed("determinism.bits", error)
    return yes("determinism.bits", first.tobytes() == second.tobytes(), "the same input gave different outputs twice")


def _clipped(shares: Any, cases: Iterable[Case]) -> str:
    """Return what is known of inputs outside of calibrated ranges, where it may be the reason of a difference."""
    found = [shares.get(case.name) for case in cases] if isinstance(shares, dict) else []
    share = max((share for share in found if isinstance(share, float)), default=0.0)
    if share < _MUCH_OUTSIDE:
        return ""
    return (
        f"up to {share:.1%} of the inputs of its 8-bit products lie outside of the ranges that were calibrated;"
        " calibrate on more samples, or with method: minmax"
    )


def _check_case(
    runner: Runner,
    case: Case,
    tensors: dict[str, NDArray[Any]],
    tolerance: Tolerance,
    group: str,
    winners: list[Any],
    compared: dict[str, tuple[Array, Array]],
    cosines: dict[Case, F64],
) -> list[Check]:
    """Compare one probe; what is judged over all probes goes to `winners`, `compared` (no winner) and `cosines`."""
    prefix = f"{case.name}.input."
    inputs = restore({name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)})
    wanted = _Rows(**{name: tensors[f"{case.name}.{name}"] for name in _Rows.__dataclass_fields__})
    name = f"{group}.{case.name}"
    outputs = _run(runner, case, inputs)
    columns = case.chosen(tensors[_columns_key(case)])
    if outputs.shape[-1] <= int(columns.max()):
        return [yes(name, False, f"the artifact has {outputs.shape[-1]} outputs per token, the reference more")]
    found = _reduce(outputs, inputs.get("attention_mask"), columns)
    if found.values.shape != wanted.values.shape:
        return [yes(name, False, f"outputs have shape {found.values.shape}, reference {wanted.values.shape}")]
    if tolerance.cosine is not None and (span := image_span(read_config(runner.folder))) is not None:
        text = rows_of_text(case, span)
        found, wanted = (
            _Rows(**{name: values[text] for name, values in vars(rows).items()}) for rows in (found, wanted)
        )
    scale = max(1.0, float(np.sqrt(np.mean(np.square(wanted.values, dtype=np.float64)))))
    checks: list[Check] = []
    error, unit = _max_error(found, wanted), TASKS[runner.task].output
    if tolerance.absolute is not None:
        why = "the artifact does not compute what the exported model computed"
        checks.append(bounded(f"{name}.max_abs", error, most=tolerance.absolute * scale, unit=unit, why=why))
    if tolerance.relative is not None:
        relative = error / max(float(np.abs(wanted.values).max()), 1e-6)
        checks.append(bounded(f"{name}.max_relative", relative, most=tolerance.relative))
    alone = int(tensors[_columns_key(case)].size) == 1
    several = unit == "logit" and has_label_sets(runner)
    if alone or several:
        compared[case.name] = found.values, wanted.values
    if not alone and tolerance.cosine is not None:
        sides = (found.values, wanted.values)
        if hands_some_on(runner):
            sides = tuple(values.reshape(case.batch, -1, values.shape[-1]).mean(axis=1) for values in sides)
        cosines[case] = row_cosines(*sides)
    tie = 2 * (tolerance.absolute or 0.0) * scale
    if several:
        winners.append(same_labels(found.values, wanted.values, tie))
    elif unit == "logit" and not alone:
        equal = (found.argmax == wanted.argmax) | (wanted.margin <= tie)
        winners.append(equal if np.isfinite(found.values).all() else np.full(equal.shape, np.nan))
    return checks


def _check_greedy(runner: Runner, tensors: dict[str, NDArray[Any]], name: str) -> Check:
    """Compare greedy continuations up to each row's first near tie, after which either one is right."""
    wanted, margin = tensors["greedy.tokens"], tensors["greedy.margin"]
    found = runner.generate(tensors["greedy.prompt"], wanted.shape[1])
    clear = np.logical_and.accumulate(margin > 2e-3, axis=1)
    wrong = int((clear & (found != wanted)).sum())
    reason = f"{wrong} of {int(clear.sum())} greedy tokens differ from the exported model's"
    return Check(name, wrong == 0, wrong, {"equal": 0}, "tokens", "" if wrong == 0 else reason)


def _columns_key(case: Case) -> str:
    """Return the name of the columns that are recorded of an output; embeddings have a width of their own."""
    return "columns.pooled" if case.pooled else "columns"


def _run(runner: Runner, case: Case, inputs: Inputs) -> Array:
    """Return the outputs [B, T, V] of all chunks, [B, T, H] of an encoder, [B, 1, C] of what is one per sample."""
    if runner.task != "text-generation":
        outputs = runner.pooled(inputs) if case.pooled else runner.forward(inputs)
        if outputs is None:
            raise ModelError("the artifact gives no pooled output")
        return outputs if outputs.ndim == 3 else outputs[:, None]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if len(case.chunks) == 1:
        return runner.forward(inputs)
    past, start, parts = None, 0, []
    for size in case.chunks:
        end = start + size
        part, past = runner.extend({"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}, past)
        parts.append(part)
        start = end
    return np.concatenate(parts, axis=1)


def _reduce(outputs: Array, mask: NDArray[Any] | None, columns: NDArray[Any]) -> _Rows:
    per_token = mask is not None and outputs.shape[1] == mask.shape[1]
    rows = outputs[mask > 0] if mask is not None and per_token else outputs.reshape(-1, outputs.shape[-1])
    # In parts: float64 copies of the logits of all tokens would take gigabytes where the vocabulary is large.
    parts = [_reduce_rows(rows[start : start + _ROWS], columns) for start in range(0, len(rows), _ROWS)]
    return _Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _reduce_rows(rows: Array, columns: NDArray[Any]) -> _Rows:
    wide = rows.astype(np.float64)
    width = wide.shape[1]
    top = np.partition(wide, [-2, -1] if width > 1 else [-1], axis=1)[:, -2:]
    logsumexp = (wide - log_softmax(rows))[:, 0]
    return _Rows(
        values=np.ascontiguousarray(rows[:, columns]),
        projection=(wide @ _signs(width) / np.sqrt(width)).astype(np.float32),
        logsumexp=logsumexp.astype(np.float32),
        argmax=wide.argmax(axis=1).astype(np.int64),
        margin=(top[:, -1] - top[:, 0]).astype(np.float32),
    )


def _signs(width: int) -> F64:
    """Return +1 and -1 for every column, from a fixed hash (Knuth's multiplicative one), not from a random stream."""
    hashed = (np.arange(width, dtype=np.uint64) * np.uint64(2654435761)) >> np.uint64(17)
    return np.asarray((hashed & np.uint64(1)).astype(np.float64) * 2.0 - 1.0)


def _max_error(found: _Rows, wanted: _Rows) -> float:
    """Return the largest difference over columns, projection and log-sum-exp; NaN if an output is not finite."""
    pairs = [(found.values, wanted.values), (found.projection, wanted.projection), (found.logsumexp, wanted.logsumexp)]
    return float(np.max([np.max(np.abs(a.astype(np.float64) - b)) for a, b in pairs]))


def _greedy(runner: Runner, prompt: NDArray[Any], tokens: int) -> tuple[NDArray[np.int64], Array]:
    """Return greedy tokens [B, N] and how far each led the runner-up [B, N]."""
    made: list[NDArray[np.int64]] = []
    margins: list[Array] = []
    step, past = prompt, None
    for count in range(tokens):
        mask = np.ones((len(prompt), prompt.shape[1] + count), np.int64)
        logits, past = runner.extend({"input_ids": step, "attention_mask": mask}, past)
        top = np.sort(logits[:, -1], axis=1)[:, -2:]
        step = logits[:, -1].argmax(axis=1)[:, None].astype(np.int64)
        made.append(step)
        margins.append((top[:, 1:] - top[:, :1]).astype(np.float32))
    return np.concatenate(made, axis=1), np.concatenate(margins, axis=1)
