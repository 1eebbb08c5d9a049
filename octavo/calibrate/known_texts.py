"""Digests of texts by their words, and those of well-known evaluation texts."""

import hashlib
from collections.abc import Iterable, Mapping

from octavo.calibrate.readers import Document, Piece

__all__ = ["DIGEST_BYTES", "EVALUATION_DIGESTS", "text_digests"]

DIGEST_BYTES = 2**26
"""a digest covers this much of the words: more of it would take longer than to choose windows"""

EVALUATION_DIGESTS: Mapping[str, str] = {
    "06f8f4136de90fcf1b32ffda9136ecab621b3e437c370b5cdd27b37e9e9e9efc": "the WikiText-2 raw test text",
    "f84c34dbb21fdf4da7e88e8a962346ded793a3c76b93ff1aa05d7aa64850caa3": "the essays of the needle-in-a-haystack test",
    "540baf77b3c43ae71f34bda926bac9345a605fd2529c617079d494c573a6186c": "the LongEval records of 200 lines",
    "e0be25554f1a0617a5120eb125b60ec21aa87138ed18cfd43d46c7b30d09176e": "the LongEval records of 400 lines",
    "624dc997a8d28f2ad07ef80476e2d615a7d9567944dc6a2e7cca87ce75acf199": "the LongEval records of 600 lines",
    "5ba298c738aa92af04b70898681145ade485fade772f3cf5b503bb034d47d19d": "the LongEval records of 900 lines",
    "23c7308e1f1dec9dcc70ff46561b7ac41f4968c23b26a8e09bd1866bebc95309": "the IFEval prompts (540 of 541)",
    "5f62c836be05dcfe0b8745210b41eee4f3276cf5c2861fe5caeb6ea849d1dc59": "TruthfulQA (the CSV file)",
}
"""digest of an evaluation text, read as a corpus -> its name"""


def text_digests(sources: Iterable[Iterable[Piece]]) -> tuple[str, tuple[str, ...]]:
    """sha256 (hex) of the words of all sources, and of each source, single spaces between words and documents. What
    comes after `DIGEST_BYTES` bytes is not read."""
    whole, each = _Words(), []
    for pieces in sources:
        if whole.room_bytes == 0:
            break
        own = _Words()
        for piece in pieces:
            raw = _words(piece.content).encode()
            whole.add(raw)
            own.add(raw)
            if whole.room_bytes == 0:
                break
        each.append(own.sha.hexdigest())
    return whole.sha.hexdigest(), tuple(each)


class _Words:
    """A digest of words that does not depend on the pieces they come in."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.room_bytes = DIGEST_BYTES

    def add(self, raw: bytes) -> None:
        spaced = raw if self.room_bytes == DIGEST_BYTES else b" " + raw
        self.sha.update(spaced[: self.room_bytes])
        self.room_bytes -= min(len(spaced), self.room_bytes)


def _words(content: Document) -> str:
    if isinstance(content, str):
        return " ".join(content.split())
    return " ".join(" ".join((message["role"], *message["content"].split())) for message in content)
