"""The Jinja2 templates of the page and the card, and how values reach them.

Both are safe without a word in the template: whatever `{{ }}` prints goes through the environment's `finalize`, and in
the page through autoescape after it. A name that a template uses and nobody gave is an error, not an empty place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compressor.report import _format as show


def environment(finalize: Callable[[Any], Any], *, autoescape: bool, **filters: Callable[..., Any]) -> Environment:
    """Return an environment over the folder `templates`, in which `show` formats figures.

    Args:
        finalize: what is done to every value that a template prints.
        autoescape: whether the templates are HTML.
        filters: further filters by name.
    """
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals["show"] = show
    made.filters.update(filters)
    return made
