"""Which tokens may come next, so that the text is what a `GrammarSpec` says: llguidance, within limits.

llguidance (Rust, no dependencies, lazy automata with fuel) was chosen over xgrammar, which brings Triton and CUDA
bindings and compiles in C++ without limits on time. A grammar is compiled in about a millisecond; what it costs later
is bounded for each token by the fuel below, and for each request by the number of lexer states.
"""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from octavo.base.errors import RequestError
from octavo.engine.grammar_spec import JSON_OPTIONS, GrammarSpec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor

    from octavo.checkpoint.tokenizer import Tokenizer

__all__ = ["Grammar", "GrammarFactory", "rehearse"]

T = TypeVar("T")

_MOST_ERROR_LETTERS = 300
_STACK_BYTES = 256 << 20
_STACK_LOCK = threading.Lock()

# By llguidance's own figures a step has 14 ms of lexing. Of 202 hostile inputs the worst step took 61 ms (a CPU that
# others used too), and the longest compilation 0.28 s; docs/structured.md.
_LIMITS = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 10_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Grammar:
    """The state of one text that is being written. Not thread-safe."""

    def __init__(self, matcher: "LLMatcher", eos_ids: tuple[int, ...]):
        self._matcher, self._eos_ids = matcher, eos_ids
        self._allowed: np.ndarray | None = None

    def mask(self, row: "Tensor") -> None:
        """Sets to -inf, in place, what may not come next in a row of logits `[V]`, on any device. EOS may come where
        the text may end. After an error nothing is masked: `accept` will say so."""
        import torch

        allowed = self.allowed()
        if allowed is None:
            return
        banned = np.ones(len(row), dtype=bool)
        size = min(len(row), len(allowed))
        np.logical_not(allowed[:size], out=banned[:size])
        row.masked_fill_(torch.from_numpy(banned).to(row.device), float("-inf"))

    def accept(self, token: int) -> bool:
        """Goes on by a token that was chosen. False: it is not allowed, or the limits are used up; `error` says what,
        and the text cannot be continued."""
        self._allowed = None
        if self.error is not None:
            return False
        if self.finished and token in self._eos_ids:
            return True
        return self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Whether the text is complete and only EOS may follow."""
        return self._matcher.is_accepting() and self._matcher.is_stopped()

    @property
    def error(self) -> str | None:
        """What went wrong, at most 300 letters."""
        return _short(self._matcher.get_error()) if self._matcher.is_error() else None

    def copy(self) -> "Grammar":
        """Another text from the same state. The two share what the automata have learned, and its limit."""
        return Grammar(self._matcher.deep_copy(), self._eos_ids)

    def allowed(self) -> np.ndarray | None:
        """Booleans by token id; None after an error."""
        if self._allowed is None and self.error is None:
            bits = self._matcher.compute_bitmask()
            if not self._matcher.is_error():
                self._allowed = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little").view(bool)
        return self._allowed


class GrammarFactory:
    """Compiles grammars for one tokenizer, which llguidance reads at the first of them. Thread-safe: compiling releases
    the GIL, so a server can do it beside its loop."""

    def __init__(self, tokenizer: "Tokenizer", vocab_size: int, eos_ids: tuple[int, ...]):
        """`vocab_size`: rows of the model's logits, which may be more or fewer than the tokenizer's ids."""
        self.tokenizer, self.vocab_size, self.eos_ids = tokenizer, vocab_size, tuple(eos_ids)
        self._lock = threading.Lock()

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Each call makes automata of its own: no request can use up the limits of another. Raises RequestError for
        what cannot be compiled, with the library's words."""
        with self._lock:
            tokenizer = self._inner
        grammar = Grammar(_on_a_large_stack(lambda: _matcher(tokenizer, spec)), self.eos_ids)
        if grammar.allowed() is None:  # the first mask finds what no text can match, and what is too large
            raise RequestError(f"{spec.kind}: no text matches it, or it is too large ({grammar.error})")
        return grammar

    @cached_property
    def _inner(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self.eos_ids:
            raise RequestError("structured output needs a token that ends the text, and this model names none")
        vocabulary = self.tokenizer.backend.vocabulary()
        source = vocabulary if isinstance(vocabulary, str) else TokenizerWrapper(vocabulary)
        rows = max(self.vocab_size, self.tokenizer.vocab_size)
        try:
            return LLTokenizer(source, n_vocab=rows, eos_token=list(self.eos_ids))  # type: ignore[arg-type]
        except ValueError as error:
            raise RequestError(f"structured output cannot read this tokenizer: {_short(str(error))}") from None


def rehearse(spec: GrammarSpec) -> None:
    """Compiles without a tokenizer and forgets the result, in a process that may be killed: what goes well here within
    a second does so again where it must not fail. Raises RequestError."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**_LIMITS)
    failed, messages = _on_a_large_stack(lambda: LLMatcher.validate_grammar_with_warnings(_source(spec), limits=limits))
    if failed:
        raise RequestError(f"{spec.kind}: {_short(messages[0])}")


def _matcher(tokenizer: "LLTokenizer", spec: GrammarSpec) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, _source(spec), limits=LLParserLimits(**_LIMITS), log_level=0)
    if matcher.is_error():
        raise RequestError(f"{spec.kind}: {_short(matcher.get_error())}")
    return matcher


def _source(spec: GrammarSpec) -> str:
    try:
        return _SOURCES[spec.kind](spec)
    except ValueError as error:
        raise RequestError(f"{spec.kind}: {_short(str(error))}") from None


def _on_a_large_stack(work: Callable[[], T]) -> T:
    """The library follows references by recursion: a chain of 1000 overflows a stack of 8 MiB, which ends the process.
    Memory of a stack that is not touched is not taken."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    with _STACK_LOCK:  # the size is a setting of the process
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="octavo-grammar", daemon=True).start()
        finally:
            threading.stack_size(before)
    return done.result()


def _short(message: str) -> str:
    """A line of the library's message."""
    line = " ".join(message.replace("<non-verbose/>", "").split())
    return line if len(line) <= _MOST_ERROR_LETTERS else f"{line[: _MOST_ERROR_LETTERS - 3]}..."


def _from_schema(spec: GrammarSpec) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(spec.text, overrides=JSON_OPTIONS)  # type: ignore[arg-type]


def _from_nothing(_: GrammarSpec) -> str:
    return _from_schema(GrammarSpec.of_schema({"type": "object"}))


def _from_regex(spec: GrammarSpec) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(spec.text)


def _from_choice(spec: GrammarSpec) -> str:
    texts = (json.dumps(text, ensure_ascii=False) for text in spec.choices)
    return _from_lark(GrammarSpec("lark", f"start: {' | '.join(texts)}"))


def _from_lark(spec: GrammarSpec) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_lark(spec.text)


_SOURCES: Mapping[str, Callable[[GrammarSpec], str]] = {
    "json_schema": _from_schema,
    "json_object": _from_nothing,
    "regex": _from_regex,
    "choice": _from_choice,
    "lark": _from_lark,
}
