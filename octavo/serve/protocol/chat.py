"""`POST /v1/chat/completions`."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from octavo.serve.protocol.sampling import RequestFields, _Strict

__all__ = ["ChatRequest", "Message", "Tool"]

_MOST_MESSAGES, _MOST_TOOLS = 4096, 128


class FunctionCall(_Strict):
    name: Annotated[str, Field(max_length=256)]
    arguments: str | dict[str, Any] = "{}"


class ToolCall(_Strict):
    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Strict):
    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[dict[str, Any]], Field(max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=_MOST_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates know it: what was given, and nothing else."""
        return self.model_dump(exclude_unset=True)


class Function(_Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(_Strict):
    name: Annotated[str, Field(max_length=256)]


class NamedTool(_Strict):
    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(RequestFields):
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=64)] | None = None
    tools: Annotated[list[Tool], Field(max_length=_MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = True
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    modalities: list[str] | None = None
    functions: list[Any] | None = None
    audio: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _what_cannot_be(self) -> "ChatRequest":
        if self.functions:
            raise ValueError("functions is the old form and is not served: use tools")
        if self.audio or (self.modalities and self.modalities != ["text"]):
            raise ValueError("modalities: only text is served")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.continue_final_message and (
            self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set
        ):
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        if not isinstance(self.tool_choice, str | None):
            known = [tool.function.name for tool in self.tools or []]
            if self.tool_choice.function.name not in known:
                raise ValueError(f"tool_choice names `{self.tool_choice.function.name}`, which is not in tools")
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice `required` needs tools")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
