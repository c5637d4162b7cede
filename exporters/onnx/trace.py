"""One call of torch's exporter, quiet and unoptimised: what follows is the work of `passes`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from compressor.errors import ModelError

BATCH, SEQUENCE, TOTAL = "batch_size", "sequence_length", "total_sequence_length"
"""Dynamic dimensions as optimum and onnxruntime-genai call them; transformers.js looks for `batch_size`."""


def trace(wrapper: nn.Module, inputs: tuple[Any, ...], dims: tuple[Any, ...], opset: int) -> ir.Model:
    """Return the graph of `wrapper(*inputs)`.

    Args:
        wrapper: a module in eval mode.
        inputs: example inputs; sizes that are dynamic must differ from 1 and from each other.
        dims: for each input the names of its dynamic dimensions, `{0: BATCH}`.
        opset: version of the ONNX operator set.

    Raises:
        ModelError: torch cannot trace or translate the module.
    """
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                wrapper, inputs, dynamo=True, dynamic_shapes=dims, opset_version=opset, optimize=False, verbose=False
            )
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise ModelError(
                f"torch could not export the model to ONNX: {type(error).__name__}: {reason[0] if reason else ''}"
            ) from error
    assert program is not None
    model: ir.Model = program.model
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's warnings about itself (missing torchvision, deprecations inside torch) from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
