"""Tokenizers run by the `sentencepiece` library: a tokenizer.model, or one rebuilt from pieces and scores (GGUF).

The library encodes plain text only, so special and added tokens are cut out first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from octavo.checkpoint.vocabulary import ByteVocabulary

__all__ = ["PieceKind", "Pieces", "SentencePieceBackend", "SentencePieceOptions", "build_model", "read_pieces"]

_SPACE = "▁"  # how pieces spell a space


class PieceKind(IntEnum):
    """The kinds of pieces; sentencepiece and GGUF number them alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceOptions:
    """`added`: text -> id of tokens that are matched before the library sees the text, `special` those that decoding
    may skip. `prefix_each`: text after a special token begins with a space too, not only the first text."""

    added: Mapping[str, int]
    special: frozenset[int]
    bos: int | None = None
    eos: int | None = None
    prefix_each: bool = False


class SentencePieceBackend:
    """`model` is a serialized sentencepiece model; `options` say what surrounds it."""

    def __init__(self, model: bytes, options: SentencePieceOptions):
        from sentencepiece import SentencePieceProcessor

        proto = _new_proto()
        proto.ParseFromString(model)
        self.options = options
        self._adds_space = proto.normalizer_spec.add_dummy_prefix
        self._processor: Any = SentencePieceProcessor(model_proto=model)
        proto.normalizer_spec.add_dummy_prefix = False
        self._spaceless: Any = SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._names = {i: token for token, i in options.added.items()}
        self._size = max([self._processor.vocab_size(), *(i + 1 for i in options.added.values())])
        longest_first = sorted(options.added, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = list(self._encode_parts(text))
        if not add_special_tokens:
            return ids
        bos, eos = ([] if i is None else [i] for i in (self.options.bos, self.options.eos))
        return bos + ids + eos

    def _encode_parts(self, text: str) -> Iterator[int]:
        prefixed = self._adds_space
        for part in self._cut.split(text) if self._cut else [text]:
            if part in self.options.added:
                yield self.options.added[part]
                prefixed = self._adds_space and self.options.prefix_each
            elif part:
                yield from (self._processor if prefixed else self._spaceless).encode(part)
                prefixed = False

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        kept = [i for i in ids if not (skip_special_tokens and i in self.options.special)]
        text = b"".join(self._bytes_of(i) for i in kept).decode(errors="replace")
        return text.removeprefix(" ") if self._adds_space else text

    def _bytes_of(self, i: int) -> bytes:
        if i in self._names:
            return self._names[i].encode()
        if i >= len(self._pieces):
            return b""
        return self._pieces[i]

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes that each id stands for."""
        processor = self._processor
        spelled = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
        return [
            bytes([int(piece[3:-1], 16)]) if processor.is_byte(i) else piece.replace(_SPACE, " ").encode()
            for i, piece in enumerate(spelled)
        ]

    def vocab_size(self) -> int:
        return self._size

    def token_id(self, token: str) -> int | None:
        if token in self.options.added:
            return self.options.added[token]
        i = self._processor.piece_to_id(token)
        return i if i != self._processor.unk_id() or token == self._processor.id_to_piece(i) else None

    def vocabulary(self) -> ByteVocabulary:
        pieces = tuple(self._bytes_of(i) for i in range(self._size))
        special, end = self.options.special, self.options.eos or 0
        return ByteVocabulary(pieces, tuple(sorted(special)), end, self._spaceless.encode)


@dataclass(frozen=True)
class Pieces:
    """What a model lists: `pieces[id]` is (spelling, kind); the texts of its special tokens, "" where it has none."""

    pieces: tuple[tuple[str, int], ...]
    unknown: str
    bos: str
    eos: str


def read_pieces(model: bytes) -> Pieces | None:
    """What is in a serialized model; None if it is not one."""
    from google.protobuf.message import DecodeError

    proto = _new_proto()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        return None
    pieces = tuple((str(piece.piece), int(piece.type)) for piece in proto.pieces)

    def text(i: int) -> str:
        return pieces[i][0] if 0 <= i < len(pieces) else ""

    trainer = proto.trainer_spec
    return Pieces(pieces, text(trainer.unk_id), text(trainer.bos_id), text(trainer.eos_id)) if pieces else None


def build_model(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool = False,
) -> bytes:
    """A serialized sentencepiece BPE model without normalization, with byte fallback if there are byte pieces."""
    proto = _new_proto()
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = PieceKind.BYTE in kinds
    trainer.unk_id = list(kinds).index(PieceKind.UNKNOWN)
    trainer.unk_piece = pieces[trainer.unk_id]
    trainer.bos_id = trainer.eos_id = trainer.pad_id = -1
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = add_dummy_prefix
    normalizer.remove_extra_whitespaces = remove_extra_whitespaces
    normalizer.escape_whitespaces = True
    return proto.SerializeToString()


def _new_proto() -> Any:
    from sentencepiece import sentencepiece_model_pb2

    return getattr(sentencepiece_model_pb2, "ModelProto")()  # noqa: B009 (made at import, unknown to type checkers)
