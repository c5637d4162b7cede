"""A recipe carried out: run, plan, inspect."""

from __future__ import annotations

from compressor.pipeline.inspect import inspect
from compressor.pipeline.plan import plan
from compressor.pipeline.run import run

__all__ = ["inspect", "plan", "run"]
