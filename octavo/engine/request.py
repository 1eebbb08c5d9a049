"""One request: its tokens, its pages, its status, and the only code that moves them. Pure: no torch."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal

from octavo.engine.sampling import SamplingParams
from octavo.kv.prefix import Key, page_key

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.engine.detokenizer import TextStream
    from octavo.engine.grammar import Grammar

__all__ = ["FinishReason", "Request", "Status", "TokenEvent", "TokenLogprobs"]

FinishReason = Literal["stop", "length", "abort", "error"]


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class TokenLogprobs:
    """The chosen (or given) token's log-probability, and the best ones as (token, log-probability), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TokenEvent:
    """What one step gave one request. `text` is what may be shown now: whole characters, no half stop string.
    `token` is None when the request ended without a new one (abort, scoring)."""

    request_id: str
    token: int | None
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(eq=False)
class Request:
    """`tokens` = prompt + output, as far as the host knows them. `promised` more have been sampled by steps that are
    still running: they are on the device, and their ids come later. `length` = len(tokens) + promised.

    [0, computed)           stored, or queued to be   pages [0, published) are in the prefix index: read only
    [computed, length)      pending                   to be run; more than one means prefill
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    arrival: int
    """its place in the order of arrival"""
    max_length: int
    """tokens at which it ends with finish reason `length`"""
    seed: int
    root: Key
    """what the keys of its pages start from: plan fingerprint and salt"""
    scores: bool = False
    """a scoring request wants the log-probabilities of its whole prompt, and no new token"""
    text: "TextStream | None" = None
    reads_prefix: bool = True
    score_from: int = 0
    """the first prompt position whose log-probabilities a scoring request wants"""
    grammar: "Grammar | None" = None
    """where the output is in its grammar; it stays when the request is preempted"""
    tokens: list[int] = field(init=False)
    pages: "array[int]" = field(default_factory=lambda: array("i"))
    computed: int = 0
    promised: int = 0
    published: int = 0
    cached: int = 0
    """prompt tokens that a prefix hit gave at the last admission"""
    preemptions: int = 0
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    scored: "list[Tensor]" = field(default_factory=list)
    _keys: list[Key] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def output_count(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def length(self) -> int:
        return len(self.tokens) + self.promised

    @property
    def pending(self) -> int:
        return len(self.tokens) + self.promised - self.computed

    @property
    def closing(self) -> bool:
        """Whether its last token is sampled, though not yet known: there is nothing more to run."""
        return self.promised > 0 and self.length >= self.max_length

    @property
    def decoding(self) -> bool:
        """One token to run, and all before it stored: a row that any step can carry."""
        return self.pending == 1 and self.computed > 0

    @property
    def needs_ids(self) -> bool:
        """Whether a step with it must be read before the next is planned: its next logits are changed by the ids it
        has, or the logits of its prompt are looked at on the host."""
        return self.wants_prompt or self.params.reads_output

    @property
    def wants_prompt(self) -> bool:
        """Whether logits of prompt positions from `score_from` on are wanted (a prefix hit would lose earlier ones)."""
        return self.scores or self.params.prompt_logprobs is not None

    def keys(self, count: int, page_tokens: int) -> Sequence[Key]:
        """Prefix keys of its first `count` pages, which must be full of known tokens; made once, kept."""
        while len(self._keys) < count:
            begin = len(self._keys) * page_tokens
            parent = self._keys[-1] if self._keys else self.root
            self._keys.append(page_key(parent, self.tokens[begin : begin + page_tokens]))
        return self._keys[:count]

    def admit(self, shared: Sequence[int], page_tokens: int) -> None:
        """Start (again) with the pages of a prefix hit."""
        assert self.status is Status.WAITING and not self.pages, (
            f"{self.id} is {self.status} with {len(self.pages)} pages"
        )
        assert self.promised == 0, f"{self.id} is admitted with {self.promised} tokens that nobody knows"
        self.pages = array("i", shared)
        self.published = len(shared)
        self.computed = self.cached = len(shared) * page_tokens
        self.status = Status.RUNNING

    def preempt(self) -> Sequence[int]:
        """Back to waiting, to be recomputed; the caller releases the pages that are returned. A promised token still
        comes: it was sampled before."""
        self.preemptions += 1
        self.status = Status.WAITING
        return self._drop_pages()

    def ran(self, count: int) -> None:
        """A step with its next `count` tokens is queued on the device; if they were the last, it samples another."""
        samples = count == self.pending and not self.scores
        self.computed += count
        self.promised += samples

    def append(self, token: int) -> None:
        """The first of the promised tokens is known."""
        assert self.promised > 0, f"{self.id} was promised no token"
        self.promised -= 1
        self.tokens.append(token)

    def finish(self, reason: FinishReason) -> Sequence[int]:
        """The end; the caller releases the pages that are returned."""
        self.status = Status.FINISHED
        self.finish_reason = reason
        return self._drop_pages()

    def _drop_pages(self) -> Sequence[int]:
        pages, self.pages = self.pages, array("i")
        self.computed = self.published = 0
        return pages
