"""Where the rows of a data set are: a file, a folder with its usual names, or the hub."""

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.errors import OctavoError, UsageError
from octavo.evals.tasks.rows import SUFFIXES, Row, read_rows, split_name

__all__ = ["DEV", "TEST", "DataSet", "HubSet", "Split", "find_files", "rows_of"]

Split = str
TEST, DEV = "test", "dev"
_WORDS = {TEST: ("test", "val", "validation"), DEV: ("dev", "train")}
"""what files of a split are called, the better first; `dev` are the questions that examples are taken from"""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub, by the Parquet files that the hub makes of it: no script of a repository can run.
    `config` empty: one for each subject."""

    repository: str
    config: str
    test: str
    dev: str | None

    def url(self, split: Split, subject: str = "") -> str:
        part = self.test if split == TEST else self.dev
        config = self.config or subject
        return f"hf://datasets/{self.repository}@refs/convert/parquet/{config}/{part}/0000.parquet"


@dataclass(frozen=True)
class DataSet:
    """`stem` begins its files' names: `piqa_val.jsonl.gz`. `also` are other names of the test file, `per_subject`: a
    CSV file for each subject (`law_val.csv`) will do too."""

    name: str
    stem: str
    hub: HubSet | None = None
    also: tuple[str, ...] = ()
    per_subject: bool = False

    def names(self, split: Split) -> tuple[str, ...]:
        words = _WORDS[split]
        extra = (*self.also, self.stem) if split == TEST else ()
        return (*(f"{self.stem}_{word}" for word in words), *extra, *words)


def rows_of(wanted: DataSet, data: str | None, split: Split, subjects: Sequence[str] = ()) -> tuple[str, Iterator[Row]]:
    """What the source is called, and its rows: of the file or folder `data`, else of the hub. Raises UsageError."""
    if data is None:
        if wanted.hub is None:
            raise UsageError(f"the task {wanted.name} needs its data", hint="give its file or folder with --data")
        return wanted.hub.repository, _hub_rows(wanted, wanted.hub, split, subjects)
    path = Path(data).expanduser()
    if not path.exists():
        raise UsageError(
            f"no file or folder `{path}` for the task {wanted.name}", hint="--data takes " + ", ".join(SUFFIXES)
        )
    files = find_files(path, wanted, split) if path.is_dir() else [path]
    return path.name, _file_rows(files, wanted, split)


def find_files(folder: Path, wanted: DataSet, split: Split) -> list[Path]:
    """The one file of the first usual name that is in the folder or one below it, or all parts of it. Raises
    UsageError where there is none, or several that are no parts."""
    files = sorted(path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file())
    bases = [(split_name(path.name)[0], path) for path in files if split_name(path.name)[1]]
    names = wanted.names(split)
    for name in names:
        found = [path for base, path in bases if base == name]
        found = found or [path for base, path in bases if base.startswith((f"{name}_", f"{name}-"))]
        if len(found) > 1 and not all(_SHARD.search(split_name(path.name)[0]) for path in found):
            several = ", ".join(str(path.relative_to(folder)) for path in found[:5])
            raise UsageError(f"`{folder}` has several files for {wanted.name}: {several}", hint="name one of them")
        if found:
            return found
    if wanted.per_subject:
        subjects = [path for base, path in bases if base.endswith(tuple(f"_{word}" for word in _WORDS[split][:2]))]
        if subjects:
            return subjects
    option = "--data" if split == TEST else "--examples"
    raise UsageError(
        f"`{folder}` has no {split} questions of {wanted.name}: none of {', '.join(names)}",
        hint=f"name the file itself with {option}",
    )


def _file_rows(files: Sequence[Path], wanted: DataSet, split: Split) -> Iterator[Row]:
    words = _WORDS[split]
    for file in files:
        base = split_name(file.name)[0]
        subject = next((base.removesuffix(f"_{word}") for word in words if base.endswith(f"_{word}")), "")
        for where, row in read_rows(file):
            if wanted.per_subject and "subject" not in row and subject:
                row["subject"] = subject
            yield where, row


def _hub_rows(wanted: DataSet, hub: HubSet, split: Split, subjects: Sequence[str]) -> Iterator[Row]:
    if split != TEST and hub.dev is None:
        raise UsageError(f"{hub.repository} has no questions for examples", hint="name a file with --examples")
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise UsageError(
            f"the task {wanted.name} without --data is read from the hub, which needs the package `datasets` ({error})",
            hint="pip install datasets, or give its file or folder with --data",
        ) from None
    for subject in subjects if not hub.config else ("",):
        url = hub.url(split, subject)
        number = 0
        try:
            for row in datasets.load_dataset("parquet", data_files=[url], split="train", streaming=True):
                number += 1
                yield f"{url}, row {number}", ({"subject": subject} if subject else {}) | dict(row)
        except OctavoError:
            raise
        except Exception as error:  # offline, refused or moved: all the package's own
            raise UsageError(
                f"{hub.repository} cannot be read from the hub: {type(error).__name__}: {error}",
                hint="give its file or folder with --data",
            ) from None
