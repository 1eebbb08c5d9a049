"""JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from octavo.base.errors import CheckpointError

__all__ = ["read_json", "read_json_if_there"]


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`. Raises CheckpointError if it cannot be read, or holds anything but a JSON object."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}", hint="download the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def read_json_if_there(file: Path) -> dict[str, Any]:
    """As `read_json`; an empty object if there is no such file."""
    return read_json(file) if file.is_file() else {}
