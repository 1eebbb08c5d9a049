"""Files replaced as a whole: a disk that fills, or a process that dies, leaves the old ones."""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from octavo.base.errors import CheckpointError

__all__ = ["json_bytes", "replace_files"]


def json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write all `contents` beside their targets, then rename them in the order given. Nothing is renamed before all
    bytes are on disk; a link becomes a file, what it pointed to stays. Raises CheckpointError naming the file."""
    staged = {file: file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp") for file in contents}
    at = next(iter(contents))
    try:
        for at, content in contents.items():
            with staged[at].open("xb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
        for at, temporary in staged.items():
            os.replace(temporary, at)
    except OSError as error:
        raise CheckpointError(
            f"{at}: cannot be written: {error.strerror}",
            hint="files that were there are unchanged; is the disk full, or the folder missing or read-only?",
        ) from None
    finally:
        for temporary in staged.values():
            with suppress(OSError):
                temporary.unlink()
