"""The verdict on an artifact of several graphs: each part judged by itself, then what they do together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from compressor.data.reading import DataRequest
from compressor.errors import ModelError
from compressor.measure.benchmark import file_bytes
from compressor.model.parts import image_token_of, joined_by, parts_of, read_scalars, stated_scalars
from compressor.pipeline.laid_out import has_graphs, laid_out
from compressor.recipe import GATES
from compressor.verification import VERIFY_STEPS, Check, Job, Verdict, check_own_files, run_fresh
from compressor.verification.joint import Side, Together, measure_together
from compressor.verification.quality import check_bounds, check_gain, check_gates_met, derived
from compressor.verification.speed import elsewhere, without_speed
from compressor.verification.verdict import Bounds, failed, yes

_FORWARD = "forward"
_COSINE = "cosine"
_KEPT = "kept_tokens"
_GAIN = "gain."
_SUMMED = ("bytes", "parameters", "flops")
Advance = Callable[[str], None]


@dataclass(frozen=True)
class PartJob:
    """What is known of one part, beside its folder.

    Attributes:
        passes: methods that were applied to it.
        data: on which its embeddings are compared with the dense model's; None leaves that out.
        flops: theoretical operations of dense and ours; None when unknown.
        images: see `Job`.
        lengths: tokens of a prompt with an image, of the dense model and of ours; None for parts that read no features.
    """

    passes: tuple[str, ...] = ()
    data: DataRequest | None = None
    flops: tuple[int, int] | None = None
    images: int | None = None
    lengths: tuple[int, int] | None = None


@dataclass(frozen=True)
class WholeJob:
    """What to verify, and against what.

    Attributes:
        artifact: the folder to judge.
        parts: name -> what is known of the part.
        dense: the dense model, its parts in the same format; None leaves out what compares with it.
        bounds: the recipe's `verify` section.
        images: to be classified, or questions about images; None leaves out the quality of the whole.
        prompts: for the labels of images.
        metrics: metrics to report; empty means all.
        threads: intra-op threads for everything.
        timing: whether to time at all.
        memory: whether to measure peak memory.
    """

    artifact: Path
    parts: Mapping[str, PartJob]
    dense: Side | None = None
    bounds: Bounds = field(default_factory=dict)
    images: DataRequest | None = None
    prompts: DataRequest | None = None
    metrics: tuple[str, ...] = ()
    threads: int = 1
    timing: bool = True
    memory: bool = True

    @property
    def steps(self) -> int:
        """How often `verify_whole` tells that it has got further."""
        return VERIFY_STEPS * len(self.parts) + 1


def verify_whole(job: WholeJob, advance: Advance = lambda done: None) -> Verdict:
    """Verify an artifact of several graphs, each process of the work a fresh one.

    Checks of a part have its name in front; of what the parts do together, and of the whole folder, none.

    Raises:
        CompressorError: what `run_fresh` raises.
    """
    checks, manifest, clean = check_own_files(job.artifact)
    if not clean:
        return Verdict(tuple(checks))
    verdicts: dict[str, Verdict] = {}
    with ExitStack() as entered:
        places = {}
        for part in parts_of(job.artifact):
            try:
                places[part] = entered.enter_context(laid_out(job.artifact, part))
            except ModelError as error:
                verdicts[part] = Verdict((failed("files.present", error),))
                continue
            verdicts[part] = run_fresh(_job(job, part, places[part]), advance=advance)
        together = _together(job, manifest, places)
    advance("all parts together")
    apart = job.dense is None or job.dense.image_token is None  # else fewer tokens of one part speed up another
    checks += [replace(c, name=f"{part}.{c.name}") for part, verdict in verdicts.items() for c in verdict.checks
               if apart or not c.name.startswith(_GAIN)]  # fmt: skip
    checks += together.checks
    return _judged(job, manifest, checks, verdicts, together)


def _job(job: WholeJob, part: str, place: Path) -> Job:
    """Return the job of one part."""
    facts = job.parts.get(part, PartJob())
    return Job(
        artifact=place,
        dense=job.dense.parts[part] if job.dense is not None else None,
        bounds={name: limits for name, limits in job.bounds.items() if _of_each_part(name, limits)},
        data=facts.data,
        passes=facts.passes,
        flops=facts.flops,
        images=facts.images,
        length=facts.lengths[0] if facts.lengths is not None else None,
        shorter=facts.lengths[0] - facts.lengths[1] if facts.lengths is not None else 0,
        threads=job.threads,
        timing=job.timing,
        memory=job.memory,
    )


def _of_each_part(name: str, limits: Mapping[str, float]) -> bool:
    """Tell whether a recipe's bound is one for each part: gates on embeddings, and all that it switches off."""
    return name in GATES and (not limits or GATES[name].metric == _COSINE)


