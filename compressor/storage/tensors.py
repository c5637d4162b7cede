"""Tensors on disk: safetensors files read one tensor at a time and written without holding the model.

The safetensors layout is eight bytes of header length (little endian), the JSON header, then the raw tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import RawIOBase
from pathlib import Path
from typing import Any

from compressor._lazy import lazy
from compressor.errors import ModelError, ResourceError, summary
from compressor.storage.files import read_index
from compressor.storage.json_files import as_object, parse_json
from compressor.storage.regular import open_regular

torch = lazy("torch")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
           "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip
FLOATS = tuple(name for name in _DTYPES.values() if "float" in name)
_CODES = {name: code for code, name in _DTYPES.items()}
_MAX_HEADER = 100_000_000
_PIECE = 1 << 22
"""Bytes that are compared at a time."""
_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".safetensors")
"""How files with weights end, read or not."""


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a tensor of that shape and torch dtype name."""
    return math.prod(shape) * int(getattr(torch, dtype).itemsize)


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: its file, its name there, its shape, its torch dtype name, and its place in the file."""

    file: Path
    stored: str
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the tensor on disk."""
        return bytes_of(self.shape, self.dtype)

    def value(self, read: Callable[[Entry], Any]) -> Any:
        """Return the tensor; `read` gives what one stored entry holds."""
        return read(self)


class Checkpoint:
    """The tensors of a model folder, under the names that the module gives them."""

    def __init__(self, entries: Mapping[str, Entry], store_dtype: str | None = None) -> None:
        """Take entries keyed by module name; `store_dtype` stands for the dtype of floating-point tensors."""
        self._entries = dict(entries)
        self._store_dtype = store_dtype
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def names(self) -> list[str]:
        """Return all names, in the order of the files."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is there."""
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Return where `name` lies.

        Raises:
            ModelError: there is no such tensor.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise ModelError(f"the checkpoint has no tensor {name!r}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of `name`."""
        return self.entry(name).shape

    def dtype(self, name: str) -> Any:
        """Return the torch dtype in which `name` is stored, or will be once it is changed."""
        stored = getattr(torch, self.entry(name).dtype)
        return getattr(torch, self._store_dtype) if self._store_dtype and stored.is_floating_point else stored

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.bytes for entry in self._entries.values())

    def tensor(self, name: str) -> Any:
        """Read one tensor.

        Raises:
            ModelError: there is no such tensor, or its file is damaged.
        """
        return self.entry(name).value(self.read)

    def read(self, entry: Entry) -> Any:
        """Read what one stored entry holds.

        Raises:
            ModelError: its file is damaged.
        """
        try:
            if entry.file not in self._open:
                self._open[entry.file] = self._stack.enter_context(entry.file.open("rb", buffering=0))
            return _read_tensor(self._open[entry.file], entry)
        except (OSError, ValueError) as error:
            raise ModelError(f"{entry.file.name}: cannot read tensor {entry.stored!r}: {error}") from error

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self._open.clear()
        self._stack.close()


