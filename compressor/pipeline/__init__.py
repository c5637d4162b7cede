"""What the commands do, as functions: a recipe carried out or foreseen, a folder looked at and judged."""

from __future__ import annotations

from compressor.pipeline.alone import bench, evaluate
from compressor.pipeline.inspect import inspect
from compressor.pipeline.judge import Evaluation, verify
from compressor.pipeline.plan import plan
from compressor.pipeline.run import run

__all__ = ["Evaluation", "bench", "evaluate", "inspect", "plan", "run", "verify"]
