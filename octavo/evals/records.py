"""Result files of an evaluation: a line for each item, and beside it what the run was, so that it can go on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.base.log import log

__all__ = ["Records"]


class Records:
    """`PATH` holds a JSON object per item, `PATH.meta.json` the facts that must be the same for a run to go on."""

    def __init__(self, path: Path, meta: Mapping[str, Any], resume: bool):
        """Raises UsageError where the file is of another run, or the system refuses."""
        self.path, self.meta_path = path, path.with_name(path.name + ".meta.json")
        self.items: dict[str, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume and path.exists() and path.stat().st_size:
                self._check(meta)
                self._read()
            else:
                path.write_text("", encoding="utf-8")
            self.meta_path.write_text(json.dumps(dict(meta), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write `{path}`: {error.strerror}", hint="name another --out") from error

    def _check(self, meta: Mapping[str, Any]) -> None:
        try:
            old = json.loads(self.meta_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            old = {}
        different = [name for name in meta if old.get(name) != json.loads(json.dumps(meta[name]))]
        if different:
            name = different[0]
            raise UsageError(
                f"{self.path} is of another run: {name} was {old.get(name)!r} and is {meta[name]!r}",
                hint="give another --out, or --no-resume to begin anew",
            )

    def _read(self) -> None:
        """Keep whole lines; a half-written last one is cut off."""
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    item = json.loads(line)
                except ValueError:
                    log.warning("%s: the last line is half written and will be done again", self.path)
                    break
                self.items[item["id"]] = item
                good += len(line)
        os.truncate(self.path, good)

    def add(self, items: list[dict[str, Any]]) -> None:
        """Append, and be sure that it is on disk. Raises UsageError where it cannot be."""
        text = "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in items)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(f"cannot write `{self.path}`: {error.strerror}", hint="is the disk full?") from error
        self.items.update({item["id"]: item for item in items})