def _together(job: WholeJob, manifest: Mapping[str, Any], places: Mapping[str, Path]) -> Together:
    """Return what the parts do together, and whether they are joined as the dense model's are."""
    try:
        scalars = stated_scalars(manifest, joined_by(job.artifact).scalars)
        stored = scalars if has_graphs(job.artifact) else read_scalars(job.artifact)
        token = image_token_of(job.artifact)
    except ModelError as error:
        return Together([failed("joint.scalars", error)])
    same = stored == scalars
    checks = [] if same else [yes("joint.scalars", same, "the checkpoint holds other numbers than compression.json")]
    if job.dense is not None and same:
        wrong = [name for name, value in job.dense.scalars.items() if scalars.get(name) != value]
        reason = f"compression.json joins the parts otherwise than the dense model: {', '.join(wrong)}"
        checks.append(yes("joint.scalars", not wrong, reason))
    if job.dense is not None and token is not None:
        reason = f"config.json: token {token} stands for an image, of the dense model {job.dense.image_token}"
        checks.append(yes("joint.image_token", token == job.dense.image_token, reason))
    if job.images is None or (job.prompts is None and token is None) or len(places) < len(parts_of(job.artifact)):
        if job.images is not None:
            checks.append(yes("quality.measured", False, "quality was not measured: a part is missing"))
        return Together(checks)
    ours = Side(places, scalars, token)
    found = measure_together(ours, job.dense, job.images, job.prompts, job.bounds, job.threads)
    return replace(found, checks=[*checks, *found.checks])


def _judged(
    job: WholeJob,
    manifest: Mapping[str, Any],
    checks: list[Check],
    verdicts: Mapping[str, Verdict],
    together: Together,
) -> Verdict:
    """Put the figures of all parts together and hold them against the recipe's bounds."""
    timing = _timing({part: verdict.timing for part, verdict in verdicts.items() if verdict.timing})
    dense = _side("dense", together, verdicts, timing)
    ours = _side("compressed", together, verdicts, timing)
    ours["bytes"] = file_bytes(job.artifact)
    ratios: dict[str, Any] = {key: ours[key] / dense[key] for key in _SUMMED if ours[key] and dense[key]}
    ratios |= {"speedup": timing.get("speedup", {}), "speedup_interval": timing.get("intervals", {})}
    values = {**derived(together.ours, together.dense), **_costs(ours, ratios, timing), **_kept(verdicts)}
    bounds, away = job.bounds, elsewhere(manifest)
    if away is not None:
        bounds, more = without_speed(bounds, away, gains=False)
        checks += more
    checks += check_bounds(values, bounds)
    if away is None and job.dense is not None and job.dense.image_token is not None:
        checks += _gain(job, values, timing, bounds)
    named = [replace(check, name=check.name.removeprefix(f"{part}.")) for part in verdicts for check in checks]
    checks += check_gates_met(named, bounds)
    wanted = set(job.metrics)
    for side in (ours, dense):
        side["metrics"] = {k: v for k, v in side.get("metrics", {}).items() if not wanted or k in wanted}
    ours["metrics"] |= _kept(verdicts)
    return Verdict(
        checks=tuple(checks),
        dense=dense if job.dense is not None else {},
        compressed=ours,
        ratios=ratios if job.dense is not None else {},
        timing=timing,
        greedy=together.greedy,
        kinds=dict(together.kinds),
        kept_tokens=next((verdict.kept_tokens for verdict in verdicts.values() if verdict.kept_tokens), {}),
        seconds=sum(verdict.seconds for verdict in verdicts.values()),
        peak_memory_bytes=max(verdict.peak_memory_bytes for verdict in verdicts.values()),
    )


