"""What chat and text completions have in common."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["RequestFields", "ResponseFormat", "StreamOptions", "TokenId"]

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Stop = Annotated[str, Field(min_length=1, max_length=1024)]
_MOST_TOKENS = 2**31 - 1
_STRUCTURED = "structured_outputs, or response_format"
_ELSEWHERE = {
    "guided_json": _STRUCTURED, "guided_regex": _STRUCTURED, "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED, "json_schema": _STRUCTURED, "regex": _STRUCTURED, "ebnf": _STRUCTURED,
    "grammar": _STRUCTURED, "truncate_prompt_tokens": "a shorter prompt", "prompt_embeds": "prompt",
    "use_beam_search": "n", "lora_path": "a model that has it merged",
}  # fmt: skip
"""fields of other servers that shape the answer, and what to use here: without them it would be a wrong one"""


class _Strict(BaseModel):
    """Numbers are numbers and text is text; fields that are not known are kept apart, and named in the answer."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class StreamOptions(_Strict):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchema(_Strict):
    name: Annotated[str, Field(max_length=256)] = "schema"
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(_Strict):
    """`regex` with a `regex` beside it is Octavo's own; the others are OpenAI's."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    regex: Annotated[str, Field(max_length=16384)] | None = None


class RequestFields(_Strict):
    """Names and meanings are OpenAI's, and vLLM's for those beyond them."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1, le=_MOST_TOKENS)] | None = 0
    min_p: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=4096),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=32)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = False
    skip_special_tokens: bool | None = True
    min_tokens: Annotated[int, Field(ge=0, le=_MOST_TOKENS)] | None = 0
    ignore_eos: bool | None = False
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    """vLLM's: one of json, regex, choice, grammar"""
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """prefixes are shared only among requests with the same salt"""
    user: Annotated[str, Field(max_length=4096)] | None = None
    request_id: Annotated[str, Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _what_other_servers_know(self) -> Self:
        for name in self.unknown_fields:
            if name in _ELSEWHERE and (self.model_extra or {})[name] not in (None, False):
                raise ValueError(f"{name} is not served: use {_ELSEWHERE[name]}")
        return self

    def sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that this request sets."""
        names = (
            "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "skip_special_tokens", "min_tokens",
            "ignore_eos",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names if name in self.model_fields_set}
        if self.logit_bias:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def unknown_fields(self) -> list[str]:
        return sorted(self.model_extra or {})

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_so_far(self) -> bool:
        """Whether every event of a stream tells the usage up to it."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)
