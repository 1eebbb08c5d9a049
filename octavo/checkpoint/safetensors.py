"""A Hugging Face folder as a checkpoint: config.json and one or more safetensors files. Headers are read without torch.

A safetensors file is: the header's length (64 bits), the header (JSON: name -> dtype, shape, byte range), the data.
"""

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.base.errors import CheckpointError
from octavo.checkpoint.jsonfile import read_json
from octavo.checkpoint.source import Source
from octavo.models.families import spec_of_config

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.checkpoint.tokenizer import Tokenizer

__all__ = ["SafetensorsSource", "StoredTensor", "read_safetensors_header"]

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ITEM_BYTES |= {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_STAGED_BYTES = 1 << 20  # smaller tensors come to a GPU by a plain copy
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int
    begin: int
    """the first byte of it in the file"""


class SafetensorsSource(Source):
    """A folder with config.json and safetensors files, sharded or not. Weights load in the stored dtype."""

    kind = "safetensors"

    def __init__(self, folder: Path, name: str | None = None):
        config = read_json(folder / "config.json")
        try:
            spec = spec_of_config(config)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error.message}", error.hint) from None
        self._stored = _stored_tensors(folder)
        self._handles: dict[Path, Any] = {}
        embedding = self._stored.get("model.embed_tokens.weight")
        spec = replace(spec, dtype=_DTYPES.get(embedding.dtype, spec.dtype)) if embedding else spec
        weight_bytes = sum(tensor.stored_bytes for tensor in self._stored.values())
        super().__init__(folder, name or folder.resolve().name, spec, weight_bytes)

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._stored.items()}

    def check(self) -> None:
        super().check()
        for name in self.names():
            self._require_dense(name)

    def load(self, name: str) -> "Tensor":
        if name not in self._stored:
            raise CheckpointError(f"{self.path}: weight {name} is missing")
        self._require_dense(name)
        from safetensors import SafetensorError, safe_open

        file = self._stored[name].file
        try:
            if file not in self._handles:
                self._handles[file] = safe_open(file, framework="pt")
            return self._handles[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}", hint="download the file again") from None

    def load_on(self, name: str, device: str) -> "Tensor":
        stored = self._stored.get(name)
        if not device.startswith("cuda") or stored is None or stored.stored_bytes < _STAGED_BYTES:
            return super().load_on(name, device)
        self._require_dense(name)
        import torch

        from octavo.checkpoint.staging import read_tensor

        return read_tensor(stored.file, stored.begin, stored.shape, getattr(torch, _DTYPES[stored.dtype]), device)

    def tokenizer(self) -> "Tokenizer":
        from octavo.checkpoint.folder_tokenizer import tokenizer_of_folder

        return tokenizer_of_folder(self.path, self.spec)

    def _require_dense(self, name: str) -> None:
        tensor = self._stored[name]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{tensor.file}: {name} is stored as {tensor.dtype} (can read {', '.join(_DTYPES)})")


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the folder by name. A single file comes first, then the index, then the one file there is."""
    if (folder / _SINGLE).is_file():
        return read_safetensors_header(folder / _SINGLE)
    if (folder / _INDEX).is_file():
        return _sharded(folder)
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))
    if len(files) == 1:
        return read_safetensors_header(files[0])
    if files:
        raise CheckpointError(f"{folder}: {len(files)} safetensors files but no {_INDEX}", hint="download the index")
    if list(folder.glob("*.bin")) or list(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder}: holds pickled weights only; unpickling can run any code, so Octavo does not",
            hint="convert them to safetensors, or use a checkpoint that has safetensors",
        )
    raise CheckpointError(f"{folder}: no safetensors files", hint=f"expected {_SINGLE} or {_INDEX}")


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    """The tensors that the index lists, each from the shard it names. Raises CheckpointError."""
    index = folder / _INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{index}: `weight_map` does not map names to files")
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: `{shard}` is not a file of this folder")
        if not (folder / shard).is_file():
            absent = sum(not (folder / other).is_file() for other in set(places.values()))
            raise CheckpointError(f"{folder}: shard {shard} is missing ({absent} in all)", hint="download it again")
        stored |= read_safetensors_header(folder / shard)
    lost = [name for name in places if name not in stored]
    if lost:
        raise CheckpointError(f"{index}: lists {len(lost)} tensors that the shards do not hold, such as {lost[0]}")
    return stored


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises CheckpointError, naming the file, if it is truncated or corrupt."""
    try:
        with file.open("rb") as opened:
            header_bytes = int.from_bytes(opened.read(8), "little")
            data_bytes = file.stat().st_size - 8 - header_bytes
            if data_bytes < 0 or header_bytes > _MOST_HEADER_BYTES:
                raise _corrupt(file, f"a header of {header_bytes} bytes does not fit")
            text = opened.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _corrupt(file, "the header is not JSON") from None
    if not isinstance(header, dict):
        raise _corrupt(file, "the header is not an object")
    header.pop("__metadata__", None)
    at = 8 + header_bytes
    stored = {name: _stored_tensor(file, name, entry, data_bytes, at) for name, entry in header.items()}
    total = sum(tensor.stored_bytes for tensor in stored.values())
    if total != data_bytes:
        raise _corrupt(file, f"the tensors take {total} bytes, the file holds {data_bytes}")
    return stored


def _stored_tensor(file: Path, name: str, entry: Any, data_bytes: int, data_begin: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            sane = all(isinstance(size, int) and size >= 0 for size in shape)
            if not sane or not 0 <= start <= end:
                raise _corrupt(file, f"{name} has shape {shape} at bytes {start} to {end}")
            if end > data_bytes:
                raise _corrupt(file, f"{name} ends at byte {end} of the data, the file holds {data_bytes}")
            if end - start != prod(shape) * _ITEM_BYTES.get(dtype, 0) and dtype in _ITEM_BYTES:
                raise _corrupt(file, f"{name} is {dtype} of shape {shape} in {end - start} bytes")
            return StoredTensor(file, dtype, tuple(shape), end - start, data_begin + start)
    raise _corrupt(file, f"the entry of {name} is not a tensor")


def _corrupt(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: corrupt or truncated safetensors: {what}", hint="download the file again")
