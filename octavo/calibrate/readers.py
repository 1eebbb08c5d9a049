"""Text files in, pieces of documents out: plain text, JSON lines and Parquet, gzipped or not, never a whole file.

    .jsonl .json [.gz]    one JSON value a line: a string, or an object with one of `FIELDS`
    .parquet              a column named as one of `FIELDS`; needs pyarrow
    anything else [.gz]   UTF-8 plain text; one document

Positions in errors: `file:3` is line 3, `file: row 3` is row 3 (both from 1), `byte 3` is the fourth byte of the
(unpacked) text.
"""

import codecs
import gzip
import importlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import PurePath
from types import ModuleType
from typing import IO, Any

from octavo.base.errors import BadValue, UsageError

__all__ = ["FIELDS", "PIECE_CHARS", "Document", "Piece", "glue", "import_late", "in_folders", "read_pieces"]

Document = str | list[dict[str, Any]]
"""running text, or the messages of a chat (each with `role` and `content`)"""

PIECE_CHARS = 2**18
"""a longer text comes as several pieces, cut after a line where there is one, or else after a word"""
LINE_BYTES = 2**26
"""of one JSON line: a longer one is taken for a file without line ends"""


@dataclass(frozen=True)
class Piece:
    """A document, or the next part of one that is too long to hold."""

    content: Document
    continues: bool = False
    """this is more of the document of the piece before"""


def read_pieces(file: str) -> Iterator[Piece]:
    """The documents of `file`, in order, without the blank ones. Raises UsageError if it cannot be read, BadValue if
    it is not what its name says."""
    return _READERS.get(_kind(file), _read_plain)(file)


def in_folders(file: PurePath) -> bool:
    """Whether a folder that is given as a corpus means this file: other kinds must be named themselves."""
    return _kind(str(file)) in _IN_FOLDERS and not file.name.lower().endswith(".json")


def glue(parts: Iterable[str]) -> Iterator[Piece]:
    """One document out of `parts`, in pieces of `PIECE_CHARS` characters at most; none if it is blank."""
    text, begun = "", False
    for part in parts:
        text, start = text + part, 0
        while (stop := start + PIECE_CHARS) < len(text):
            end = text.rfind("\n", start, stop) + 1 or text.rfind(" ", start, stop) + 1 or stop
            if not text[start:end].isspace():
                yield Piece(text[start:end], begun)
                begun = True
            start = end
        text = text[start:]
    if text.strip():
        yield Piece(text, begun)


