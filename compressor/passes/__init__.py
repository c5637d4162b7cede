"""The methods, one file each, found by looking: a module in a family's folder that defines `METHOD` is a method."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from pydantic import BaseModel

from compressor.passes.base import PASS_FAMILIES, Method


@cache
def methods() -> dict[str, Method]:
    """Return every method by name, in the order of families and then of names. Errors of an import are not caught.

    Raises:
        ValueError: two files define a method of the same name.
    """
    found: dict[str, Method] = {}
    for family in PASS_FAMILIES:
        try:
            package = importlib.import_module(f"{__name__}.{family}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{family}":
                raise
            continue
        for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda item: item.name):
            method = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "METHOD", None)
            if method is None:
                continue
            if method.name in found:
                raise ValueError(f"two methods are called {method.name!r}")
            found[method.name] = method
    return found


def method_options() -> dict[str, type[BaseModel]]:
    """Return the options model of every method by name."""
    return {name: method.Options for name, method in methods().items()}
