"""Runs the compressed model in PyTorch, in a process of its own, and keeps its outputs on the probes."""

from __future__ import annotations

import sys
from pathlib import Path

from compressor.errors import CompressorError, ModelError, ResourceError
from compressor.machine.fresh import run_preloaded
from compressor.measure.torch_runner import TorchRunner
from compressor.verification.reference import write_reference


def write_probes(model: Path, target: Path) -> None:
    """Run the compressed model in PyTorch, in a process of its own, and write its outputs on the probes to `target`.

    That process holds the whole model; this one never does.

    Raises:
        ModelError: stock transformers, or our loader for per-layer shapes, refuses the model.
        ResourceError: the process was killed for want of memory.
    """
    done = run_preloaded("compressor.verification.probes", str(model), str(target))
    if done.code == -9:
        raise ResourceError("the process that runs the compressed model was killed, most likely for want of memory")
    if done.code == ModelError.exit_code:
        raise ModelError(done.stderr.strip())
    if done.code != 0:
        raise CompressorError(f"the compressed model cannot be run in PyTorch: {done.last_line}")


def _main(model: Path, target: Path) -> int:
    try:
        write_reference(TorchRunner(model), target)
    except CompressorError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2])))
