"""Values of a recipe as YAML text that reads back as the same values."""

from __future__ import annotations

from typing import Any

import yaml

from compressor.recipe._yaml import scalar


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this package would read as something else; PyYAML follows YAML 1.1, recipes 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that stands in two places twice: recipes have no aliases."""
        return True


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if scalar(value) == value else '"')


_Dumper.add_representer(str, _text)


def write(value: Any) -> str:
    """Return mappings, lists and scalars as YAML, in their order.

    Raises:
        yaml.YAMLError: there is a value of another type.
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text