def same_values(one: Entry, other: Entry) -> bool:
    """Tell whether two stored tensors are equal; of a matrix, a few rows at a time are read.

    Raises:
        ModelError: a file is damaged.
    """
    if one.shape != other.shape:
        return False
    rows = one.shape[0] if one.shape else 1
    step = max(1, _PIECE // max(1, one.bytes // max(1, rows)))
    checkpoint = Checkpoint({})
    try:
        return all(
            torch.equal(*(checkpoint.read(rows_of(entry, start, step)).double() for entry in (one, other)))
            for start in range(0, rows, step)
        )
    finally:
        checkpoint.close()


def rows_of(entry: Entry, start: int, count: int) -> Entry:
    """Return up to `count` rows of a stored matrix from row `start` on as an entry of their own."""
    if not entry.shape:
        return entry
    row = replace(entry, shape=entry.shape[1:])
    return replace(
        entry, shape=(min(count, entry.shape[0] - start), *entry.shape[1:]), offset=entry.offset + start * row.bytes
    )


def _read_tensor(stream: RawIOBase, entry: Entry) -> Any:
    """Read a tensor into memory of its own: pages of a mapped file would stay resident as long as any is in use."""
    tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
    left = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    stream.seek(entry.offset)
    while left:
        count = stream.readinto(left)
        if not count:
            raise ValueError("the file has become shorter")
        left = left[count:]
    return tensor


def read_header(file: Path) -> dict[str, Entry]:
    """Return the tensors that a safetensors file states.

    Their bytes must cover the file one after another: where they overlap or leave a hole, a tensor was lost.

    Raises:
        ModelError: the file is missing, truncated, not safetensors, or holds a dtype that is not read.
    """
    try:
        size = file.stat().st_size
        with open_regular(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError("the header is longer than the file")
            header = _parsed(stream.read(length))
        header.pop("__metadata__", None)
        if foreign := [name for name, item in header.items() if item["dtype"] not in _DTYPES]:
            raise ModelError(
                f"{file.name}: {len(foreign)} tensors are stored in a dtype that is not read: {foreign[0]:.80} is"
                f" {header[foreign[0]]['dtype']:.20}; allowed: {', '.join(_DTYPES)}",
                hint="Convert the weights to BF16 or F32, or take the model before it was quantized.",
            )
        entries = {name: _entry(file, name, item, 8 + length) for name, item in header.items()}
        _check_cover(entries.values(), 8 + length, size)
        return entries
    except FileNotFoundError:
        raise ModelError(f"{file.name}: no such file in {file.parent.name}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error) as error:
        raise ModelError(
            f"{file.name} is not a whole safetensors file: {summary(error)}", hint="Download or copy the model again."
        ) from error


def _parsed(header: bytes) -> dict[str, Any]:
    """Return a header, whose keys are there once each.

    Raises:
        ValueError: it is no JSON object of sane depth.
    """
    try:
        return as_object(parse_json(header, "its header", pairs=_unique), "its header")
    except ModelError as error:
        raise ValueError(error.message) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict.

    Raises:
        ValueError: a key is there twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the header names {key!r} twice")
        found[key] = value
    return found


def _check_cover(entries: Iterable[Entry], start: int, size: int) -> None:
    """See that tensors take the bytes from `start` to `size` one after another.

    Raises:
        ValueError: they overlap, leave a hole, or end elsewhere.
    """
    before = "the header"
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.bytes)):
        if entry.offset != start:
            what = "overlaps" if entry.offset < start else "leaves a hole behind"
            raise ValueError(f"{entry.stored} {what} {before}")
        start, before = start + entry.bytes, entry.stored
    if start != size:
        raise ValueError(f"the header promises {start} bytes, the file has {size}")


def _entry(file: Path, name: str, item: Mapping[str, Any], start: int) -> Entry:
    """Return the entry that a header states, whose data begin at byte `start` of the file.

    Raises:
        ValueError: the tensor does not take the bytes that are stated for it.
    """
    begin, end = item["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *item["shape"])):
        raise ValueError(f"{name}: shape and data_offsets must be whole numbers from 0")
    entry = Entry(file, name, tuple(item["shape"]), _DTYPES[item["dtype"]], start + begin)
    if end - begin != entry.bytes:
        raise ValueError(f"{name} takes {end - begin} bytes, its shape and dtype ask for {entry.bytes}")
    return entry


def stored_entries(folder: Path) -> dict[str, Entry]:
    """Return all tensors of a model folder under their stored names, from one file or from the shards of an index.

    Where there are both, the single file is the model, as it is for stock transformers.

    Raises:
        ModelError: there is no safetensors file, a shard is missing or damaged, the index points outside the folder, or
            two shards hold a tensor of the same name.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not index.is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in _WEIGHTS) if folder.is_dir() else []
        raise ModelError(
            f"{folder}: no {SINGLE} and no {INDEX}" + (f" (found {', '.join(others[:4])})" if others else ""),
            hint="Only safetensors weights under these names are read; pickle files (.bin, .pt) never are."
            " Convert the model first.",
        )
    shards = read_index(index)
    entries: dict[str, Entry] = {}
    for file in sorted(set(shards.values())):
        found = read_header(folder / file)
        if twice := sorted(set(found) & set(entries)):
            raise ModelError(f"{twice[0]} is in two shards, {entries[twice[0]].file.name} and {file}")
        entries |= found
    if missing := sorted(set(shards) - set(entries)):
        raise ModelError(f"{INDEX} names tensors that no shard holds: {', '.join(missing[:3])}")
    return entries


@dataclass(frozen=True)
class Plan:
    """One tensor to be written: its stored name, dtype, shape, and the function that makes it when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Any]

    @property
    def bytes(self) -> int:
        """Bytes of the tensor on disk."""
        return bytes_of(self.shape, self.dtype)


def write_safetensors(file: Path, plans: Iterable[Plan]) -> str:
    """Write tensors one after another, sorted by name; return the sha256 of the file.

    The file appears under its name only when it is whole. Same tensors give the same bytes.

    Raises:
        ModelError: a tensor turns out to have another shape than planned.
    """
    ordered = sorted(plans, key=lambda plan: plan.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in ordered:
        size = plan.bytes
        header[plan.name] = {
            "dtype": _CODES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    part = file.with_name(file.name + ".part")
    with part.open("wb") as stream:
        for piece in (struct.pack("<Q", len(text)), text):
            stream.write(piece)
            digest.update(piece)
        for plan in ordered:
            raw = _raw(plan)
            stream.write(raw)
            digest.update(raw)
    part.replace(file)
    return digest.hexdigest()


def park(folder: Path, name: str, tensor: Any) -> Entry:
    """Write one tensor to a file of its own in `folder`, over one of that name; return where it lies.

    Raises:
        ResourceError: the disk is full.
    """
    file = folder / f"{name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(
            file, [Plan(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), lambda: tensor)]
        )
    except OSError as error:
        raise ResourceError(f"cannot write {file.name}: {error.strerror}", hint="Free some disk space.") from error
    return read_header(file)[name]


def _raw(plan: Plan) -> memoryview:
    tensor = plan.make().detach().to("cpu", getattr(torch, plan.dtype)).contiguous()
    if tuple(tensor.shape) != plan.shape:
        raise ModelError(f"tensor {plan.name} has shape {tuple(tensor.shape)}, not {plan.shape} as planned")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
