"""Modules that are imported when they are first used.

Recipe validation and `--help` need the names and options of every method but none of their mathematics. A method's file
therefore binds torch through `lazy`, and importing it costs nothing until a tensor is touched.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _LazyModule(ModuleType):
    """Stands in for a module; is never put into `sys.modules`, so it cannot shadow the real one."""

    def __getattr__(self, item: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), item)
        self.__dict__[item] = value
        return value


def lazy(name: str) -> Any:
    """Return a stand-in for module `name` that imports it at the first attribute access."""
    return _LazyModule(name)
