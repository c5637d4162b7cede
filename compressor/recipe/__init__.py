"""Recipes: YAML text to a validated `Recipe`, with every problem of the text reported at once, line by line.

Nothing here knows the methods: whoever parses a recipe brings their options (`compressor.passes.methods`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compressor.errors import Problem, RecipeError, did_you_mean
from compressor.recipe._agreement import PassFacts, disagreements
from compressor.recipe._overrides import Overrides
from compressor.recipe._problems import line_of, validate
from compressor.recipe._schema import json_schema
from compressor.recipe._sections import (
    PASS_PARTS,
    Bound,
    CalibrationSection,
    EvaluationSection,
    ExportSection,
    Head,
    ModelSection,
    ReportSection,
    VerifySection,
    bounds_of,
)
from compressor.recipe._sweep import Sweep, read_sweep
from compressor.recipe._writing import write
from compressor.recipe._yaml import MAX_BYTES, Document, KeyPath, Refused, key_name, read, shown
from compressor.recipe.metrics import BOUNDS, GATES, METRICS, Bounded, Gate

__all__ = [
    "AUTO",
    "BOUNDS",
    "GATES",
    "METRICS",
    "Bound",
    "Bounded",
    "CalibrationSection",
    "Document",
    "EvaluationSection",
    "ExportSection",
    "Gate",
    "ModelSection",
    "PART",
    "PassEntry",
    "PassFacts",
    "Recipe",
    "ReportSection",
    "Sweep",
    "disagreements",
    "json_schema",
    "load_bounds",
    "load_recipe",
    "parse_bounds",
    "parse_recipe",
    "write",
]

Options = Mapping[str, type[BaseModel]]
PART, AUTO = "part", "auto"
"""Key of a pass that names the tower which it is for, and its default."""
_MAX_PASSES = 64


@dataclass(frozen=True)
class PassEntry:
    """One pass of a recipe.

    Attributes:
        name: of the method.
        options: validated, an instance of the method's options model.
        part: the tower that it is for; `auto` for all that it can be applied to.
        place: in the recipe's list of passes.
    """

    name: str
    options: BaseModel
    part: str = AUTO
    place: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return its options, and the part where one is named."""
        options: dict[str, Any] = self.options.model_dump(mode="json")
        return {**options, **({PART: self.part} if self.part != AUTO else {})}


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes:
        name: of the recipe.
        model: the model to compress.
        calibration: inputs for the passes; None when the recipe has none.
        evaluation: inputs for the comparison with the dense model; None when the recipe has none.
        passes: in order; empty for a plain export.
        export: form of the artifact.
        verify: bounds by name; without limits for a gate that is switched off.
        report: what the report shows beside figures.
        sweep: an option that is measured at other values as well; None for none.
        text: the file, verbatim, without overrides.
        source: what messages call the recipe.
        folder: where relative data paths are looked for first; None for a text that came from no file.
        overrides: the `--set` texts that were applied.
        document: the text as it was read, overrides applied; by it, problems that are found later know their lines.
        changes: the overrides, by which such problems know that they come from one.
    """

    name: str
    model: ModelSection
    calibration: CalibrationSection | None
    evaluation: EvaluationSection | None
    passes: tuple[PassEntry, ...]
    export: ExportSection
    verify: dict[str, Bound]
    report: ReportSection
    text: str
    source: str
    folder: Path | None = None
    overrides: tuple[str, ...] = ()
    sweep: Sweep | None = None
    document: Document = field(default_factory=Document, repr=False, compare=False)
    changes: Overrides = field(default_factory=lambda: Overrides(()), repr=False, compare=False)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Return a problem with the value at `path`, with its line, or the override that it comes from."""
        if path[0] == "passes" and len(path) > 1:  # of a recipe for one part some passes are left out
            path = ("passes", self.passes[int(path[1])].place, *path[2:])
        return self.changes.attribute(Problem(key_name(path), message, line_of(path, self.document)))

    def text_with(self, changes: Mapping[tuple[str, str], str]) -> str:
        """Return the recipe as YAML with overrides applied and some values replaced; the file, if it says just that.

        Args:
            changes: new values by section and key; a section is made where there is none.
        """
        content = copy.deepcopy(self.document.value)
        for (section, key), value in changes.items():
            content[section] = {**(content.get(section) or {}), key: value}
        return self.text if content == read(self.text).value else write(content)

    @property
    def bounds(self) -> dict[str, dict[str, float]]:
        """The bounds as plain `name -> {min, max}`; empty for a gate that is switched off."""
        return {name: bound.to_json() for name, bound in self.verify.items()}

    @property
    def threads(self) -> int:
        """Threads that the passes compute with."""
        return self.calibration.threads if self.calibration is not None else 1

    @property
    def variants(self) -> list[tuple[Any, Recipe]]:
        """The recipe with each value of its sweep, in place of its own, and without a sweep."""
        if (sweep := self.sweep) is None:
            return []
        kept, changed = replace(self, sweep=None), self.passes[sweep.place]
        before, after = self.passes[: sweep.place], self.passes[sweep.place + 1 :]
        return [
            (value, replace(kept, passes=(*before, replace(changed, options=options), *after)))
            for value, options in sweep.options
        ]

    @property
    def others(self) -> list[tuple[Any, Recipe]]:
        """Those of `variants` that say something else than the recipe itself."""
        return [(value, variant) for value, variant in self.variants if variant.passes != self.passes]

    def resolved(self) -> dict[str, Any]:
        """Return every value that is in effect, defaults and overrides included, as JSON values."""
        return {
            "version": 1,
            "name": self.name,
            "model": self.model.model_dump(mode="json"),
            "calibration": self.calibration.model_dump(mode="json") if self.calibration else None,
            "evaluation": self.evaluation.model_dump(mode="json") if self.evaluation else None,
            "passes": [{entry.name: entry.to_json()} for entry in self.passes],
            "export": self.export.model_dump(mode="json"),
            "verify": {name: limits or False for name, limits in self.bounds.items()},
            "sweep": self.sweep.to_json() if self.sweep is not None else None,
            "report": self.report.model_dump(mode="json"),
        }


