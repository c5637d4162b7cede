"""Graphs as torch has traced them, no model twice: a trace takes seconds, and most tests are about other things.

A trace depends on the modules of a model, the shapes and types of its parameters and the options; it does not look at
what the parameters hold. Two models for which all this is equal get copies of one trace. Tests of the tracing itself
trace anew (`tests/exporters/conftest.py`).
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

Trace = Callable[..., ir.Model]
_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_NOT_TRACED = ("_name_or_path", "compression_grids")
"""Entries of config.json that say where a model lies, and how weights are rounded once the graph is there."""
_kept: dict[str, ir.Model] = {}


def signature(model: nn.Module, **options: Any) -> str | None:
    """Return what a trace of `model` depends on; None where that cannot be told."""
    modules = [
        (name, type(part), [(key, _shown(v)) for key, v in sorted(vars(part).items()) if key not in _OF_ALL_MODULES])
        for name, part in model.named_modules()
    ]
    parameters = [(name, p.shape, p.dtype) for name, p in model.named_parameters(remove_duplicate=False)]
    buffers = [(name, _shown(b)) for name, b in model.named_buffers()]
    found = repr((modules, parameters, buffers, sorted(options.items())))
    # An address says nothing of what is there, and is used again.
    return None if " at 0x" in found else found


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return repr((value.shape, value.dtype, hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()))
    if isinstance(value, PretrainedConfig):
        entries = {key: entry for key, entry in value.to_dict().items() if key not in _NOT_TRACED}
        return f"{type(value)} {json.dumps(entries, sort_keys=True, default=repr)}"
    if hasattr(value, "__qualname__") and not getattr(value, "__closure__", None) and not hasattr(value, "__self__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def kept(trace: Trace) -> Trace:
    """Return a function that traces like `trace`, but no model twice."""

    def trace_once(model: nn.Module, *found: Any, **options: Any) -> ir.Model:
        key = signature(model, **options)
        if key is None:
            return trace(model, *found, **options)
        if key in _kept:
            return _copy(_kept[key])
        made = trace(model, *found, **options)
        _kept[key] = _copy(made)
        gc.freeze()  # or every collection of a walk would look through all traces
        return made

    return trace_once


def _copy(graph: ir.Model) -> ir.Model:
    """Return a copy to which graph passes give the names that they give to the original."""
    made = graph.clone()
    made.graph._name_authority = copy.deepcopy(graph.graph._name_authority)
    return made


@contextmanager
def keeping_traces() -> Iterator[None]:
    """While entered, exports trace no model twice."""
    from compressor.exporters.onnx import export

    with pytest.MonkeyPatch.context() as patch:
        for name in ("trace_decoder", "trace_encoder"):
            patch.setattr(export, name, kept(getattr(export, name)))
        yield


@contextmanager
def tracing_anew() -> Iterator[None]:
    """While entered, exports trace every model."""
    from compressor.exporters.onnx import decoder, encoder, export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_decoder", decoder.trace_decoder)
        patch.setattr(export, "trace_encoder", encoder.trace_encoder)
        yield
