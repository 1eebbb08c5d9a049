"""The verb `chat`: a conversation in the terminal. What was said stays in the prefix cache between turns."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from octavo.base.errors import OctavoError, UsageError
from octavo.cli.engine_flags import EngineFlags, SamplingFlags, cache_json, load
from octavo.cli.output import JsonTarget, check_json_target, print_error, write_json
from octavo.evals.server import is_url

if TYPE_CHECKING:
    from octavo.engine.llm import LLM
    from octavo.engine.sampling import SamplingParams

__all__ = ["ChatOptions", "ChatSampling", "chat"]

Messages = list[dict[str, str]]
Turn = dict[str, Any]
"""prompt_tokens, cached_tokens and completion_tokens; None where a server did not say"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    system: str | None = None
    """What the model is told before the conversation."""
    served_model_name: str | None = None
    """With a URL: what the server calls the model; if not given, the only one that it lists."""
    api_key: str | None = None
    """With a URL: the server's key; if not given, the environment variable OPENAI_API_KEY."""
    json: JsonTarget = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ChatSampling(SamplingFlags):
    """With defaults that suit a conversation; whichever flags are given, the others keep them."""

    max_tokens: int = 1024
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.95


_SAMPLING, _NO_OPTIONS = ChatSampling(), ChatOptions()


def chat(engine: EngineFlags, sampling: ChatSampling = _SAMPLING, options: ChatOptions = _NO_OPTIONS) -> None:
    """Talk to a model in the terminal, or to a server by its URL. /reset starts over, /exit or Ctrl-D ends; Ctrl-C
    stops an answer."""
    check_json_target(options.json)
    if is_url(engine.model):
        from octavo.cli.chat_server import ServerChat

        served = ServerChat.open(engine, sampling, options.served_model_name, options.api_key)
        messages, turns = _converse(served.turn, options.system)
        facts = served.facts
    else:
        if options.served_model_name is not None or options.api_key is not None:
            raise UsageError(f"--served-model-name and --api-key go with a URL, and {engine.model} is a model")
        from octavo.engine.sampling import SamplingParams

        params = SamplingParams(**asdict(sampling))
        llm = load(engine)
        messages, turns = _converse(lambda messages: _turn(llm, messages, params), options.system)
        facts = {"kv_cache": cache_json(llm)}
    if options.json is not None:
        write_json({"messages": messages, "turns": turns, **facts}, options.json)


def _converse(answer: Callable[[Messages], tuple[str, Turn]], system: str | None) -> tuple[Messages, list[Turn]]:
    """Until the user ends it: all that was said since the last /reset, and what each turn took."""
    opening = [{"role": "system", "content": system}] if system else []
    messages, turns = list(opening), []
    while (line := _ask()) is not None:
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                text, turn = answer(messages)
            except OctavoError as error:  # the turn is taken back, the conversation goes on
                messages.pop()
                print_error(error.message, error.hint)
                continue
            messages.append({"role": "assistant", "content": text})
            turns.append(turn)
    return messages, turns


def _turn(llm: "LLM", messages: Messages, params: "SamplingParams") -> tuple[str, Turn]:
    """One answer, shown as it comes. An interrupted answer is kept as far as it came."""
    ids = llm.tokenizer.chat(messages)
    text, tokens = "", 0
    stream = llm.stream(ids, params)
    request = llm.engine.requests
    cached = 0
    try:
        for event in stream:
            active = request.get(event.request_id)
            cached = active.cached if active else cached
            text += event.text
            tokens += event.token is not None
            sys.stdout.write(event.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    finally:
        stream.close()
    sys.stdout.write("\n")
    return text, {"prompt_tokens": len(ids), "cached_tokens": cached, "completion_tokens": tokens}


def _ask() -> str | None:
    """The next line of the user; None is the end."""
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        return None
    return None if line == "/exit" else line
