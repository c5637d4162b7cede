"""Native operators that never read the weight rows of silent neurons.

The operators, for ONNX Runtime's CPU provider, are in the shared library `library_path()`; `function_bodies()` are the
same in standard ONNX operators. `row_skip_matmul` and `sparse_gated_mlp` call the library on numpy arrays.
"""

from __future__ import annotations

from compressor_kernels._build import build
from compressor_kernels._errors import ArgumentError, BuildError, KernelError, LibraryError
from compressor_kernels._functions import DOMAIN, function_bodies, operator
from compressor_kernels._library import costs, library_path, path, paths, select_path
from compressor_kernels._products import row_skip_matmul, sparse_gated_mlp
from compressor_kernels._weights import BLOCK, Weight, pack_codes, pack_floats, quantize

__all__ = [
    "BLOCK",
    "DOMAIN",
    "ArgumentError",
    "BuildError",
    "KernelError",
    "LibraryError",
    "Weight",
    "build",
    "costs",
    "function_bodies",
    "library_path",
    "operator",
    "pack_codes",
    "pack_floats",
    "path",
    "paths",
    "quantize",
    "row_skip_matmul",
    "select_path",
    "sparse_gated_mlp",
]
