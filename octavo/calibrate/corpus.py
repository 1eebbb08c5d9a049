"""What `--data` means: files, a folder, a data set of the hub or the bundled text, cut into windows of token ids.

A corpus is a stream of documents and is read anew each time; nothing is kept. Its digest is of its words, so that the
same text counts as the same whatever its file is called, however it is packed, and whether its documents are lines of
JSON or one plain text. The exact token ids have a digest of their own, `Windows.digest`.
"""

import hashlib
import os
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.base.errors import BadValue, OctavoError
from octavo.calibrate.hub import HUB_SETS, read_hub
from octavo.calibrate.known_texts import EVALUATION_DIGESTS, text_digests
from octavo.calibrate.readers import Document, Piece, in_folders, read_pieces

if TYPE_CHECKING:
    from octavo.checkpoint.tokenizer import Tokenizer

__all__ = [
    "BUNDLED",
    "EVALUATION_DIGESTS",
    "READ_FACTOR",
    "SAMPLES",
    "SEQLEN_TOKENS",
    "Corpus",
    "Windows",
    "evaluation_set",
    "open_corpus",
    "same_corpus",
    "windows",
]

BUNDLED = "bundled"
"""names the text that comes with the package, always (a file of that name is `./bundled`)"""
READ_FACTOR = 4
"""tokens read at most, as a multiple of those that are needed (then to the end of the piece being read)"""
SAMPLES = (1, 100_000)
SEQLEN_TOKENS = (16, 1_000_000)


@dataclass(frozen=True)
class Corpus:
    """Where calibration text comes from. `files` are paths; a data set of the hub has none and is known by name."""

    name: str
    files: tuple[str, ...]

    def documents(self) -> Iterator[Document]:
        """Texts and chats in order of the files, read as they are asked for. A text longer than
        `readers.PIECE_CHARS` comes in parts. Raises UsageError, BadValue."""
        return (piece.content for piece in self.pieces())

    def pieces(self) -> Iterator[Piece]:
        """As `documents`, with what continues what."""
        for source in self.sources:
            yield from self.pieces_of(source)

    @property
    def sources(self) -> tuple[str, ...]:
        return self.files or (self.name,)

    def pieces_of(self, source: str) -> Iterator[Piece]:
        return read_pieces(source) if self.files else read_hub(source)

    def digest(self) -> str:
        """sha256 (hex) of the words of all documents in order, single spaces between them: of the first
        `known_texts.DIGEST_BYTES`, which is all of most corpora. Reads the corpus."""
        return text_digests(map(self.pieces_of, self.sources))[0]


@dataclass(frozen=True)
class Windows:
    """Token ids to calibrate on: `samples` windows of `seqlen` ids, in the order of the corpus."""

    ids: tuple[tuple[int, ...], ...] = field(repr=False)
    samples: int
    seqlen: int
    seed: int
    digest: str
    """sha256 (hex) of all ids, 4 bytes each, little-endian"""
    documents: int
    """how many were read, in whole or in part, to choose the windows from"""
    corpus_digest: str


def open_corpus(data: str) -> Corpus:
    """The corpus that `data` names: `bundled`, a file, a folder (its text files, sorted, at any depth, hidden ones left
    out), or a data set of the hub. Reads its first document. Raises UsageError, BadValue."""
    path = _bundled_file() if data == BUNDLED else Path(data)
    if data and os.path.isfile(path):
        corpus = Corpus(data, (str(path),))
    elif data and os.path.isdir(path):
        corpus = Corpus(data, _files_of(path))
    elif data in HUB_SETS:
        corpus = Corpus(data, ())
    else:
        what = "is neither a file nor a folder" if data and os.path.exists(path) else "no such file or folder"
        raise BadValue(
            f"--data `{data}`: {what}",
            hint=f"give a text file, a .jsonl[.gz], a .parquet, a folder, `{BUNDLED}`, or one of {', '.join(HUB_SETS)}",
        )
    if next(corpus.pieces(), None) is None:
        raise BadValue(f"--data `{data}` holds no text", hint=f"give another file, or `{BUNDLED}`")
    return corpus


def evaluation_set(corpus: Corpus) -> str | None:
    """The name of the well-known evaluation text that this corpus, or one of its files, is. To calibrate on what is
    measured later flatters the result. Reads the corpus."""
    whole, files = text_digests(map(corpus.pieces_of, corpus.sources))
    return next((EVALUATION_DIGESTS[digest] for digest in (whole, *files) if digest in EVALUATION_DIGESTS), None)


def same_corpus(a: Corpus | str, b: Corpus | str) -> bool:
    """Whether two corpora, or digests of corpora, are the same text."""
    first, second = (found if isinstance(found, str) else found.digest() for found in (a, b))
    return first == second


