"""A copy of a checkpoint's folder, to write into without touching the original."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.base.errors import CheckpointError, UsageError

__all__ = ["copy_checkpoint", "make_folder", "new_folder"]

_WEIGHTS = ".safetensors"
_OTHER_WEIGHTS = {".bin", ".pth", ".pt", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}


def copy_checkpoint(source: Path, target: Path, left_out: frozenset[str] = frozenset()) -> None:
    """Files of `source` to the folder `target`, which is there: configs and tokenizers are copied, safetensors linked
    (hard links, where the file system has them: they take no room) or else copied. Folders, hidden files, weights of
    other formats and what is named in `left_out` stay behind. Raises CheckpointError."""
    file = source
    try:
        for file in sorted(source.iterdir()):
            hidden, other = file.name.startswith("."), file.suffix in _OTHER_WEIGHTS
            if not file.is_file() or hidden or other or file.name in left_out or file.name.startswith("consolidated"):
                continue
            if file.suffix != _WEIGHTS or not _linked(file.resolve(), target / file.name):
                shutil.copyfile(file, target / file.name)
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be copied to {target}: {error.strerror}", hint="is the disk full?"
        ) from None


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without hard links
        return False
    return True


def make_folder(folder: Path) -> None:
    """With its parents; one that is there is fine. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to `{folder}`: {error.strerror}") from None


@contextmanager
def new_folder(folder: Path, hint: str) -> Iterator[Path]:
    """A folder beside `folder` that takes its name at the end, if all went well: the whole, or nothing. Raises
    UsageError, with `hint`, where something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"`{folder}` is there and not an empty folder", hint=hint)
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    make_folder(new)
    try:
        yield new
        new.replace(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
