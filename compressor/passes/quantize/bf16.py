"""BF16: the artifact stores bfloat16, for safetensors alone: ONNX Runtime's CPU kernels have no bfloat16 products."""

from __future__ import annotations

from typing import ClassVar

from compressor.passes.base import Needs
from compressor.passes.quantize.fp16 import Fp16


class Bf16(Fp16):
    """See the module."""

    name: str = "bf16"
    summary: ClassVar[str] = "Store bfloat16, in safetensors: half the size, float32's range."
    needs: Needs = Needs(dtype="bfloat16", formats=("safetensors",))


METHOD = Bf16
