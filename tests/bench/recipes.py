"""The shipped recipes, run as they are where their model is here; their headers then state what came out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.bench.harness import REPOSITORY, Context, Row, drop
from tests.bench.pages import recipe_header
from tests.bench.quality import describe, image_folders, minilm

SUITE = "recipes"
_TEXT = {"calibration.data": "text/wikitext2-train.txt", "evaluation.data": "text/wikitext2-valid.txt"}
_LONG = {"evaluation.data": "text/wikitext2-valid.txt"}
_PAIRS = {"calibration.data": "sts/stsb-en-train.csv", "evaluation.data": "sts/stsb-en-dev.csv"}


def run(context: Context) -> Row:
    """Run every recipe that can be run here."""
    from compressor._shipped import shipped

    rows: list[Row] = []
    skipped: list[Row] = []
    planned: list[list[str]] = []
    for name, recipe in shipped().items():
        try:
            model, overrides = _stand_in(context, recipe.path)
        except FileNotFoundError as error:
            skipped.append({"what": name, "reason": str(error)})
            continue
        planned.append([_label(model), name])
        if re.search(context.only or "", name):
            measured = _run(context, name, recipe.path, model, overrides)
            rows.append({"recipe": name, "pass": name, "model": _label(model), **measured})
    return {"settings": [], "rows": rows, "skipped": skipped, "planned": planned}


def rewrite_headers(result: Row) -> list[str]:
    """Rewrite the headers of the recipes that ran and were verified; return their names."""
    from compressor._shipped import shipped

    done = []
    for row in result["rows"]:
        if row.get("verdict") != "passed" or "environment" in row:  # of an earlier run, whose header stands
            continue
        path = shipped()[row["recipe"]].path
        path.write_text(recipe_header(path.read_text(encoding="utf-8"), row, result["environment"]), encoding="utf-8")
        done.append(row["recipe"])
    return done


def _label(model: str | None) -> str:
    return "the packaged demo model" if model is None else "MiniLM" if "minilm" in model else Path(model).name


def _run(context: Context, name: str, path: Path, model: str | None, overrides: list[str]) -> Row:
    slug = name.replace("/", "-")
    out = context.folder(SUITE) / f"artifact-{slug}"
    drop(out)
    quick = ["calibration.samples=16", "evaluation.samples=16"] if context.quick else []
    spec = {"file": str(path), "model": model, "out": str(out), "overrides": overrides + quick}
    done = context.step(SUITE, slug, "pipeline", spec)
    drop(out)
    if "error" in done:
        return describe(done)
    return {**describe(done), "total_seconds": done["seconds"]["total"]}


def _stand_in(context: Context, path: Path) -> tuple[str | None, list[str]]:
    """Return the model for `-m` and the overrides that put real data in the place of the reader's own.

    Raises:
        FileNotFoundError: the model is not here, with the reason.
    """
    stated = _yaml(path)
    model = (stated.get("model") or {}).get("id")
    if model == "demo":
        return None, []
    if context.data is None:
        raise FileNotFoundError("its model is not here, nor the folder of real models and data (COMPRESSOR_TEST_DATA)")
    if "prompts" in (stated.get("evaluation") or {}):
        raise FileNotFoundError(f"its model {model} is not here, nor another of two towers to stand in")
    if "llava" in str(model).lower():
        raise FileNotFoundError(f"its model {model} is not here; the small one is measured by tests.bench.llava")
    kind = path.relative_to(REPOSITORY / "recipes").as_posix().lower()
    if any(word in kind for word in ("minilm", "bert", "encoder", "sentence")):
        return str(minilm()), _overrides(context, _LONG if kind.startswith("tokens/") else _PAIRS)
    if any(word in kind for word in ("vit", "deit", "image")):
        calibration, held_out, count = image_folders(context, context.data / "images")
        stated = [f"calibration.data={calibration}", f"evaluation.data={held_out}", f"calibration.samples={count}"]
        return str(context.data / "models/vit-tiny-patch16-224-imagenet1k"), stated
    wanted = context.data / "models" / "llama-wt2"
    if not wanted.is_dir():
        raise FileNotFoundError(f"its model {model} is not here, nor llama-wt2 to stand in")
    return str(wanted), _overrides(context, _TEXT)


def _overrides(context: Context, data: dict[str, str]) -> list[str]:
    assert context.data is not None
    return [f"{key}={context.data / value}" for key, value in data.items()]


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    value: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return value
