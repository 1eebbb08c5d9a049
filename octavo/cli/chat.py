"""The verb `chat`: a conversation in the terminal. What was said stays in the prefix cache between turns."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cyclopts import Parameter

from octavo.base.errors import OctavoError
from octavo.cli.engine_flags import EngineFlags, SamplingFlags, cache_json, load
from octavo.cli.output import JsonTarget, check_json_target, print_error, write_json

if TYPE_CHECKING:
    from octavo.engine.llm import LLM
    from octavo.engine.sampling import SamplingParams

__all__ = ["ChatOptions", "chat"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    system: str | None = None
    """What the model is told before the conversation."""
    json: JsonTarget = None


_SAMPLING, _NO_OPTIONS = SamplingFlags(max_tokens=1024, temperature=0.7, top_p=0.95), ChatOptions()


def chat(engine: EngineFlags, sampling: SamplingFlags = _SAMPLING, options: ChatOptions = _NO_OPTIONS) -> None:
    """Talk to a model in the terminal. /reset starts over, /exit or Ctrl-D ends; Ctrl-C stops an answer."""
    from octavo.engine.sampling import SamplingParams

    check_json_target(options.json)
    params = SamplingParams(**asdict(sampling))
    llm = load(engine)
    opening = [{"role": "system", "content": options.system}] if options.system else []
    messages = list(opening)
    turns: list[dict[str, int]] = []
    while (line := _ask()) is not None:
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                answer, turn = _turn(llm, messages, params)
            except OctavoError as error:  # the turn is taken back, the conversation goes on
                messages.pop()
                print_error(error.message, error.hint)
                continue
            messages.append({"role": "assistant", "content": answer})
            turns.append(turn)
    if options.json is not None:
        write_json({"messages": messages, "turns": turns, "kv_cache": cache_json(llm)}, options.json)


def _turn(llm: "LLM", messages: list[dict[str, str]], params: "SamplingParams") -> tuple[str, dict[str, int]]:
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
