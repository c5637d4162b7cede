"""Model families as small tables of paths and facts; one file per family."""

from __future__ import annotations

from typing import Any

from compressor.architectures import bert, clip, dinov2, llama, llava, opt, siglip, vit
from compressor.architectures.family import Attention, Family, FeedForward, Setting, Slot
from compressor.architectures.shapes import LayerShape, StackShapes, shapes_in, shapes_section, stock_shapes
from compressor.architectures.towers import EMBEDDINGS, GRAPHS, JOINED, PARTS, TOWERS, Joined, Tower
from compressor.errors import ModelError, brief

__all__ = [
    "Attention",
    "EMBEDDINGS",
    "FAMILIES",
    "Family",
    "FeedForward",
    "GRAPHS",
    "JOINED",
    "Joined",
    "LayerShape",
    "OWN_TYPE",
    "PARTS",
    "Setting",
    "Slot",
    "StackShapes",
    "TOWERS",
    "Tower",
    "family_named",
    "family_of",
    "read_by",
    "shapes_in",
    "shapes_section",
    "stock_shapes",
]

OWN_TYPE = "compressed_"
"""What `model_type` begins with where stock modules would compute something else: stock transformers refuses that."""

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *opt.FAMILIES,
    *bert.FAMILIES,
    *vit.FAMILIES,
    *clip.FAMILIES,
    *siglip.FAMILIES,
    *dinov2.FAMILIES,
    *llava.FAMILIES,
)


def family_of(config: Any) -> Family:
    """Return the family that covers a transformers `config`.

    Raises:
        ModelError: no family does, and the message lists those that are covered and what to add; or a setting of the
            config makes another computation of it.
    """
    family = family_named(config.model_type)
    for setting in family.settings:
        if bool(given := getattr(config, setting.key, setting.covered)) is not setting.covered:
            raise ModelError(
                f"config.json: {setting.key} is {given!r}, which means {setting.means}; {family.name} is covered with"
                f" {setting.key} {str(setting.covered).lower()}"
            )
    if family is opt.OPT:
        return opt.as_configured(family, config)
    return dinov2.as_configured(family, config) if family in dinov2.FAMILIES else family


def read_by(tower: Tower) -> str:
    """Return what a tower reads, `pixels` or `tokens`; a language model of any kind reads tokens."""
    return "tokens" if tower.model_type is None else family_named(tower.model_type).inputs


def family_named(model_type: Any) -> Family:
    """Return the table that covers a `model_type` of config.json.

    Raises:
        ModelError: no table does; the message lists those that are covered and what to add.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    covered = ", ".join(sorted((*TOWERS, *(kind for family in FAMILIES for kind in family.model_types))))
    raise ModelError(
        f"model_type {brief(model_type)} in config.json is not covered; covered are: {covered}",
        hint="A new family is one table in compressor/architectures/ (see CONTRIBUTING.md, 'Add an architecture').",
    )
