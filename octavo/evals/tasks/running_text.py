"""Running text for perplexity: a file or folder, or the test texts of WikiText-2 and c4 from the hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.base.table import Table
from octavo.calibrate.corpus import open_corpus
from octavo.calibrate.readers import import_late

__all__ = ["HUB_TEXTS", "read_running_text"]

_C4_DOCUMENTS = 1000


@dataclass(frozen=True)
class HubText:
    """Rows with `text`. `between` stands between them; a blank row of WikiText is a line of one space."""

    reader: str
    url: str
    between: str
    blank: str = ""
    rows: int | None = None


HUB_TEXTS = Table(
    "text of the hub",
    {
        "wikitext2": HubText(
            "parquet",
            "hf://datasets/Salesforce/wikitext@refs/convert/parquet/wikitext-2-raw-v1/test/0000.parquet",
            between="", blank=" \n",
        ),
        "c4": HubText(
            "json", "hf://datasets/allenai/c4/en/c4-validation.00000-of-00008.json.gz", between="\n\n",
            rows=_C4_DOCUMENTS,
        ),
    },
)  # fmt: skip
"""never the texts that calibration takes from these sets"""


def read_running_text(name: str, data: str | None) -> tuple[str, str]:
    """The text and what its source is called. Raises UsageError or BadValue."""
    if data is None:
        if name not in HUB_TEXTS:
            raise UsageError(f"the task {name} needs a text", hint="give a file or folder with --data")
        wanted = HUB_TEXTS[name]
        return wanted.between.join(text or wanted.blank for text in _hub_rows(name, wanted)), wanted.url
    corpus = open_corpus(data)
    parts = [
        piece.content if piece.continues else f"\n\n{piece.content}"
        for piece in corpus.pieces()
        if isinstance(piece.content, str)
    ]
    return "".join(parts).removeprefix("\n\n"), Path(corpus.name).name


def _hub_rows(name: str, wanted: HubText) -> Iterator[str]:
    datasets: Any = import_late("datasets", "datasets", f"the task {name} without --data")
    try:
        rows = datasets.load_dataset(wanted.reader, data_files=[wanted.url], split="train", streaming=True)
        for number, row in enumerate(rows):
            if number == wanted.rows:
                return
            yield str(row["text"])
    except Exception as error:  # offline, refused or moved: all the package's own
        raise UsageError(
            f"the text of {name} cannot be read from the hub: {type(error).__name__}: {error}",
            hint="give a local file with --data",
        ) from None
