"""What a request asks of the sampler, checked where it is born. Pure: no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.base.errors import BadValue
from octavo.engine.grammar_spec import GrammarSpec

__all__ = ["MAX_LOGPROBS", "SamplingParams"]

MAX_LOGPROBS = 64
_MAX_STOPS = 32
_MAX_BIASES = 4096


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next tokens are chosen. Field names and meanings are the field's own (OpenAI, vLLM). Raises BadValue."""

    max_tokens: int | None = 16
    """None: as many as the model and the pool allow"""
    temperature: float = 1.0
    """0 is greedy"""
    top_k: int = 0
    """0 or -1 is off"""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """divides positive logits, multiplies negative ones, of tokens in the prompt or the output (Keskar et al. 2019)"""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """the same seed and prompt give the same tokens, whatever else is in the batch"""
    stop: tuple[str, ...] | list[str] | str = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """log-probabilities of the chosen token and of this many best ones, from the model's own distribution"""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    grammar: GrammarSpec | None = None
    """what the text must look like; a mapping with its fields will do. It ends with `stop` when it is complete and
    nothing may follow, whatever min_tokens and ignore_eos say, and with `error` when the grammar's limits are spent"""

    def __post_init__(self) -> None:
        if isinstance(self.grammar, Mapping):
            object.__setattr__(self, "grammar", _grammar_of(self.grammar))
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", {int(token): float(bias) for token, bias in self.logit_bias.items()})
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 2**31)
        _real("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, -1, 2**31)
        _real("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above_low=True)
        _real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _whole("min_tokens", self.min_tokens, 0, 2**31)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _whole(name, count, 0, MAX_LOGPROBS)
        self._check_lists()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise BadValue(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")

    def _check_lists(self) -> None:
        if len(self.stop) > _MAX_STOPS or not all(isinstance(text, str) and text for text in self.stop):
            raise BadValue(f"stop must be at most {_MAX_STOPS} non-empty strings, not {self.stop!r}")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, 2**31)
        if len(self.logit_bias) > _MAX_BIASES:
            raise BadValue(f"logit_bias has {len(self.logit_bias)} entries; at most {_MAX_BIASES} are allowed")
        for token, bias in self.logit_bias.items():
            _whole("logit_bias token", token, 0, 2**31)
            _real(f"logit_bias of token {token}", bias, -100.0, 100.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def reads_output(self) -> bool:
        """Whether the next token depends on which tokens came before it by more than the model."""
        penalized = self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        return bool(penalized or self.grammar is not None)

    @property
    def reshapes(self) -> bool:
        """Whether anything changes the logits before a token is chosen, other than temperature."""
        return bool(self.reads_output or self.logit_bias or self.min_tokens)


def _grammar_of(fields: Mapping[str, str]) -> GrammarSpec:
    unknown = set(fields) - {"kind", "text"}
    if unknown or "kind" not in fields:
        raise BadValue("grammar has a kind and a text, and nothing else")
    return GrammarSpec(**fields)  # type: ignore[arg-type]


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadValue(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _real(name: str, value: object, low: float, high: float, above_low: bool = False) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high or (above_low and value == low):  # type: ignore[operator]
        raise BadValue(f"{name} must be a number {'above' if above_low else 'from'} {low} to {high}, not {value!r}")