def parse_recipe(
    text: str, *, source: str, options: Options, overrides: Sequence[str] = (), folder: Path | None = None
) -> Recipe:
    """Parse and validate a recipe.

    Args:
        text: YAML.
        source: what messages call it, usually its path.
        options: options model of every method by name.
        overrides: `key=value` texts; the values are read as YAML.
        folder: where relative data paths are looked for first.

    Raises:
        RecipeError: with all problems.
    """
    document = _read(text, source)
    if not isinstance(document.value, dict):
        given = "the recipe is empty" if document.value is None else f"expected a mapping, got {shown(document.value)}"
        raise RecipeError([Problem("", given)], source=source)
    changes = Overrides(overrides)
    changes.apply(document)
    value: dict[str, Any] = document.value
    found = list(document.problems)
    head, problems = validate(Head, {k: v for k, v in value.items() if k != "passes"}, (), document)
    found += _with_passes_allowed(problems)
    entries, problems = _passes(value, options, document)
    found += problems
    sweep = None
    if not found and isinstance(head, Head):
        sweep, problems = read_sweep(head.sweep, entries, options, document)
        found += problems
    if found or changes.problems or not isinstance(head, Head):
        attributed = [changes.attribute(problem) for problem in _once(found)]
        raise RecipeError([*attributed, *changes.problems], source=source)
    return Recipe(
        name=head.name,
        model=head.model,
        calibration=head.calibration,
        evaluation=head.evaluation,
        passes=tuple(entries),
        export=head.export,
        verify=bounds_of(head.verify),
        report=head.report,
        text=text,
        source=source,
        folder=folder,
        overrides=tuple(overrides),
        sweep=sweep,
        document=document,
        changes=changes,
    )


def load_recipe(path: Path, *, options: Options, overrides: Sequence[str] = ()) -> Recipe:
    """Read and parse a recipe file; see `parse_recipe`.

    Raises:
        RecipeError: the file cannot be read, or is no valid recipe.
    """
    text = _read_file(path)
    return parse_recipe(text, source=str(path), options=options, overrides=overrides, folder=path.resolve().parent)


def parse_bounds(text: str, *, source: str) -> dict[str, Bound]:
    """Parse bounds: the mapping of a recipe's `verify` section, alone or within a recipe (whose rest is not looked at).

    Raises:
        RecipeError: with all problems.
    """
    document = _read(text, source)
    value = document.value
    where: KeyPath = ()
    if isinstance(value, dict) and {"verify", "version"} & set(value):
        stated = value.get("verify")  # a recipe may bound nothing
        value, where = {} if stated is None else stated, ("verify",)
    section, problems = validate(VerifySection, value, where, document)
    if found := _once([*document.problems, *problems]):
        raise RecipeError(found, source=source)
    return bounds_of(section)


