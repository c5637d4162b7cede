"""A stand-in for a GPU: a second torch device whose memory is the host's, for tests on machines without an accelerator.

`install()` makes torch's place for out-of-tree devices (PrivateUse1) the device `NAME`. Its tensors are plain tensors
with storages of their own, made through DLPack with the device field changed, so views, `.data`, parameters and
autograd work as on any device. Every operator that has a CPU kernel gets one here, and no other does: what torch
composes of others on the CPU it composes here of the same ones. A kernel runs the CPU's on the same memory, so results
are those of a CPU run to the bit; the one exception is fused attention, which torch chooses by device type (see
`plain_attention`).

What CUDA refuses is refused, with an error of the same kind:

* a tensor of one device and one of the other in one operator. As with CUDA a CPU tensor may take part where it has no
  dimension and the operator reads it as a scalar, or where it is an index into a tensor of the device;
* random numbers on the device from a generator of the CPU, and a device tensor turned into a numpy array (by torch).

Not looked at: operators and dtypes that CUDA lacks, and what is summed in another order there.

Registration holds for the whole process and cannot be undone: use a process of its own.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register_device

NAME = "standin"
"""The device's name, as in `torch.device(NAME)`."""

used: Counter[str] = Counter()
"""Kernels that ran on the device, by operator."""

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_DLPACK_OTHER_DEVICE = 12  # kDLExtDev of dlpack.h, PrivateUse1 for torch
_DLPACK_DEVICE_FIELD = ctypes.sizeof(ctypes.c_void_p)  # DLTensor starts with the data pointer, then the device type
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Beside pointwise operators: those that take a tensor in place of a number, by the argument.
_SCALARS = {("fill_", "value"), ("index_fill", "value"), ("index_fill_", "value")}
_SCALARS |= {(name, "values") for name in _INDEXING}

_libraries: list[Any] = []


def install() -> str:
    """Make the device, once per process; return its name."""
    if not _libraries:
        register_device(NAME)
        library = torch.library.Library("aten", "IMPL")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
            if name.startswith("aten::"):
                packet, _, overload = name.removeprefix("aten::").partition(".")
                operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
                library.impl(operator, _kernel(operator), "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        library.impl("convolution_overrideable", _kernel(torch.ops.aten.convolution.default), "PrivateUse1")
        _libraries.append(library)
    return NAME


def plain_attention() -> None:
    """Let attention be composed of products and softmax on every device: the CPU's fused kernel has no match here."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def _kernel(operator: Any) -> Callable[..., Any]:
    """Return the device's kernel of an operator: checks, then the CPU's kernel on the same memory."""
    schema = operator._schema
    # Views, and `set_`, compute nothing: the CPU's kernel is right for tensors of any device, and shares storages.
    views = any(out.alias_info is not None and not out.alias_info.is_write for out in schema.returns)
    if views or schema.name == "aten::set_":
        return lambda *args, **kwargs: operator.redispatch(_CPU, *args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        used[schema.name.removeprefix("aten::")] += 1
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        foreign: list[Any] = []

        def host(value: Any) -> Any:
            if _here(value):
                pairs.append((value, _on_host(value)))
                return pairs[-1][1]
            if isinstance(value, (torch.Tensor, torch.Generator)):
                foreign.append(value)
            if isinstance(value, torch.device) and value.type == NAME:
                return torch.device("cpu")
            return type(value)(map(host, value)) if isinstance(value, (list, tuple)) else value

        def back(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                same = [own for own, alias in pairs if alias is value]
                return same[0] if same else _on_device(value)
            return type(value)(map(back, value)) if isinstance(value, (list, tuple)) else value

        own_args, own_kwargs = tuple(map(host, args)), {key: host(value) for key, value in kwargs.items()}
        if foreign:
            _check(operator, args, kwargs)
        out = operator(*own_args, **own_kwargs)
        for own, alias in pairs:
            if own.shape != alias.shape:  # an empty `out=`, which the CPU's kernel has given a size
                own.data = _on_device(alias)
        return back(out)

    return run


def _here(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return the CPU tensor that lies where a tensor of the device does."""
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    storage = tensor.untyped_storage()
    memory: Any = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    memory.owner = storage  # lives as long as the alias does
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=storage.nbytes() // tensor.element_size())
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor of the device that lies where a CPU tensor does."""
    capsule = torch._C._to_dlpack(tensor)
    ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + _DLPACK_DEVICE_FIELD).value = _DLPACK_OTHER_DEVICE
    return torch._C._from_dlpack(capsule)


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy from either device to either: what `copy_` and `to` end in."""
    read, written = (_on_host(tensor) if _here(tensor) else tensor for tensor in (source, target))
    written.copy_(read)
    return target


def _check(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError where CUDA would for these arguments of an operator."""
    named = list(_named(operator._schema, args, kwargs))
    name = operator._schema.name.removeprefix("aten::")
    for argument, value in named:
        if isinstance(value, torch.Generator) and value.device.type != NAME:
            raise RuntimeError(
                f"Expected a {NAME!r} device type for generator but found {value.device.type!r} ({name})"
            )
        if not isinstance(value, torch.Tensor) or _here(value) or not any(_here(other) for _, other in named):
            continue
        written = argument.alias_info is not None and argument.alias_info.is_write
        scalar = torch.Tag.pointwise in operator.tags or (name, argument.name) in _SCALARS
        index = name in _INDEXING and argument.name == "indices" and _here(named[0][1])
        if not index and (value.dim() or written or not scalar):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {value.device}! ({argument.name} of {operator}: {tuple(value.shape)})"
            )


def _named(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each argument's schema and value; each item of a list by itself."""
    for number, argument in enumerate(schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        for item in value if isinstance(value, (list, tuple)) else (value,):
            yield argument, item
