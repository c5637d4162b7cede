"""The part of `report.json` that says what is kept of image tokens, and what all its parts have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    """Common settings: immutable, finite numbers only, unknown keys kept."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())


_Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})*$", max_length=1 << 16)]


class KeptImage(Part):
    """An evaluation image, and what is left of its patches.

    Attributes:
        picture: the image, small, as a `data:` URI.
        kept: by block, one bit for each patch, row by row from the highest bit of the first byte, in hexadecimal.
    """

    picture: str = Field(pattern=r"^data:image/(?:jpeg|png);base64,[A-Za-z0-9+/=]+$", max_length=1 << 17)
    kept: list[_Hex]


class KeptTokens(Part):
    """What is left of the patches of images behind the blocks in which tokens go.

    Attributes:
        grid: patches of an image: rows and columns.
        blocks: those blocks, counted from 1 as in recipes.
        samples: evaluation images over which `shares` are taken.
        shares: by block, two hexadecimal digits for each patch, row by row: how often it is left, ff for always.
        images: those that the recipe asks for by `report.images`.
    """

    grid: tuple[Annotated[int, Field(ge=1, le=256)], Annotated[int, Field(ge=1, le=256)]]
    blocks: list[int]
    samples: int
    shares: list[_Hex]
    images: list[KeptImage] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits_the_grid(self) -> KeptTokens:
        """Refuse maps that have more or fewer patches than the grid."""
        patches = self.grid[0] * self.grid[1]
        maps = [(self.shares, 2 * patches), *((image.kept, 2 * -(-patches // 8)) for image in self.images)]
        for rows, length in maps:
            if len(rows) != len(self.blocks) or any(len(row) != length for row in rows):
                raise ValueError(f"each block needs a map of {patches} patches")
        return self
