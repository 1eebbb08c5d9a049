"""`POST /v1/completions`, `/tokenize` and `/detokenize`."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from octavo.serve.protocol.sampling import RequestFields, TokenId, _Strict

__all__ = ["CompletionRequest", "DetokenizeRequest", "TokenizeRequest"]

_TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20)]
_MOST_PROMPTS = 1024


class CompletionRequest(RequestFields):
    """`prompt`: text, token ids, or a list of either."""

    prompt: (
        str
        | _TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=_MOST_PROMPTS)]
        | Annotated[list[_TokenIds], Field(min_length=1, max_length=_MOST_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = 16
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=64)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=64)] | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    add_special_tokens: bool | None = True

    @model_validator(mode="after")
    def _what_cannot_be(self) -> "CompletionRequest":
        if self.suffix:
            raise ValueError("suffix: text cannot be inserted before a suffix; only continued")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of must be n: answers are not ranked")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 gives nothing without echo")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        many: Any = self.prompt
        return [many] if isinstance(many, str) or isinstance(many[0], int) else list(many)


class TokenizeRequest(_Strict):
    """Either `prompt`, or `messages` as a chat would have them."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _one_of_them(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(_Strict):
    model: Annotated[str, Field(max_length=1024)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]
