"""What a tokenizer's ids stand for, for libraries that look at tokens as bytes."""

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["ByteVocabulary"]


@dataclass(frozen=True)
class ByteVocabulary:
    """The bytes of each id, which ids are special, and plain text to ids (no BOS, no space before). The names of the
    fields are those that llguidance looks for."""

    tokens: tuple[bytes, ...] = field(repr=False)
    special_token_ids: tuple[int, ...] = field(repr=False)
    eos_token_id: int
    encode: Callable[[str], list[int]]
    bos_token_id: int | None = None

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids of a text; bytes that end within a character raise UnicodeDecodeError."""
        return self.encode(text if isinstance(text, str) else text.decode())