def _gain(job: WholeJob, values: Mapping[str, float], timing: Mapping[str, Any], bounds: Bounds) -> list[Check]:
    """Judge what compression has brought of parts that run one after the other, all together."""
    speeds = [(float(low), float(high)) for low, high in timing.get("intervals", {}).values()]
    best = max(speeds, key=lambda ends: ends[1], default=None)
    passes = [name for part in job.parts.values() for name in part.passes]
    return check_gain(values, best, passes, bounds, timed=bool(speeds))


def _kept(verdicts: Mapping[str, Verdict]) -> dict[str, float]:
    """Return the share of tokens that is kept, of the part in which some go."""
    found = (verdict.compressed.get("metrics", {}) for verdict in verdicts.values())
    return next(({_KEPT: values[_KEPT]} for values in found if _KEPT in values), {})


def _side(side: str, together: Together, verdicts: Mapping[str, Verdict], timing: Mapping[str, Any]) -> dict[str, Any]:
    """Return report.json's figures of one model: sizes are sums over the parts."""
    figures = {part: getattr(verdict, side) for part, verdict in verdicts.items()}
    index, who = (0, "ours") if side == "compressed" else (1, "other")
    return {
        **{key: _sum(figures, key) for key in _SUMMED},
        "metrics": dict(together.ours if index == 0 else together.dense),
        "intervals": dict(together.intervals[index]),
        "samples": together.samples,
        "latency_ms": timing.get("latency_ms", {}).get(who, {}),
    }


def _sum(figures: Mapping[str, Mapping[str, Any]], key: str) -> int | None:
    values = [found.get(key) for found in figures.values()]
    return sum(value for value in values if value is not None) if None not in values else None


def _timing(timings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the benchmarks of all parts as one, whose phases have the parts' names."""
    if not timings:
        return {}
    first = next(iter(timings.values()))

    def named(*keys: str) -> dict[str, Any]:
        found = {part: reduce(lambda values, key: values[key], keys, timing) for part, timing in timings.items()}
        return {phase_of(part, name): value for part, values in found.items() for name, value in values.items()}

    phases = [{**p, "name": phase_of(part, p["name"])} for part, found in timings.items() for p in found["phases"]]
    headline = first["phases"][0]["batch"]
    return {
        "threads": first["threads"],
        "rounds": first["rounds"],
        "phases": phases,
        "latency_ms": {who: named("latency_ms", who) for who in ("ours", "other")},
        "speedup": named("speedup"),
        "intervals": {p["name"]: p["speedup_interval"] for p in phases
                      if p["batch"] == headline and "speedup_interval" in p},
        "footprint": {who: _footprint([found["footprint"][who] for found in timings.values()])
                      for who in ("ours", "other")},
    }  # fmt: skip


def phase_of(part: str, name: str) -> str:
    """Return what a phase of a part is called in the figures of the whole."""
    return part if name == _FORWARD else name


def _footprint(prints: list[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the bytes of all parts together: they may all be loaded at once."""
    known = [found for found in prints if found is not None]
    if len(known) < len(prints):
        return None
    memory = [found["memory_bytes"] for found in known]
    total = sum(memory) if None not in memory else None
    return {"file_bytes": sum(found["file_bytes"] for found in known), "memory_bytes": total}


def _costs(ours: Mapping[str, Any], ratios: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float]:
    """Return what bounds on size, speed and memory are held against, by the names of those bounds."""
    named = {"size_ratio": "bytes", "parameters_ratio": "parameters", "flops_ratio": "flops"}
    values = {name: ratios[key] for name, key in named.items() if ratios.get(key) is not None}
    if ours["bytes"] is not None:
        values["bytes"] = float(ours["bytes"])
    values |= {f"latency_{phase}_ms": ms for phase, ms in timing.get("latency_ms", {}).get("ours", {}).items()}
    speedup = timing.get("speedup", {})
    if speedup:
        values |= {f"speedup_{phase}": ratio for phase, ratio in speedup.items()} | {"speedup": min(speedup.values())}
    mine, other = (timing.get("footprint", {}).get(who) or {} for who in ("ours", "other"))
    if mine.get("memory_bytes") and other.get("memory_bytes"):
        values["memory_ratio"] = mine["memory_bytes"] / other["memory_bytes"]
    return values
