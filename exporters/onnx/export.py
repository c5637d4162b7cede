"""Export a model to an ONNX folder: trace, attach weights, tidy, save, add the companion files."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir
import torch
from torch import nn

from compressor.errors import UsageError
from compressor.exporters.onnx.apart import embedding_apart
from compressor.exporters.onnx.decoder import Survey, survey, trace_decoder
from compressor.exporters.onnx.encoder import name_choices, trace_encoder
from compressor.exporters.onnx.genai_config import write_genai_config
from compressor.exporters.onnx.passes import tidy
from compressor.exporters.onnx.prompt import name_check, reductions_in
from compressor.exporters.onnx.quantized import Grids
from compressor.exporters.onnx.saving import save, stamp
from compressor.exporters.onnx.trace import quiet
from compressor.exporters.onnx.weights import ModuleWeights, Weights, attach, weightless
from compressor.exporters.result import ExportResult
from compressor.exporters.steps import Advance, silent
from compressor.storage.artifact import ONNX_MODEL
from compressor.storage.companions import copy_companions

if TYPE_CHECKING:
    from compressor.model.folder import ModelFolder

_WRAPPED = "model."  # the tracing wrappers call the model so
_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_IR_DTYPES = {"float32": "FLOAT", "float16": "FLOAT16"}
_OPSETS = {"gqa": 21, "portable": 20, "encoder": 20}
_HEAD_MULTIPLE = 8
_OLDEST, _NEWEST = 18, 23


@dataclass(frozen=True)
class OnnxOptions:
    """How to export.

    Attributes:
        graph: `auto` emits GroupQueryAttention for decoders (right padding only; several tokens after a past only at
            batch 1); `portable` emits plain operators, which allow any mask, batch and chunk.
        opset: version of the ONNX operator set; None for the best one (21 with GroupQueryAttention, else 20).
        dtype: type of weights, activations and cache; outputs are float32.
        arm: whether an ARM processor will run it: calibrated inputs of 8-bit products are then signed bytes, as its
            kernels take them; x86 has fast kernels for unsigned ones alone.
        name: file of the graph.
        kept_mask: whether the graph of a model in which tokens go has the output `kept_mask` (`encoder`).
        embeddings: file of the graph that embeds tokens for a decoder, which then takes their embeddings and has no
            genai_config.json; None: the decoder embeds them itself.
    """

    graph: Literal["auto", "portable"] = "auto"
    opset: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    arm: bool = False
    name: str = ONNX_MODEL
    kept_mask: bool = False
    embeddings: str | None = None


def export_onnx(
    source: ModelFolder, out: Path, options: OnnxOptions | None = None, *, advance: Advance = silent
) -> ExportResult:
    """Export a model folder, reading its weights one at a time.

    Args:
        source: the model.
        out: existing folder; receives `model.onnx` (and `model.onnx.data`), config, tokenizer and processor files, and
            `genai_config.json` for a decoder.
        options: how; None for the defaults.
        advance: told what has been done, `STEPS` times.

    Returns:
        The files, the time, and the names of inputs and outputs.

    Raises:
        ModelError: the model cannot be exported.
        UsageError: the options are impossible.
        ResourceError: the disk is full.
    """
    options = options or OnnxOptions()
    start = time.perf_counter()
    model = source.skeleton()
    graph, files, stored = _write(model, source.weights, source.task, out, options, source, advance)
    _write_config(source, out / "config.json")
    files += [out / "config.json", *copy_companions(source.path, out, source.alone_reads)]
    if source.task == "text-generation" and options.embeddings is None and not source.blueprint.layer_reductions:
        files.append(write_genai_config(source.path, source.config, graph, out))
    return replace(_result(graph, files, time.perf_counter() - start), codes=stored)


def _write_config(source: ModelFolder, out: Path) -> None:
    """Copy config.json; code that it names does not come along, so that the copy names none."""
    config = source.stated
    if config.pop("auto_map", None) is None and source.tower is None and source.trained_size is None:
        shutil.copyfile(source.path / "config.json", out)
    else:
        out.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def export_module(
    model: nn.Module,
    out: Path,
    options: OnnxOptions | None = None,
    *,
    task: str,
    weights: Weights | None = None,
) -> ExportResult:
    """Export a transformers module; the graph files alone, without tokenizer and configuration.

    Args:
        model: in eval mode; parameters may lie on the meta device when `weights` has them.
        out: existing folder.
        options: how; None for the defaults.
        task: `text-generation`, or anything else for an encoder or classifier.
        weights: where the tensors come from; None for the module itself.

    Raises:
        ModelError: the model cannot be exported.
        UsageError: the options are impossible.
        ResourceError: the disk is full.
    """
    start = time.perf_counter()
    graph, files, _ = _write(model, weights or ModuleWeights(model), task, out, options or OnnxOptions())
    return _result(graph, files, time.perf_counter() - start)


def _write(
    model: nn.Module,
    weights: Weights,
    task: str,
    out: Path,
    options: OnnxOptions,
    grids: Grids | None = None,
    advance: Advance = silent,
) -> tuple[ir.Model, list[Path], dict[str, list[str]]]:
    if options.dtype not in _DTYPES:
        raise UsageError(f"export to ONNX in {options.dtype} is not covered; allowed: {', '.join(_DTYPES)}")
    if grids is not None and grids.grids and options.dtype != "float32":
        raise UsageError(f"export.dtype: scales of quantized weights are float32, given {options.dtype}; leave it auto")
    dtype = _DTYPES[options.dtype]
    with weightless(model, weights, dtype) as aliases:
        if task == "text-generation":
            found = survey(model)
            kind = "portable" if reductions_in(model) else _decoder_kind(found, options)
            opset = _opset(kind, options)
            graph = trace_decoder(model, found, portable=kind == "portable", opset=opset, dtype=dtype)
        else:
            kind = "encoder"
            opset = _opset(kind, options)
            graph = trace_encoder(model, opset=opset, dtype=dtype, kept_mask=options.kept_mask)
    advance("graph traced")
    attach(graph.graph, weights, _WRAPPED, aliases)
    with quiet():
        stored = tidy(graph, grids, signed=options.arm)
    name_choices(graph.graph)
    name_check(graph.graph)
    stamp(graph, {"task": task, "graph": kind, "dtype": options.dtype})
    advance("graph in order")
    files = []
    if options.embeddings is not None:
        width = int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        embedding = embedding_apart(graph, width, ir.DataType[_IR_DTYPES[options.dtype]])
        files += save(embedding, out, weights.close, name=options.embeddings)
    return graph, [*files, *save(graph, out, weights.close, advance, options.name)], stored


def _decoder_kind(found: Survey, options: OnnxOptions) -> str:
    # The kernel's limit; the portable graph has none.
    fits = all(cache.size % _HEAD_MULTIPLE == 0 for cache in found.caches)
    return "gqa" if options.graph == "auto" and fits else "portable"


def _opset(kind: str, options: OnnxOptions) -> int:
    opset = options.opset or _OPSETS[kind]
    if not _OLDEST <= opset <= _NEWEST:
        raise UsageError(f"export.opset: {opset} is not covered; allowed: auto, or {_OLDEST} to {_NEWEST}")
    return opset


def _result(graph: ir.Model, files: list[Path], seconds: float) -> ExportResult:
    inputs, outputs = ([str(v.name) for v in values] for values in (graph.graph.inputs, graph.graph.outputs))
    return ExportResult(sorted(files), seconds, inputs, outputs)
