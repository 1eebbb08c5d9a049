"""Text to token ids and back, and chats to token ids."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from octavo.base.errors import RequestError
from octavo.checkpoint.chat_template import render_chat
from octavo.checkpoint.vocabulary import ByteVocabulary

__all__ = ["Backend", "Tokenizer", "merge_ids"]


class Backend(Protocol):
    """What a tokenizer library does for us. Special tokens that appear in the text become their ids."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...

    def vocab_size(self) -> int: ...

    def token_id(self, token: str) -> int | None: ...

    def vocabulary(self) -> str | ByteVocabulary:
        """What another library needs to know the tokens: a tokenizer.json's text, or the bytes of each."""
        ...


@dataclass(frozen=True)
class Tokenizer:
    """A backend and what the checkpoint says around it."""

    backend: Backend = field(repr=False)
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """every id that ends a reply: the tokenizer's own, the config's, the generation config's"""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """name -> text, as chat templates know them: bos_token, eos_token, ..."""
    chat_template: str | None = field(default=None, repr=False)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`; `add_special_tokens` adds BOS and EOS where the checkpoint asks for them. Raises
        RequestError for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the text holds a lone surrogate, which is not Unicode text") from None
        return self.backend.encode(text, add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Ids past the vocabulary (padding rows of the embedding) are left out; bytes that make no
        character become U+FFFD."""
        size = self.backend.vocab_size()
        return self.backend.decode([i for i in ids if 0 <= i < size], skip_special_tokens)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included. A model's embedding may have more rows."""
        return self.backend.vocab_size()

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    def with_chat_template(self, template: str) -> "Tokenizer":
        """The same tokenizer with another chat template (its text)."""
        return replace(self, chat_template=template)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a chat; `variables` reach the template (tools, enable_thinking, ...). Raises RequestError."""
        if self.chat_template is None:
            raise RequestError(
                "this model has no chat template", hint="give one (--chat-template), or send a plain prompt"
            )
        given = {**self.special_tokens, **variables, "add_generation_prompt": add_generation_prompt}
        return render_chat(self.chat_template, messages, given)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The ids of a chat. The template alone decides about BOS: none is added. Raises RequestError."""
        return self.encode(self.render(messages, add_generation_prompt, **variables), add_special_tokens=False)


def merge_ids(*groups: Iterable[int | None]) -> tuple[int, ...]:
    """All ids once, in order."""
    return tuple(dict.fromkeys(i for group in groups for i in group if i is not None))
