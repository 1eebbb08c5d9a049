"""The data sets that calibration is usually done with, streamed from the hub when online.

Each is read as named data files by a reader that comes with the package `datasets` itself. A data set is never opened
by its repository's name, so no script of a repository can run, whatever the version of the package.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import BadValue, OctavoError, UsageError
from octavo.calibrate.readers import Piece, glue, import_late

__all__ = ["HUB_SETS", "HubSet", "read_hub"]


@dataclass(frozen=True)
class HubSet:
    """Training text of one data set (for pileval: what is left of its validation text)."""

    reader: str
    url: str
    column: str = "text"
    line_end: str | None = None
    """rows are lines of one text and end so; None: each row is a document of its own"""


HUB_SETS = {
    "c4": HubSet("json", "hf://datasets/allenai/c4/en/c4-train.00000-of-01024.json.gz"),
    "wikitext2": HubSet(
        "parquet",
        "hf://datasets/Salesforce/wikitext/wikitext-2-raw-v1/train-00000-of-00001.parquet",
        line_end="\n",
    ),
    "pileval": HubSet("json", "hf://datasets/mit-han-lab/pile-val-backup/val.jsonl.zst"),
    "ptb": HubSet(
        "parquet",
        "hf://datasets/ptb-text-only/ptb_text_only@refs/convert/parquet/penn_treebank/train/0000.parquet",
        column="sentence",
        line_end=" ",
    ),
}


def read_hub(name: str) -> Iterator[Piece]:
    """The documents of `HUB_SETS[name]`, in order. Raises UsageError without `datasets` or without the hub."""
    wanted = HUB_SETS[name]
    texts = _texts(name, wanted)
    if wanted.line_end is None:
        return (piece for text in texts for piece in glue([text]))
    return glue(text + wanted.line_end for text in texts)


def _texts(name: str, wanted: HubSet) -> Iterator[str]:
    datasets = import_late("datasets", "datasets", f"the data set `{name}`")
    try:
        rows: Any = datasets.load_dataset(wanted.reader, data_files=[wanted.url], split="train", streaming=True)
        for row in rows:
            if not isinstance(row.get(wanted.column), str):
                raise BadValue(
                    f"a row of `{name}` has no text in `{wanted.column}`", hint="give a local file: --data FILE"
                )
            yield row[wanted.column]
    except OctavoError:
        raise
    except Exception as error:  # offline, refused, moved or packed in a way that `datasets` cannot read: all its own
        raise UsageError(
            f"the data set `{name}` cannot be read from the hub: {type(error).__name__}: {error}",
            hint="give a local file instead: --data FILE (.txt, .jsonl, .jsonl.gz, .parquet), or --data bundled",
        ) from None
