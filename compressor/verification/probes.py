"""Runs the compressed model in PyTorch, in a process of its own, and keeps its outputs on the probes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from compressor.data.kinds import Inputs
from compressor.errors import CompressorError, ModelError, ResourceError
from compressor.machine.fresh import run_preloaded
from compressor.machine.shortage import mentions_shortage
from compressor.measure.torch_runner import TorchRunner
from compressor.verification.reference import write_reference


def write_probes(model: Path, target: Path, samples: Inputs | None = None) -> None:
    """Run the compressed model in PyTorch, in a process of its own, and write its outputs on the probes to `target`.

    That process holds the whole model; this one never does.

    Args:
        model: folder of the compressed model.
        target: file to write.
        samples: a batch of real inputs, to be one of the probes.

    Raises:
        ModelError: stock transformers, or our loader for per-layer shapes, refuses the model.
        ResourceError: the process was killed for want of memory.
    """
    with tempfile.TemporaryDirectory(prefix="compressor-probes-") as folder:
        given = Path(folder) / "samples.safetensors"
        if samples is not None:
            given.write_bytes(save({name: np.ascontiguousarray(array) for name, array in samples.items()}))
        done = run_preloaded("compressor.verification.probes", str(model), str(target), str(given))
    if done.code == -9 or (done.code not in (0, ModelError.exit_code) and mentions_shortage(done.stderr)):
        raise ResourceError("the process that runs the compressed model was killed, most likely for want of memory")
    if done.code == ModelError.exit_code:
        raise ModelError(done.stderr.strip())
    if done.code != 0:
        raise CompressorError(f"the compressed model cannot be run in PyTorch: {done.last_line}")


def _main(model: Path, target: Path, samples: Path) -> int:
    try:
        write_reference(TorchRunner(model), target, samples=load_file(samples) if samples.is_file() else None)
    except CompressorError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*(Path(argument) for argument in sys.argv[1:])))
