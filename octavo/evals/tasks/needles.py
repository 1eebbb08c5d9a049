"""Needles: one sentence with a number, hidden at a depth of a long text, and asked for at its end."""

from pathlib import Path

import numpy as np

from octavo.base.errors import UsageError
from octavo.calibrate.corpus import BUNDLED, open_corpus
from octavo.evals.tasks.items import GeneratedItem

__all__ = ["DEPTHS", "read_needles"]

DEPTHS = tuple(range(0, 101, 10))
"""per cent of the text that come before the needle"""
_EACH = 10
_USUAL, _LENGTHS = 4000, (100, 1_000_000)
_CHARACTERS = 4
"""of a token, about, in English text"""
_CITIES = "Lisbon Oslo Lima Cairo Kyoto Quito Turin Dakar Perth Hanoi Accra Malmo Basel Tunis Osaka Porto".split()  # noqa: SIM905
_TOKENS = 24


def read_needles(group: str, data: str | None) -> tuple[list[GeneratedItem], str]:
    """`group`: the text's length in tokens, taken as four characters each; `data`: any text, else the one that comes
    with the package. Ten items a depth; each takes its own part of the text, by the depth and its number alone.

    Raises UsageError for a length that is none, or a text that is shorter."""
    length = _length(group)
    corpus = open_corpus(data or BUNDLED)
    text = "".join(
        piece.content if piece.continues else f"\n\n{piece.content}"
        for piece in corpus.pieces()
        if isinstance(piece.content, str)
    ).strip()
    need = length * _CHARACTERS
    if len(text) < need:
        raise UsageError(
            f"needles:{length} needs about {need:,} characters of text, and {corpus.name} has {len(text):,}",
            hint=f"give a longer text with --data, or at most needles:{len(text) // _CHARACTERS}",
        )
    items = [_item(text, length, depth, number) for depth in DEPTHS for number in range(_EACH)]
    return items, Path(corpus.name).name


def _length(group: str) -> int:
    low, high = _LENGTHS
    text = group.strip() or str(_USUAL)
    if not text.isdigit() or not low <= int(text) <= high:
        raise UsageError(f"needles: `{group}` is no length (tokens, {low} to {high:,})", hint="such as needles:4000")
    return int(text)


def _item(text: str, length: int, depth: int, number: int) -> GeneratedItem:
    random = np.random.default_rng((length, depth, number))
    size = length * _CHARACTERS
    begin = int(random.integers(0, len(text) - size + 1))
    begin = text.find(" ", begin, begin + 100) + 1 or begin
    hay = text[begin : begin + size].rpartition(" ")[0]
    city, secret = _CITIES[int(random.integers(len(_CITIES)))], str(int(random.integers(10_000, 100_000)))
    at = _sentence_end(hay, len(hay) * depth // 100)
    said = f"The secret number of {city} is"
    prompt = f"{hay[:at].rstrip()} {said} {secret}. {hay[at:].lstrip()}\n\n".lstrip()
    prompt += f"Question: What is the secret number of {city}?\nAnswer: {said}"
    return GeneratedItem(
        f"needles/{length}/{depth}/{number}", f"{depth} %", prompt, secret, ("\n",), _TOKENS, "first number"
    )


def _sentence_end(hay: str, at: int) -> int:
    """The last end of a sentence up to `at`; the beginning if there is none."""
    if at == len(hay):
        return at
    return max(hay.rfind(mark, 0, at) + len(mark) for mark in (". ", ".\n", "? ", "! ")) if at else 0
