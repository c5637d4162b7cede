"""Parity: an artifact must compute what the compressed PyTorch model computed when it was exported.

`write_reference` runs that model on seeded probe inputs of several shapes and keeps, for every real token, a seeded
choice of output columns, the sum over *all* columns with fixed signs (no column can change unnoticed), the
log-sum-exp and the winner. `check_reference` runs the artifact on the same inputs. The file stays small: at most 1024
columns, whatever the vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.architectures.tasks import TASKS
from compressor.data.kinds import Inputs
from compressor.errors import ModelError
from compressor.measure.benchmark import image_shape
from compressor.measure.runner import Array, Runner, read_config
from compressor.measure.scores import log_softmax
from compressor.measure.statistics import F64
from compressor.verification.outputs import SAMPLES, check_spread, has_label_sets, has_one_output, same_labels
from compressor.verification.verdict import Check, bounded, failed, yes

COLUMNS = 1024
NEW_TOKENS = 24
_IMAGE_BLOCKS = (16, 14, 8, 7, 4, 2, 1)


@dataclass(frozen=True)
class Case:
    """One probe.

    Attributes:
        name: part of the check's name.
        batch: samples.
        chunks: tokens of the successive calls; more than one means a key-value cache in between. Empty for images.
        padding: `none`, `right` or `left`; rows are then padded by different amounts.
    """

    name: str
    batch: int
    chunks: tuple[int, ...] = ()
    padding: str = "none"


DECODER_CASES = (
    Case("prefill", 1, (7,)),
    Case("batch", 3, (19,)),
    Case("padding", 2, (12,), "right"),
    Case("chunked", 1, (9, 5)),
    Case("decode", 2, (6, 1, 1, 1, 1)),
    Case("left_padding", 2, (8, 1, 1, 1), "left"),
)
ENCODER_CASES = (Case("short", 1, (5,)), Case("batch", 3, (31,)), Case("padding", 2, (16,), "right"))
IMAGE_CASES = (Case("single", 1), Case("batch", 3))


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from its reference at one precision (EXPORT.md, verification defaults).

    Attributes:
        absolute: largest difference, for outputs of unit scale.
        relative: largest difference over the largest output.
        cosine: smallest mean and minimum cosine between output rows.
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


@dataclass(frozen=True)
class _Rows:
    """Outputs of all real tokens of a case, reduced: values [N, C], projection [N], logsumexp [N], argmax, margin."""

    values: Array
    projection: Array
    logsumexp: Array
    argmax: NDArray[np.int64]
    margin: Array


def write_reference(runner: Runner, path: Path, *, seed: int = 0, samples: Inputs | None = None) -> None:
    """Run the compressed PyTorch model on the probes and write the file `path`.

    Args:
        runner: usually `TorchRunner(folder)` on the compressed weights, or with `model=` on the module in memory.
        path: the file to write; its folder is made.
        seed: of the probes.
        samples: a batch of real inputs, to be one of the probes.

    Raises:
        ModelError: an output of the model is not finite.
    """
    from safetensors.numpy import save

    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    cases = _cases_of(runner)
    if has_one_output(runner):  # an order takes more samples than the other probes have
        by_token = TASKS[runner.task].inputs == "tokens"
        cases = (*cases, Case("scores", 32, (min(16, _positions(runner)),) if by_token else ()))
    if samples is not None:
        cases = (*cases, Case(SAMPLES, len(samples["input_ids"]), (samples["input_ids"].shape[1],)))
    for case in cases:
        inputs = samples if samples is not None and case.name == SAMPLES else _probe(runner, case, rng)
        outputs = _run(runner, case, inputs)
        if not np.isfinite(outputs).all():
            raise ModelError(f"{runner.folder}: the compressed model gives NaN or infinite outputs (probe {case.name})")
        if "columns" not in tensors:
            width = outputs.shape[-1]
            tensors["columns"] = np.sort(rng.permutation(width)[:COLUMNS]).astype(np.int64)
        rows = _reduce(outputs, inputs.get("attention_mask"), tensors["columns"])
        tensors |= {f"{case.name}.input.{name}": np.asarray(value) for name, value in _stored(inputs).items()}
        tensors |= {f"{case.name}.{name}": value for name, value in vars(rows).items()}
    if runner.task == "text-generation":
        prompt = _probe(runner, Case("greedy", 3, (8,)), rng)["input_ids"]
        tokens, margins = _greedy(runner, prompt, _fitting(runner, NEW_TOKENS))
        tensors |= {"greedy.prompt": prompt, "greedy.tokens": tokens, "greedy.margin": margins}
    facts = {"version": 1, "task": runner.task, "cases": [asdict(case) for case in cases]}
    # One metadata key only: the order of several is not deterministic.
    arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(save(arrays, metadata={"reference": json.dumps(facts)}))


def check_reference(runner: Runner, path: Path, precision: str = "float32", *, group: str = "parity") -> list[Check]:
    """Compare an artifact with its reference at the tolerance of its precision; `group` names the checks."""
    try:
        tensors, facts = _read(path)
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
    for entry in facts["cases"]:
        case = Case(**{**entry, "chunks": tuple(entry["chunks"])})
        if case.padding == "left" and not runner.left_padding:
            continue  # documented limit of GroupQueryAttention: such graphs take right padding only
        try:
            checks += _check_case(runner, case, tensors, tolerance, group, winners, compared)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
            checks.append(failed(f"{group}.{case.name}", error))
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
        tensors, facts = _read(path)
        entry = facts["cases"][-1]
        inputs = _restore(
            {k.split(".input.")[1]: v for k, v in tensors.items() if k.startswith(f"{entry['name']}.input.")}
        )
        first, second = runner.forward(inputs), runner.forward(inputs)
    except Exception as error:
        return failed("determinism.bits", error)
    return yes("determinism.bits", first.tobytes() == second.tobytes(), "the same input gave different outputs twice")


def _check_case(
    runner: Runner,
    case: Case,
    tensors: dict[str, NDArray[Any]],
    tolerance: Tolerance,
    group: str,
    winners: list[Any],
    compared: dict[str, tuple[Array, Array]],
) -> list[Check]:
    """Compare one probe; whether winners are the reference's goes to `winners`, outputs without one to `compared`."""
    prefix = f"{case.name}.input."
    inputs = _restore({name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)})
    wanted = _Rows(**{name: tensors[f"{case.name}.{name}"] for name in _Rows.__dataclass_fields__})
    name = f"{group}.{case.name}"
    outputs = _run(runner, case, inputs)
    if outputs.shape[-1] <= int(tensors["columns"].max()):
        return [yes(name, False, f"the artifact has {outputs.shape[-1]} outputs per token, the reference more")]
    found = _reduce(outputs, inputs.get("attention_mask"), tensors["columns"])
    if found.values.shape != wanted.values.shape:
        return [yes(name, False, f"outputs have shape {found.values.shape}, reference {wanted.values.shape}")]
    scale = max(1.0, float(np.sqrt(np.mean(np.square(wanted.values, dtype=np.float64)))))
    checks = []
    error = _max_error(found, wanted)
    unit = TASKS[runner.task].output
    if tolerance.absolute is not None:
        why = "the artifact does not compute what the exported model computed"
        checks.append(bounded(f"{name}.max_abs", error, most=tolerance.absolute * scale, unit=unit, why=why))
    if tolerance.relative is not None:
        relative = error / max(float(np.abs(wanted.values).max()), 1e-6)
        checks.append(bounded(f"{name}.max_relative", relative, most=tolerance.relative))
    alone = int(tensors["columns"].size) == 1
    several = unit == "logit" and has_label_sets(runner)
    if alone or several:
        compared[case.name] = found.values, wanted.values
    if not alone and tolerance.cosine is not None:
        cosine = _cosine(found.values, wanted.values)
        checks.append(bounded(f"{name}.cosine", float(cosine.mean()), least=tolerance.cosine[0]))
        checks.append(bounded(f"{name}.cosine_min", float(cosine.min()), least=tolerance.cosine[1]))
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