def windows(
    corpus: Corpus, tokenizer: "Tokenizer", samples: int, seqlen: int, seed: int, chat: bool = False
) -> Windows:
    """`samples` windows of `seqlen` ids, chosen by `seed` from the first `READ_FACTOR * samples * seqlen` tokens.

    Documents follow each other with an end-of-text id between them and are cut every `seqlen` ids. Where the tokenizer
    begins a text with BOS, every window does (it is one of the `seqlen`). Chats go through the chat template; with
    `chat`, texts do too, each as a user's message. Raises BadValue for sizes out of range and for a corpus that holds
    fewer windows, and what reading the corpus raises."""
    _check("--samples", samples, SAMPLES)
    _check("--seqlen", seqlen, SEQLEN_TOKENS)
    _check("--seed", seed, (0, 2**63 - 1))
    head = _head(tokenizer)
    stream = _Stream(corpus, tokenizer, head, chat)
    stride_tokens = seqlen - len(head)
    bodies = _cut(stream.until(READ_FACTOR * samples * stride_tokens), stride_tokens)
    chosen = _choose(bodies, samples, seed)
    if len(chosen) < samples:
        raise _too_small(corpus.name, stream.tokens, len(chosen), samples, seqlen, longest=stream.tokens + len(head))
    ids = tuple((*head, *body) for body in chosen)
    digest = hashlib.sha256()
    for window in ids:
        digest.update(struct.pack(f"<{len(window)}I", *window))
    return Windows(ids, samples, seqlen, seed, digest.hexdigest(), stream.documents, corpus.digest())


class _Stream:
    """The corpus as token ids, and the count of what was read."""

    def __init__(self, corpus: Corpus, tokenizer: "Tokenizer", head: tuple[int, ...], chat: bool):
        self.corpus, self.tokenizer, self.head, self.chat = corpus, tokenizer, head, chat
        self.tokens = 0
        self.documents = 0

    def until(self, limit_tokens: int) -> Iterator[list[int]]:
        """The ids of each piece, until `limit_tokens` are reached or there are no more. `head` is taken off."""
        ends, last = self.tokenizer.eos_token_ids, None
        for piece in self.corpus.pieces():
            begins = self.chat or not piece.continues
            self.documents += begins
            ids = self._encode(piece.content)
            if begins and last is not None and last not in ends:
                ids = [*ends[:1], *ids]
            self.tokens += len(ids)
            last = ids[-1] if ids else last
            yield ids
            if self.tokens >= limit_tokens:
                return

    def _encode(self, content: Document) -> list[int]:
        if isinstance(content, str) and not self.chat:
            return self.tokenizer.encode(content, add_special_tokens=False)
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        try:
            ids = self.tokenizer.chat(messages, add_generation_prompt=messages[-1]["role"] != "assistant")
        except OctavoError as error:
            raise BadValue(f"document {self.documents} of `{self.corpus.name}`: {error.message}", error.hint) from None
        skip = len(self.head) if tuple(ids[: len(self.head)]) == self.head else 0
        return ids[skip:]


def _head(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """BOS, where the tokenizer begins every text with it."""
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and tokenizer.encode("a")[:1] == [bos] else ()


def _cut(stream: Iterable[list[int]], stride_tokens: int) -> Iterator[tuple[int, ...]]:
    rest: list[int] = []
    for ids in stream:
        rest += ids
        whole = len(rest) // stride_tokens * stride_tokens
        for start in range(0, whole, stride_tokens):
            yield tuple(rest[start : start + stride_tokens])
        rest = rest[whole:]


def _choose(bodies: Iterable[tuple[int, ...]], samples: int, seed: int) -> list[tuple[int, ...]]:
    """`samples` of them, each as likely as any other, without holding the rest (reservoir sampling: Vitter 1985,
    algorithm R), in their own order."""
    rng = random.Random(seed)
    kept: list[tuple[int, tuple[int, ...]]] = []
    for number, body in enumerate(bodies):
        if number < samples:
            kept.append((number, body))
        elif (slot := rng.randrange(number + 1)) < samples:
            kept[slot] = (number, body)
    return [body for _, body in sorted(kept)]


def _too_small(name: str, tokens: int, fit: int, samples: int, seqlen: int, longest: int) -> BadValue:
    """`fit` windows fit; `longest` is the seqlen at which one does."""
    shorter = f"--samples 1 --seqlen {longest}, or " if longest >= SEQLEN_TOKENS[0] else ""
    return BadValue(
        f"`{name}` holds {tokens:,} tokens: {fit} windows of {seqlen}, and {samples} were asked for",
        hint=f"--samples {fit}, a smaller --seqlen, or more --data" if fit else f"{shorter}more --data",
    )


def _check(flag: str, value: int, allowed: tuple[int, int]) -> None:
    low, high = allowed
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadValue(f"{flag} {value} is not allowed", hint=f"give a whole number from {low:,} to {high:,}")


def _bundled_file() -> Path:
    return Path(__file__).parent / "data" / "bundled.txt"


def _files_of(folder: Path) -> tuple[str, ...]:
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files = [path for path in found if in_folders(path) and not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise BadValue(
            f"--data `{folder}`: none of its {len(found)} files is .txt, .md, .raw, .jsonl, .json.gz or .parquet",
            hint="a file of another name is read as plain text if it is given itself",
        )
    return tuple(str(folder / path) for path in sorted(files, key=lambda path: path.parts))
