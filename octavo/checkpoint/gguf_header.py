"""Read the header of a GGUF file: metadata and the list of tensors, without touching the tensors themselves.

A file is: magic, version, two counts; the metadata (key, type, value); the tensor list (name, shape, type, offset);
padding; the tensor data. Strings are a 64-bit length and UTF-8. Nothing in the file is trusted: every length is
compared with what is left of the file before it is used. Long arrays (the vocabulary) are skipped, and decoded only
when asked for. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from octavo.base.errors import CheckpointError

__all__ = ["TENSOR_TYPES", "GGUFHeader", "LazyArray", "TensorInfo", "TensorType", "read_header"]


@dataclass(frozen=True)
class TensorType:
    """How a tensor is stored: `block_items` consecutive numbers of a row share `block_bytes`."""

    name: str
    block_items: int
    block_bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LEAST_HEADER_BYTES, _LEAST_ENTRY_BYTES = 24, 13
_MOST_DIMS, _MOST_ALIGNMENT = 4, 1 << 16


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` outermost first; `start` and `stored_bytes` (None: a type we cannot read) in the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int
    stored_bytes: int | None

    @property
    def type(self) -> TensorType | None:
        return TENSOR_TYPES.get(self.type_id)


@dataclass(frozen=True)
class LazyArray:
    """An array of the metadata, not decoded yet."""

    item_type: int
    count: int
    start: int
    header: "GGUFHeader" = field(repr=False)

    def decode(self) -> list[Any]:
        """The items. Raises CheckpointError for a string that is not UTF-8."""
        cursor = _Cursor(self.header.path, self.header.data, self.start)
        if self.item_type == _STRING:
            return [cursor.string("an array item") for _ in range(self.count)]
        return list(cursor.unpack(f"<{self.count}{_SCALARS[self.item_type]}", "an array"))


@dataclass(eq=False)
class GGUFHeader:
    """What the header says. `data` is the whole file, mapped."""

    path: Path
    data: mmap.mmap
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    tensor_bytes: int = 0

    def array(self, key: str) -> list[Any] | None:
        """The decoded array `key`, None if absent. Raises CheckpointError if it is no array."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, LazyArray):
            raise CheckpointError(f"{self.path}: `{key}` is {value!r}; expected an array")
        return None if value is None else value.decode()


