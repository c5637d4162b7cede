"""What a run has made, as an artifact whose manifest is sealed: of a model, or of all parts of one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.model.cost import Cost
from compressor.model.folder import ModelFolder
from compressor.model.parts import PARTS, SCALARS, image_token_of, parts_of, read_scalars
from compressor.passes.apply import fingerprint_environment
from compressor.pipeline.as_run import RECIPE, SOURCE, public, public_values, recipe_as_run
from compressor.pipeline.laid_out import join, write_config
from compressor.pipeline.prepare import Prepared
from compressor.pipeline.together import PartJob, WholeJob
from compressor.pipeline.whole import Whole
from compressor.recipe import PART
from compressor.storage.artifact import ONNX_MODEL
from compressor.storage.json_files import read_json
from compressor.storage.processor import TARGET
from compressor.verification import seal
from compressor.verification.joint import Side

ALL = ""
"""Stands for the name of a part where a model has no parts."""


@dataclass(frozen=True)
class Made:
    """What a run has made of a model, or of one of its parts.

    Attributes:
        prepared: the recipe bound to it.
        source: what the source gate found.
        compressed: the model after all passes.
        costs: theoretical costs of the dense and of the compressed model.
        entries: what each pass did.
        dense: folder of the model as it came, in the artifact's format.
        folder: with the exported files, its probes among them.
        facts: what compression.json says of it.
    """

    prepared: Prepared
    source: dict[str, Any]
    compressed: ModelFolder
    costs: tuple[Cost, Cost]
    entries: list[dict[str, Any]]
    dense: Path
    folder: Path
    facts: dict[str, Any]


def summed(costs: Sequence[tuple[Cost, Cost]]) -> tuple[Cost, Cost]:
    """Return the costs of all parts together."""
    dense, ours = (
        Cost(sum(c.parameters for c in side), sum(c.bytes for c in side), sum(c.flops for c in side))
        for side in zip(*costs, strict=True)
    )
    return dense, ours


def seal_one(made: Made) -> Path:
    """Seal the artifact of a model without parts; return its folder."""
    _write_recipe(made.prepared, made.folder)
    seal(made.folder, {**made.facts, **_run_facts(made.prepared)})
    return made.folder


def seal_whole(whole: Whole, made: Mapping[str, Made], source: Mapping[str, Any], work: Path) -> Path:
    """Join the parts to one artifact in `work` and seal it; return its folder.

    Args:
        whole: the recipe bound to all parts.
        made: what was made of each.
        source: what the source gate found of all together.
        work: folder of the run.

    Raises:
        ModelError: a file cannot be read.
        ResourceError: the disk is full.
    """
    parts = {}
    for part, one in made.items():
        write_config(one.folder, read_json(one.folder / "config.json"))
        parts[part] = seal(one.folder, one.facts)
    folder = work / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scalars = read_scalars(whole.path)
    join({part: one.folder for part, one in made.items()}, whole.path, folder, scalars)
    _write_recipe(whole, folder)
    inputs = {name: value for one in made.values() for name, value in one.facts["inputs"].items()}
    entries = [{**entry, PART: part} for part, one in made.items() for entry in one.facts["passes"]]
    seal(
        folder,
        {
            PARTS: parts,
            SCALARS: scalars,
            "precision": ", ".join(dict.fromkeys(one.facts["precision"] for one in made.values())),
            TARGET: whole.target.processor,
            "task": whole.task,
            "parameters": sum(one.facts["parameters"] for one in made.values()),
            "passes": entries,
            "inputs": inputs,
            "source": dict(source),
            **_run_facts(whole),
        },
    )
    return folder


def whole_job(whole: Whole, made: Mapping[str, Made], artifact: Path) -> WholeJob:
    """Return what is to be verified of an artifact of several graphs."""
    section = whole.recipe.evaluation
    parts = {
        part: PartJob(
            one.prepared.method_names,
            one.prepared.evaluation,
            (one.costs[0].flops, one.costs[1].flops),
            one.prepared.recipe.report.images if one.compressed.blueprint.reductions else None,
            one.prepared.prompts,
        )
        for part, one in made.items()
    }
    return WholeJob(
        artifact=artifact,
        parts=parts,
        dense=Side(
            {part: one.dense for part, one in made.items()}, read_scalars(whole.path), image_token_of(whole.path)
        ),
        bounds=whole.recipe.bounds,
        images=whole.evaluation,
        prompts=whole.prompts,
        metrics=tuple(section.metrics) if section is not None else (),
    )


def graph_of(bound: Prepared | Whole, part: str) -> str:
    """Return the file of the graph of a part; see `own_graph` for a model without parts."""
    return parts_of(bound.path)[part].graph if isinstance(bound, Whole) else own_graph(bound)


def own_graph(prepared: Prepared) -> str:
    """Return the file of the graph of a model that is compressed by itself: a part has no name of its own but one.

    A language model that embeddings are given to has the graphs that its runtimes know; as `model.ort`, which is one
    graph, it takes tokens.
    """
    tower = prepared.source.tower
    apart = tower is not None and tower.embeddings is not None and prepared.recipe.export.format == "onnx"
    return tower.graph if tower is not None and apart else ONNX_MODEL


def _write_recipe(bound: Prepared | Whole, folder: Path) -> None:
    (folder / RECIPE).write_text(recipe_as_run(bound), encoding="utf-8")
    (folder / SOURCE).write_text(bound.recipe.text, encoding="utf-8")


def _run_facts(bound: Prepared | Whole) -> dict[str, Any]:
    """Return what compression.json says of the run."""
    return {
        "model": public(bound.model_id),
        "recipe": public_values(bound),
        "seed": bound.calibration.seed if bound.calibration is not None else None,
        "versions": fingerprint_environment(),
    }