def _cases_of(runner: Runner) -> tuple[Case, ...]:
    if TASKS[runner.task].inputs == "pixels":
        return IMAGE_CASES
    cases = DECODER_CASES if runner.task == "text-generation" else ENCODER_CASES
    limit = _positions(runner)
    fitting = tuple(case for case in cases if sum(case.chunks) <= limit)
    if not fitting:
        raise ModelError(f"{runner.folder}: {limit} positions are too few for a probe")
    return fitting


def _positions(runner: Runner) -> int:
    config = read_config(runner.folder)
    # RoBERTa-style positions start after the padding id.
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 20) - 2


def _fitting(runner: Runner, tokens: int) -> int:
    return max(1, min(tokens, _positions(runner) - 8))


def _probe(runner: Runner, case: Case, rng: np.random.Generator) -> Inputs:
    config = read_config(runner.folder)
    if TASKS[runner.task].inputs == "pixels":
        channels, height, width = image_shape(runner.folder)
        # Seeded noise in blocks: 100 times smaller on disk than pixels, and closer to an image than white noise.
        block = next(b for b in _IMAGE_BLOCKS if height % b == 0 and width % b == 0)
        small = rng.standard_normal((case.batch, channels, height // block, width // block)).astype(np.float32)
        return {"pixel_values": small.repeat(block, axis=2).repeat(block, axis=3)}
    length = sum(case.chunks)
    ids = rng.integers(0, int(config.get("vocab_size") or 2), (case.batch, length), dtype=np.int64)
    mask = np.ones_like(ids)
    for row in range(1, case.batch):
        # Half of the first chunk: a padded row keeps real tokens in every call.
        cut = case.chunks[0] // 2 + row - 1
        if case.padding == "right":
            mask[row, length - cut :] = 0
        elif case.padding == "left":
            mask[row, :cut] = 0
    inputs: Inputs = {"input_ids": ids, "attention_mask": mask}
    if int(config.get("type_vocab_size") or 0) > 1 and runner.task != "text-generation":
        inputs["token_type_ids"] = (np.arange(length)[None].repeat(case.batch, 0) >= length // 2).astype(np.int64)
    return inputs


def _stored(inputs: Inputs) -> Inputs:
    """Return the inputs in the form that goes to disk: images without the repeats of their blocks."""
    if "pixel_values" not in inputs:
        return inputs
    pixels = inputs["pixel_values"]
    height, width = pixels.shape[2:]
    block = next(b for b in _IMAGE_BLOCKS if height % b == 0 and width % b == 0)
    return {"blocks": pixels[:, :, ::block, ::block], "block": np.asarray([block], np.int64)}


def _restore(stored: Inputs) -> Inputs:
    if "blocks" not in stored:
        return stored
    block = int(stored["block"][0])
    return {"pixel_values": stored["blocks"].repeat(block, axis=2).repeat(block, axis=3)}


def _run(runner: Runner, case: Case, inputs: Inputs) -> Array:
    """Return the outputs [B, T, V] of all chunks, [B, T, H] of an encoder, or [B, 1, C] of a classifier."""
    if runner.task != "text-generation":
        outputs = runner.forward(inputs)
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
    wide = rows.astype(np.float64)
    width = wide.shape[1]
    top = np.sort(wide, axis=1)[:, -2:]
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


def _cosine(a: Array, b: Array) -> F64:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    scale = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.asarray((a64 * b64).sum(axis=1) / np.where(scale > 0, scale, np.nan), dtype=np.float64)


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


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    import safetensors

    if not path.is_file():
        raise ModelError(f"{path.parent.name}/{path.name} is missing: nothing tells what the exported model computed")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as handle:
            facts = json.loads(handle.metadata()["reference"])
            return {name: handle.get_tensor(name) for name in handle.keys()}, facts  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