def load_bounds(path: Path) -> dict[str, Bound]:
    """Read and parse a file of bounds; see `parse_bounds`.

    Raises:
        RecipeError: the file cannot be read, or holds no valid bounds.
    """
    return parse_bounds(_read_file(path), source=str(path))


def _read(text: str, source: str) -> Document:
    try:
        return read(text)
    except Refused as error:
        raise RecipeError([error.problem], source=source) from error


def _read_file(path: Path) -> str:
    """Read a small UTF-8 text file, whatever the path turns out to be."""
    try:
        if path.is_fifo() and path.resolve().exists():  # the pipe of a shell's `<(command)` has no name
            problem = Problem("", "a named pipe, which nobody may ever write to: not a recipe")
            raise RecipeError([problem], source=str(path))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise RecipeError([Problem("", f"larger than {MAX_BYTES // 1024} KiB: not a recipe")], source=str(path))
        return data.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError([Problem("", f"cannot be read: {error.strerror or error}")], source=str(path)) from error
    except ValueError as error:  # UnicodeDecodeError, or a NUL in the path
        at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise RecipeError([Problem("", f"not UTF-8 text{at}: not a recipe")], source=str(path)) from error


def _passes(value: Mapping[str, Any], options: Options, document: Document) -> tuple[list[PassEntry], list[Problem]]:
    if "passes" not in value:
        message = "required, but missing: a list of methods; `passes: []` exports the model as it is"
        return [], [Problem("passes", message)]
    items = value["passes"]
    if not isinstance(items, list):
        message = f"expected a list such as `- magnitude: {{sparsity: 0.3}}`, got {shown(items)}"
        return [], [Problem("passes", message, line_of(("passes",), document))]
    if len(items) > _MAX_PASSES:
        message = f"{len(items)} methods; at most {_MAX_PASSES} are read"
        return [], [Problem("passes", message, line_of(("passes",), document))]
    entries: list[PassEntry] = []
    problems: list[Problem] = []
    for index, item in enumerate(items):
        entry, found = _pass(item, ("passes", index), options, document)
        problems += found
        if entry is not None:
            entries.append(entry)
    return entries, problems


def _pass(item: Any, where: KeyPath, options: Options, document: Document) -> tuple[PassEntry | None, list[Problem]]:
    if not isinstance(item, dict) or len(item) != 1:
        given = f"keys {', '.join(map(shown, item))}" if isinstance(item, dict) and item else shown(item)
        hint = f"; write `- {item}: {{}}`" if isinstance(item, str) and item in options else ""
        message = f"expected one method with its options, got {given}{hint}"
        return None, [Problem(key_name(where), message, line_of(where, document))]
    (name, given_options) = next(iter(item.items()))
    place = (*where, name)
    if name not in options:
        allowed = ", ".join(options) or "none"
        message = f"unknown method{did_you_mean(name, options)}; allowed: {allowed}"
        return None, [Problem(key_name(place), message, line_of(place, document))]
    given_options = {} if given_options is None else given_options
    part = AUTO
    if isinstance(given_options, dict) and PART in given_options:
        part = given_options[PART]
        given_options = {key: value for key, value in given_options.items() if key != PART}
    model, problems = validate(options[name], given_options, place, document)
    if part not in PASS_PARTS:
        message = f"{shown(part)} is no part; allowed: {', '.join(PASS_PARTS)}"
        problems = [*problems, Problem(key_name((*place, PART)), message, line_of((*place, PART), document))]
    return (PassEntry(name, model, str(part), int(where[1])) if model is not None else None), problems


def _with_passes_allowed(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems with `passes`, which `Head` does not know, in the list of allowed top-level keys."""
    fields = list(Head.model_fields)
    listed, full = ", ".join(fields), ", ".join([*fields[:5], "passes", *fields[5:]])
    return [
        Problem(p.where, p.message.replace(f"allowed: {listed}", f"allowed: {full}"), p.line)
        if p.message.startswith("unknown key")
        else p
        for p in problems
    ]


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Keep the first problem of each place: a value that cannot be read is not also reported as of the wrong type."""
    kept: dict[tuple[str, int | None], Problem] = {}
    for problem in problems:
        kept.setdefault((problem.where, problem.line), problem)
    return list(kept.values())
