"""What a server says of a prompt that it was asked to echo: its tokens' log-probabilities, and where an option begins.

Offsets are counted here from the tokens' own texts, not taken from `text_offset`: some servers leave that out, and one
that writes a text for its BOS token shifts all offsets by that. Where texts do not add up to the prompt (characters
that are several tokens, ids instead of texts) or a token stands across the border, the context's own token count
decides: encoded together, split where the context alone would end, as in process and in lm-evaluation-harness.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import RequestError, UsageError
from octavo.evals.server import Server

__all__ = ["Echo", "ask_echo", "option_sum", "read_echo", "split_at"]

_HINT = "tasks with generated answers (gsm8k, longeval-lines, needles) need no echo and can run on this server"


@dataclass(frozen=True)
class Echo:
    """A prompt's tokens, a BOS token among them where the server shows it; the first has no log-probability."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]


def ask_echo(server: Server, prompt: str, seed: int) -> Echo:
    """Raises UsageError where the server does not say what is needed. One token is asked for: some refuse none."""
    reply = server.complete(prompt=prompt, max_tokens=1, echo=True, logprobs=1, seed=seed)
    return read_echo(reply, prompt, server.url)


def read_echo(reply: Mapping[str, Any], prompt: str, where: str) -> Echo:
    """Without what was generated. Raises UsageError naming what is missing."""
    given = reply["choices"][0].get("logprobs")
    found = given if isinstance(given, dict) else {}
    tokens, logprobs = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(logprobs, list):
        names = (("tokens", tokens), ("token_logprobs", logprobs))
        lacking = [f"`logprobs.{name}`" for name, value in names if not isinstance(value, list)]
        raise _missing(where, f"has no {' and no '.join(lacking)}")
    if len(tokens) != len(logprobs):
        raise _missing(where, f"has {len(tokens)} tokens and {len(logprobs)} log-probabilities")
    count = _prompt_count([str(token) for token in tokens], prompt, reply.get("usage") or {})
    if count is None or not any(isinstance(value, int | float) for value in logprobs[1:count]):
        raise _missing(where, "has log-probabilities of what was generated, but none of the prompt's tokens")
    return Echo(tuple(str(token) for token in tokens[:count]), tuple(logprobs[:count]))


def _missing(where: str, what: str) -> UsageError:
    return UsageError(
        f"{where} does not score prompts: its answer to /v1/completions with echo and logprobs {what}", hint=_HINT
    )


def _prompt_count(tokens: list[str], prompt: str, usage: Mapping[str, Any]) -> int | None:
    """How many of the tokens are the prompt's: the others, one or none, were generated. None: not even those.

    Where texts add up to the prompt that decides; else the server's own count, else all but one."""
    said = usage.get("prompt_tokens")
    first = [said] if isinstance(said, int) and said >= len(tokens) - 1 else []
    counts = [count for count in (*first, len(tokens) - 1, len(tokens)) if 1 < count <= len(tokens)]
    for count in counts:
        if "".join(tokens[:count]).endswith(prompt):
            return count
    if isinstance(said, int) and said not in (len(tokens) - 1, len(tokens)):
        return None  # those are other tokens
    return counts[0] if counts else None


def split_at(echo: Echo, prompt: str, border: int) -> int | None:
    """Index of the first token of `prompt[border:]`; None where the tokens' texts do not say. What stands before the
    prompt in those (a BOS token's text) is passed over."""
    text = "".join(echo.tokens)
    if not text.endswith(prompt):
        return None
    at = len(prompt) - len(text)
    for index, token in enumerate(echo.tokens):
        if at >= border:
            return index if at == border else None
        at += len(token)
    return None


def option_sum(server: Server, context: str, option: str, seed: int) -> float:
    """Summed log-probability (nats) of `option` after `context`. Raises RequestError where it has no token of its own,
    or a log-probability that is no finite number."""
    echo = ask_echo(server, context + option, seed)
    start = split_at(echo, context + option, len(context))
    if start is None:
        start = len(ask_echo(server, context, seed).tokens)
    scored = echo.logprobs[start:]
    if not scored or start == 0:
        raise RequestError(f"the option {option!r} has no token after its context")
    values = [float(value) for value in scored if isinstance(value, int | float) and math.isfinite(value)]
    if len(values) != len(scored):
        bad = next(value for value in scored if not (isinstance(value, int | float) and math.isfinite(value)))
        raise RequestError(f"the server's log-probability of a token of {option!r} is {bad}")
    return sum(values)
