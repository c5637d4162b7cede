"""ONNX Runtime's own format (`.ort`): the graph after optimisation, which a minimal build of the runtime can load.

The conversion is ONNX Runtime's, in a process of its own, in the style `Fixed`: graph optimisations are applied now,
for the kind of processor that the artifact is for. What the model needs of the runtime is written beside it, for a
build with nothing else (docs/edge.md).
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import ModelError, ResourceError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.result import ExportResult
from compressor.exporters.steps import Advance, silent
from compressor.machine.fresh import run_module

if TYPE_CHECKING:
    from compressor.model.folder import ModelFolder

MODEL = "model.ort"
OPERATORS = "required_operators_and_types.config"
_CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"


def export_ort(
    source: ModelFolder, out: Path, options: OnnxOptions | None = None, *, advance: Advance = silent
) -> ExportResult:
    """Export a model folder to `model.onnx`, and convert that to `model.ort`.

    Both stay: `model.ort` is what runs, `model.onnx` what it was made from, by which it can be verified anywhere.

    Args:
        source: the model.
        out: existing folder; receives what `export_onnx` writes, `model.ort`, and the operators that it needs in
            `required_operators_and_types.config`.
        options: of the ONNX export.
        advance: told what has been done, `STEPS` times.

    Raises:
        ModelError: the model cannot be exported or converted.
        UsageError: the options are impossible.
        ResourceError: the disk is full.
    """
    result = export_onnx(source, out, options, advance=advance)
    files = convert(out / "model.onnx", out, arm=options is not None and options.arm)
    advance("graph converted")
    return replace(result, files=sorted([*result.files, *files]))


def convert(graph: Path, out: Path, *, arm: bool = False) -> list[Path]:
    """Convert an ONNX graph, external data included; return `model.ort` and the list of operators, both in `out`.

    Layouts that depend on the processor at hand (NCHWc) are left out, for x86 as well; `arm` fuses products of signed
    bytes, for which x86 has no fast kernel.

    The same graph gives the same weights and operators; the order of some tables in the file may differ where the
    system does not let a process fix its addresses.

    Raises:
        ModelError: ONNX Runtime cannot convert it.
        ResourceError: the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix=".ort-", dir=out) as folder:
        made = Path(folder)
        options = ["--output_dir", str(made), "--optimization_style", "Fixed", "--enable_type_reduction"]
        options += ["--target_platform", "arm"] if arm else []
        # ONNX Runtime lays some tables of the file out in the order of their addresses: where those are fixed, the
        # same graph gives the same bytes.
        done = run_module(_CONVERTER, str(graph), *options, threads=1, fixed_addresses=True)
        listed = sorted(made.glob("*.config"))
        if done.code != 0 or not (made / MODEL).is_file() or not listed:
            raise ModelError(
                f"ONNX Runtime cannot convert the graph to its own format: {done.last_line}",
                hint="Write export: {format: onnx}; that graph runs in every full build.",
            )
        try:
            (made / MODEL).replace(out / MODEL)
            # Comments hold paths of this machine.
            lines = [line for line in listed[0].read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
            (out / OPERATORS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"{out}: cannot write the model: {error}", hint="Free some space.") from error
    return [out / MODEL, out / OPERATORS]
