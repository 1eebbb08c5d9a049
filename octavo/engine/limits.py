"""What an engine can take, and the refusal of what it cannot. Pure: no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.base.errors import CapacityError, RequestError
from octavo.engine.sampling import SamplingParams

__all__ = ["EngineLimits"]


@dataclass(frozen=True)
class EngineLimits:
    """What one request, and all of them, may take. `capacity_tokens` is what the whole pool holds."""

    vocab_size: int
    max_model_len: int
    max_sequences: int
    max_batched_tokens: int
    page_tokens: int
    num_pages: int

    @property
    def capacity_tokens(self) -> int:
        return self.num_pages * self.page_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that fits the model and the pool."""
        return min(self.max_model_len, self.capacity_tokens)

    def check_prompt(self, prompt: Sequence[int], scores: bool) -> tuple[int, ...]:
        """The prompt as plain numbers. Raises RequestError or CapacityError."""
        tokens = tuple(int(token) for token in prompt)
        if not tokens:
            raise RequestError("the prompt is empty", hint="give at least one token")
        outside = next((token for token in tokens if not 0 <= token < self.vocab_size), None)
        if outside is not None:
            raise RequestError(f"token id {outside} is outside the vocabulary [0, {self.vocab_size})")
        room = 0 if scores else 1  # a prompt that fills the model leaves no place for a new token
        if len(tokens) + room > self.max_model_len:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens and the model takes {self.max_model_len}, new ones included",
                hint="shorten it or raise --max-model-len",
            )
        if len(tokens) + room > self.capacity_tokens:
            raise CapacityError(
                f"the prompt has {len(tokens)} tokens and the whole cache holds {self.capacity_tokens} "
                f"({self.num_pages} pages of {self.page_tokens})",
                hint="raise --kv-cache-memory or choose a smaller --kv-cache-dtype",
            )
        return tokens

    def check_params(self, params: SamplingParams) -> None:
        """Raises RequestError for a token id that the model does not have."""
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token in ids:
                if token >= self.vocab_size:
                    raise RequestError(f"{name}: token id {token} is outside the vocabulary [0, {self.vocab_size})")
