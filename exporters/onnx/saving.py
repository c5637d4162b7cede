"""From a finished graph to files: stamped, with the weights inside or beside it, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from compressor import __version__
from compressor.errors import CompressorError, ResourceError
from compressor.exporters.onnx.inline import write_inline
from compressor.exporters.steps import Advance, WeightSteps, silent
from compressor.exporters.trimming import PeriodicTrim
from compressor.storage.artifact import ONNX_MODEL

INLINE_LIMIT = 64 * 1024 * 1024  # weights up to here stay inside the graph file
_ALIGNMENT = 65536  # what Windows needs to map a tensor; runtimes before 1.22 want it everywhere


def stamp(model: ir.Model, facts: Mapping[str, str]) -> None:
    """Record what made the graph; no dates, no paths. Only `metadata_props` survives quantizers and conversion.

    Args:
        model: the graph.
        facts: recorded under `compressor.<key>`.
    """
    model.producer_name, model.producer_version = "compressor", __version__
    model.ir_version = 10
    model.doc_string = None
    model.metadata_props.clear()
    model.metadata_props.update({"compressor.version": __version__, **{f"compressor.{k}": v for k, v in facts.items()}})


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def save(
    model: ir.Model, out: Path, close: Callable[[], None], advance: Advance = silent, name: str = ONNX_MODEL
) -> list[Path]:
    """Write `model.onnx`, and `model.onnx.data` when the weights are more than 64 MiB.

    Args:
        model: a finished graph; its lazy weights are read one at a time.
        out: existing folder.
        close: is called when all weights are read.
        advance: told how much of them is written.
        name: of the graph's file; `.data` is put behind it for the other one.

    Returns:
        The files written.

    Raises:
        ResourceError: the disk is full.
        CompressorError: what reading a weight raised.
    """
    graph, data = out / name, out / f"{name}.data"
    size = weight_bytes(model)
    trim, steps = PeriodicTrim(), WeightSteps(size, advance)

    def seen(count: int) -> None:
        trim.read(count)
        steps.written(count)

    def on_tensor(tensor: ir.TensorProtocol, info: object) -> None:
        seen(tensor.nbytes)

    beside = size > INLINE_LIMIT
    try:
        if beside:
            ir.save(
                model,
                graph,
                external_data=data.name,
                size_threshold_bytes=1024,
                callback=on_tensor,
                alignment=_ALIGNMENT,
            )
        else:
            write_inline(model, graph, seen)
    except OSError as error:
        raise ResourceError(f"{out}: cannot write the model: {error}", hint="Free some space and run again.") from error
    except ir.serde.SerdeError as error:  # onnx_ir wraps what reading a weight raised
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CompressorError):
            cause = cause.__cause__
        raise cause or error from None
    steps.finish()
    close()
    return [graph, data] if beside else [graph]
