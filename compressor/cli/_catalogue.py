"""`compressor recipes …` and `compressor methods …`: what there is, and how to write it."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli._output import emit_json, results
from compressor.cli._run import JsonOption, SetOption
from compressor.errors import CompressorError, RecipeError, UsageError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from compressor.recipe import Recipe

recipes_app = typer.Typer(help="The shipped recipes; checking and writing your own.", no_args_is_help=True)
methods_app = typer.Typer(help="The methods that a recipe's passes can name.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@recipes_app.command("list")
def list_recipes(json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from compressor._shipped import shipped

    found = shipped().values()
    if json:
        emit_json([{"name": recipe.name, "path": recipe.path, "summary": recipe.summary} for recipe in found])
        return
    _print_table(("recipe", "what it does"), [(recipe.name, recipe.summary) for recipe in found])


@recipes_app.command("show")
def show_recipe(name: NameArgument) -> None:
    """Print a shipped recipe."""
    from compressor._shipped import find

    typer.echo(find(name).path.read_text(encoding="utf-8"), nl=False)


@recipes_app.command("copy")
def copy_recipe(
    name: NameArgument,
    to: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Where to; ./<name>.yaml if absent.")] = None,
) -> None:
    """Copy a shipped recipe, to make your own of it."""
    from compressor._shipped import find

    recipe = find(name)
    target = to or Path(recipe.path.name)
    if target.is_dir():
        target = target / recipe.path.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(recipe.path.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(f"{target}: exists already", hint="Give another file name.") from None
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from error
    typer.echo(str(target))


@recipes_app.command("validate")
def validate_recipes(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)],
    sets: SetOption = None,
) -> None:
    """Check recipes; every problem is shown with its line. Exit code 2 if one is not valid.

    What depends on the model, such as the metrics that it has, is checked by `compressor plan`.
    """
    from compressor._api import open_recipe
    from compressor.cli._errors import show_error
    from compressor.passes import methods
    from compressor.recipe import disagreements

    wrong = 0
    for name in recipes:
        try:
            parsed = open_recipe(name, sets or [])
            known = methods()
            built = [known[entry.name](entry.options) for entry in parsed.passes]
            if problems := disagreements(parsed, built):
                raise RecipeError(problems, source=parsed.source)
        except UsageError as error:
            wrong += 1
            show_error(error)
            continue
        for note in _doubts(parsed, calibrated=any(method.needs.calibration != "none" for method in built)):
            typer.echo(f"{name}: note: {note}", err=True)
        passes = " → ".join(entry.name for entry in parsed.passes) or "no passes: a plain export"
        typer.echo(f"{name}: valid: {parsed.name}: {passes}")
    if wrong:
        raise typer.Exit(UsageError.exit_code)


def _doubts(recipe: Recipe, *, calibrated: bool) -> list[str]:
    """Return what there is to say of a recipe's data, if it names any; numpy is imported only then."""
    if recipe.evaluation is None:
        return []
    from compressor.data.doubts import doubts

    return doubts(recipe, recipe.model.id, calibrated=calibrated)


@recipes_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes: every key with its description, for editors."""
    from compressor.passes import method_options, methods
    from compressor.recipe import json_schema

    summaries = {name: method.summary for name, method in methods().items()}
    typer.echo(jsonlib.dumps(json_schema(method_options(), summaries), indent=2))


@methods_app.command("list")
def list_methods(json: JsonOption = False) -> None:
    """List the methods."""
    from compressor.passes import methods

    found = methods().values()
    if json:
        emit_json([{"name": m.name, "family": m.family, "summary": m.summary} for m in found])
        return
    _print_table(("method", "family", "what it does"), [(m.name, m.family, m.summary) for m in found])


@methods_app.command("show")
def show_method(name: NameArgument, json: JsonOption = False) -> None:
    """Show what a method does and its options."""
    from compressor.passes import methods

    method = methods().get(name)
    if method is None:
        near = did_you_mean(name, methods())
        raise UsageError(f"{name}: no such method{near}", hint="`compressor methods list` shows all.")
    options = method.Options.model_json_schema()
    if json:
        emit_json({"name": method.name, "family": method.family, "summary": method.summary, "options": options})
        return
    typer.echo(f"{method.name} ({method.family})\n{method.summary}\n")
    rows = [
        (key, _type_name(field, options.get("$defs", {})), _default(method.Options, key), field.get("description", ""))
        for key, field in options.get("properties", {}).items()
    ]
    if rows:
        _print_table(("option", "type", "default", "meaning"), rows)
    else:
        typer.echo("It has no options.")


def _type_name(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return how a JSON Schema reads for people: `number, at least 0, below 1`."""
    if "$ref" in field:
        field = {**definitions[field["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in field.items() if k != "$ref"}}
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " | ".join(_type_name(member, definitions) for member in field["anyOf"])
    kind = str(field.get("type", "any"))
    if kind == "array":
        items = field.get("items")
        return f"list of {_type_name(items, definitions)}" if isinstance(items, dict) else "list"
    names = {"string": "text", "boolean": "true | false", "null": "nothing", "object": "mapping"}
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {field[key]:g}" for key, word in words.items() if key in field]
    return ", ".join([names.get(kind, kind), *limits])


def _default(options: type[BaseModel], key: str) -> str:
    field = options.model_fields.get(key)
    if field is None or field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None else str(value)


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        raise CompressorError("nothing to list: the installation is not complete", hint="Install compressor again.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for position, head in enumerate(heads):
        table.add_column(head, no_wrap=position == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    results().print(table)
