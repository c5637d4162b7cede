"""Puts `exporters/` and `recipes/` inside the package, in wheels only.

The static `force-include` table would copy both into site-packages in an editable install as well, where the copies
grow stale unseen; there, `compressor/__init__.py` finds them beside the package.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("exporters", "recipes")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the folders that the package shows as its own."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Include the folders unless this is an editable install (`version` is then "editable")."""
        if version == "standard":
            build_data["force_include"].update({name: f"compressor/{name}" for name in FOLDERS})
