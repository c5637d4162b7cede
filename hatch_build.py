"""Puts `exporters/` and `recipes/` inside the package, in wheels only, and a subcommand where `optimum-cli` finds it.

The static `force-include` table would copy both into site-packages in an editable install as well, where the copies
grow stale unseen; there, `compressor/__init__.py` finds them beside the package. The subcommand is copied in both:
optimum looks into the folders of its namespace `optimum.commands.register`, and what it finds there only calls the
package.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("exporters", "recipes")
SUBCOMMAND = {"compressor/cli/_optimum.py": "optimum/commands/register/register_compressor.py"}


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the folders that the package shows as its own, and the subcommand of optimum-cli."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Include the subcommand, and the folders unless this is an editable install (`version` is "editable")."""
        if version == "standard":
            build_data["force_include"].update({name: f"compressor/{name}" for name in FOLDERS} | SUBCOMMAND)
        else:
            build_data["force_include_editable"].update(SUBCOMMAND)