class _Cursor:
    """A position in the file that refuses to run past the end."""

    def __init__(self, path: Path, data: mmap.mmap, position: int = 0):
        self.path, self.data, self.position = path, data, position

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: corrupt or truncated GGUF: {what} at byte {self.position} of {len(self.data)}",
            hint="download the file again",
        )

    def skip(self, count: int, what: str) -> None:
        if count > len(self.data) - self.position:
            raise self.fail(f"{what} of {count} bytes runs past the end of the file")
        self.position += count

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        start = self.position
        self.skip(struct.calcsize(layout), what)
        return struct.unpack_from(layout, self.data, start)

    def string(self, what: str) -> str:
        length = self.unpack("<Q", what)[0]
        start = self.position
        self.skip(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def skip_strings(self, count: int) -> None:
        data, position, end, length_of = self.data, self.position, len(self.data), struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                position += 8 + length_of(data, position)[0]
        except (struct.error, OverflowError, IndexError):
            position = end + 1
        if position > end:
            raise self.fail(f"an array of {count} strings runs past the end of the file")
        self.position = position


def read_header(path: Path) -> GGUFHeader:
    """Map `path` and read its header. Raises CheckpointError saying what is wrong and at which byte."""
    try:
        with path.open("rb") as file:
            start = file.read(_LEAST_HEADER_BYTES)
            if len(start) < _LEAST_HEADER_BYTES or start[:4] != b"GGUF":
                raise CheckpointError(f"{path}: not a GGUF file (it starts with {start[:4]!r}, not b'GGUF')")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    cursor = _Cursor(path, data, 4)
    version, tensor_count, entry_count = cursor.unpack("<IQQ", "the counts")
    if version not in (2, 3):
        about = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise CheckpointError(f"{path}: GGUF {about} is not supported (have versions 2 and 3, little-endian)")
    if (tensor_count + entry_count) * _LEAST_ENTRY_BYTES > len(data):
        raise cursor.fail(f"{tensor_count} tensors and {entry_count} metadata entries cannot fit in the file")
    header = GGUFHeader(path, data)
    for _ in range(entry_count):
        key = cursor.string("a metadata key")
        if key in header.metadata:
            raise cursor.fail(f"metadata key `{key}` appears twice")
        header.metadata[key] = _value(cursor, header, key)
    _read_tensors(cursor, header, tensor_count)
    return header


def _value(cursor: _Cursor, header: GGUFHeader, key: str) -> Any:
    kind = cursor.unpack("<I", f"the type of `{key}`")[0]
    if kind in _SCALARS:
        return cursor.unpack(f"<{_SCALARS[kind]}", f"`{key}`")[0]
    if kind == _STRING:
        return cursor.string(f"`{key}`")
    if kind != _ARRAY:
        raise cursor.fail(f"`{key}` has unknown type {kind}")
    item_type, count = cursor.unpack("<IQ", f"`{key}`")
    if item_type not in _SCALARS and item_type != _STRING:
        raise cursor.fail(f"`{key}` is an array of unknown type {item_type}")
    array = LazyArray(item_type, count, cursor.position, header)
    if item_type == _STRING:
        if count * 8 > len(cursor.data):
            raise cursor.fail(f"`{key}`, an array of {count} strings, runs past the end of the file")
        cursor.skip_strings(count)
    else:
        cursor.skip(count * struct.calcsize(_SCALARS[item_type]), f"`{key}`")
    return array


def _read_tensors(cursor: _Cursor, header: GGUFHeader, tensor_count: int) -> None:
    alignment = header.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.fail(f"`general.alignment` is {alignment!r}; expected a power of two, header read up to here")
    listed = [_tensor(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.position // alignment) * alignment
    header.tensor_bytes = max(len(header.data) - data_start, 0)
    for name, shape, type_id, offset in listed:
        if name in header.tensors:
            raise cursor.fail(f"tensor `{name}` appears twice in the list that ends")
        info = TensorInfo(name, shape, type_id, data_start + offset, _stored_bytes(cursor, name, shape, type_id))
        if offset % alignment:
            raise cursor.fail(
                f"tensor `{name}` starts at {offset}, not a multiple of {alignment}, in the list that ends"
            )
        if info.start + (info.stored_bytes or 0) > len(header.data):
            raise CheckpointError(
                f"{header.path}: truncated GGUF: tensor `{name}` needs bytes {info.start} to "
                f"{info.start + (info.stored_bytes or 0)}, the file has {len(header.data)}",
                hint="download the file again",
            )
        header.tensors[name] = info
    _check_apart(cursor, header)


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor name")
    dims = cursor.unpack("<I", f"the dimensions of `{name}`")[0]
    if not 1 <= dims <= _MOST_DIMS:
        raise cursor.fail(f"tensor `{name}` has {dims} dimensions")
    shape = cursor.unpack(f"<{dims}Q", f"the shape of `{name}`")
    type_id, offset = cursor.unpack("<IQ", f"the place of `{name}`")
    if not all(shape):
        raise cursor.fail(f"tensor `{name}` has shape {shape}")
    return name, tuple(reversed(shape)), type_id, offset


def _stored_bytes(cursor: _Cursor, name: str, shape: tuple[int, ...], type_id: int) -> int | None:
    stored = TENSOR_TYPES.get(type_id)
    if stored is None:
        return None
    if shape[-1] % stored.block_items:
        raise cursor.fail(
            f"tensor `{name}` has rows of {shape[-1]}, not a multiple of {stored.name}'s {stored.block_items},"
        )
    return prod(shape) // stored.block_items * stored.block_bytes


def _check_apart(cursor: _Cursor, header: GGUFHeader) -> None:
    placed = sorted(header.tensors.values(), key=lambda info: info.start)
    for before, after in pairwise(placed):
        if before.start + (before.stored_bytes or 0) > after.start:
            raise cursor.fail(f"tensors `{before.name}` and `{after.name}` overlap in the list that ends")