def import_late(module: str, package: str, purpose: str) -> ModuleType:
    """A module of an optional package. Raises UsageError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{purpose} needs the package `{package}` ({error})",
            hint=f"pip install {package}; or give a local text or JSONL file",
        ) from None


def _read_plain(file: str) -> Iterator[Piece]:
    return glue(_decoded_blocks(file))


def _read_json_lines(file: str) -> Iterator[Piece]:
    offset_bytes = 0
    with _named_errors(file), _open(file) as stream:
        for number in count(1):
            line = stream.readline(LINE_BYTES + 1)
            if not line:
                return
            place = f"{file}:{number}"
            if len(line) > LINE_BYTES:
                raise BadValue(f"{place} is longer than {LINE_BYTES:,} bytes", hint="write one JSON object per line")
            text, _ = _decode(file, line, offset_bytes, final=True)
            offset_bytes += len(line)
            if text.strip():
                yield from _piece(_parse(text, place), place)


def _read_parquet(file: str) -> Iterator[Piece]:
    for number, row in enumerate(_parquet_rows(file), start=1):
        yield from _piece(row, f"{file}: row {number}")


def _parquet_rows(file: str) -> Iterator[dict[str, Any]]:
    arrow = import_late("pyarrow", "pyarrow", f"`{file}`")
    parquet = import_late("pyarrow.parquet", "pyarrow", f"`{file}`")
    with _named_errors(file):
        try:
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            column = next((field for field in FIELDS if field in names), None)
            for batch in table.iter_batches(batch_size=256, columns=[column]) if column else ():
                yield from batch.to_pylist()
        except arrow.ArrowInvalid as error:
            raise _broken(file, "Parquet", error) from None
    if column is None:
        raise BadValue(
            f"`{file}` has no column {_either(FIELDS)} (it has {', '.join(names)})", hint=f"rename one to `{FIELDS[0]}`"
        )


_READERS: Mapping[str, Callable[[str], Iterator[Piece]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}
_IN_FOLDERS = frozenset({*_READERS, ".txt", ".text", ".md", ".raw"})


def _kind(file: str) -> str:
    return PurePath(file.lower().removesuffix(".gz")).suffix


@contextmanager
def _named_errors(file: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(file, "gzip", error) from None
    except OSError as error:
        cause = error.strerror or _one_line(error)
        raise UsageError(f"cannot read `{file}`: {cause}", hint="name another --data file") from None


def _broken(file: str, kind: str, error: Exception) -> BadValue:
    return BadValue(f"`{file}` is not a whole {kind} file: {_one_line(error)}", hint="copy or download it again")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _open(file: str) -> IO[bytes]:
    return gzip.open(file, "rb") if file.lower().endswith(".gz") else open(file, "rb")  # type: ignore[return-value]


def _decoded_blocks(file: str) -> Iterator[str]:
    offset_bytes, rest, final = 0, b"", False
    with _named_errors(file), _open(file) as stream:
        while not final:
            block = stream.read(PIECE_CHARS)
            final = not block
            text, used_bytes = _decode(file, rest + block, offset_bytes, final)
            rest = (rest + block)[used_bytes:]
            offset_bytes += used_bytes
            yield text


def _decode(file: str, raw: bytes, offset_bytes: int, final: bool) -> tuple[str, int]:
    """The text of `raw`, which begins at `offset_bytes` of the file, and how many bytes of it were used: unless
    `final`, a character cut in two is left. A byte-order mark is dropped. Raises BadValue."""
    hint = "write it as UTF-8 (iconv -f LATIN1 -t UTF-8, or -f UTF-16), unpacked or as .gz"
    if (zero := raw.find(0)) >= 0:
        raise BadValue(f"`{file}` is not plain text: byte {offset_bytes + zero} is zero", hint=hint)
    try:
        text, used_bytes = codecs.utf_8_decode(raw, "strict", final)
    except UnicodeDecodeError as error:
        wrong = f"byte {offset_bytes + error.start} is 0x{raw[error.start]:02x}"
        raise BadValue(f"`{file}` is not UTF-8 text: {wrong} ({error.reason})", hint=hint) from None
    return text.removeprefix("\ufeff") if offset_bytes == 0 else text, used_bytes


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadValue(f"{place} is not JSON: {error}", hint="write one JSON object per line (jq -c '.[]')") from None


def _piece(found: Any, place: str) -> Iterator[Piece]:
    """The document in a JSON value or a row; none if it is blank. Raises BadValue."""
    row = {"text": found} if isinstance(found, str) else found
    if not isinstance(row, dict):
        raise BadValue(f"{place} is a {type(found).__name__}", hint=f"write an object with {_either(FIELDS)} per line")
    field = next((name for name in FIELDS if row.get(name) is not None), None)
    if field is None:
        have = ", ".join(f"{name}: null" if row[name] is None else name for name in row)
        raise BadValue(
            f"{place} has no {_either(FIELDS)} (it has {have or 'nothing'})",
            hint="rename the field that holds the text to `text`, or take the line out",
        )
    return _MAKERS[field](row[field], f"{place}: `{field}`")


def _text(content: Any, place: str) -> Iterator[Piece]:
    return glue([_checked(content, place)])


def _checked(content: Any, place: str) -> str:
    if not isinstance(content, str):
        raise BadValue(f"{place} is a {type(content).__name__}", hint="it must be text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise BadValue(f"{place} holds a lone surrogate, which is not Unicode text", hint="take it out") from None
    return content


def _messages(content: Any, place: str) -> Iterator[Piece]:
    if not isinstance(content, list) or not all(isinstance(message, dict) for message in content):
        raise BadValue(f"{place} is not a list of messages", hint='write [{"role": "user", "content": "..."}, ...]')
    for number, message in enumerate(content, start=1):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadValue(f"{place}: message {number} has no `{key}` that is text", hint="give every message both")
            _checked(message[key], f"{place}: message {number}: `{key}`")
    return iter([Piece(content)] if content else [])


_MAKERS: Mapping[str, Callable[[Any, str], Iterator[Piece]]] = {"text": _text, "messages": _messages, "prompt": _text}
FIELDS = tuple(_MAKERS)
"""where the document of a row is looked for, in this order; a null counts as absent"""


def _either(names: Iterable[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)
