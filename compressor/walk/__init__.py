"""The block walk: calibration runs through a model one block at a time."""

from compressor.walk.change import Change
from compressor.walk.streams import Streams
from compressor.walk.view import BlockView
from compressor.walk.walk import ChangesEnds, Walk

__all__ = ["BlockView", "Change", "ChangesEnds", "Streams", "Walk"]
