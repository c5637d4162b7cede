"""What a recipe may do but hardly should: the figures of such a run look better, or say less, than one thinks."""

from __future__ import annotations

from pathlib import Path, PurePath

from compressor.data.overlap import is_mostly_shared
from compressor.data.reading import DataRequest, find_data
from compressor.demo import MODEL_DIR
from compressor.errors import DataError
from compressor.recipe import Recipe


def doubts(recipe: Recipe, model: str | None, *, calibrated: bool) -> list[str]:
    """Return what the user should know before the figures of a run are believed, one sentence each.

    Args:
        recipe: the recipe.
        model: what the user calls the model, folder or hub id; None where it is not known yet.
        calibrated: whether a pass looks at the calibration data.
    """
    sections = [("calibration", recipe.calibration if calibrated else None), ("evaluation", recipe.evaluation)]
    data = {name: section.data for name, section in sections if section is not None}
    found = []
    paths = [place for name, path in data.items() if (place := _located(name, path, recipe))]
    if len(paths) == 2 and is_mostly_shared(*paths):
        ours, theirs = (PurePath(path).name for path in data.values())
        found.append(
            f"calibration.data ({ours}) and evaluation.data ({theirs}) are the same for the most part: the passes are"
            " fitted to what they are judged by, so quality looks better than it is. Evaluate on held-out data."
        )
    stories = [f"{name}.data" for name, path in data.items() if path.startswith("demo:")]
    if stories and model is not None and not _is_demo(model):
        found.append(
            f"{' and '.join(stories)}: the stories of the demo model tell little of {PurePath(model).name}. Give text"
            " of the kind that the model is for."
        )
    return found


def _is_demo(model: str) -> bool:
    return model == "demo" or Path(model).expanduser().resolve() == MODEL_DIR


def _located(name: str, path: str, recipe: Recipe) -> Path | None:
    """Return where data lies; None where it is missing, which is said elsewhere."""
    bases = (*((recipe.folder,) if recipe.folder is not None else ()), Path.cwd())
    purpose = "calibration" if name == "calibration" else "evaluation"
    try:
        return find_data(DataRequest(path, bases, None, 1, 0, purpose))  # type: ignore[arg-type]
    except DataError:
        return None
