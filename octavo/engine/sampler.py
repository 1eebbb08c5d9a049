"""From logits to tokens. Every row is computed by itself: what it gets does not depend on who else is in the batch.

One uniform number per token, from sha256 of (seed, position), is put through the inverse of the cumulative
distribution in vocabulary order. So a seed gives the same tokens alone or in a batch, before and after preemption.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.engine.request import Request, TokenLogprobs

__all__ = ["Sample", "sample", "top_logprobs", "uniform"]


@dataclass(frozen=True)
class Sample:
    token: int
    logprobs: TokenLogprobs | None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) * 2.0**-53


def sample(logits: Tensor, requests: list[Request], eos_ids: tuple[int, ...]) -> list[Sample]:
    """One token for each request from its row of fp32 `[B, V]`."""
    original = logits
    if any(request.params.reshapes for request in requests):
        logits = torch.stack([_reshape(row, r, eos_ids) for row, r in zip(logits, requests, strict=True)])
    tokens = logits.argmax(-1).tolist()
    for index, request in enumerate(requests):
        if not request.params.greedy:
            tokens[index] = _draw(logits[index], request)
    return [
        Sample(token, _logprobs_of(original[index], token, request.params.logprobs))
        for index, (token, request) in enumerate(zip(tokens, requests, strict=True))
    ]


def top_logprobs(logprobs: Tensor, token: int, count: int) -> TokenLogprobs:
    """From a row `[V]` of log-probabilities: that of `token`, and the `count` best."""
    values, ids = logprobs.topk(count)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs[token]), top)


def _logprobs_of(row: Tensor, token: int, count: int | None) -> TokenLogprobs | None:
    return None if count is None else top_logprobs(row.log_softmax(-1), token, min(count, row.shape[-1]))


def _reshape(row: Tensor, request: Request, eos_ids: tuple[int, ...]) -> Tensor:
    """Penalties, biases and the ban on an early end, on a copy of one row `[V]`."""
    params, row = request.params, row.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(request.tokens)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and request.output_count:
        counts = Counter(request.output)
        ids = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), device=row.device, dtype=row.dtype)
        row[ids] -= params.presence_penalty + params.frequency_penalty * times
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if request.output_count < params.min_tokens:
        row[list({*eos_ids, *params.stop_token_ids})] = float("-inf")
    return row


def _draw(row: Tensor, request: Request) -> int:
    """Temperature, then top-k, top-p and min-p each on the distribution that temperature gives; then one draw."""
    params = request.params
    # in float64 the cumulative sum cannot fall short of the last token that is allowed
    weights = (row.double() / params.temperature).softmax(-1)
    allowed = torch.ones_like(weights, dtype=torch.bool)
    if 0 < params.top_k < weights.shape[-1]:
        allowed &= weights >= weights.topk(params.top_k).values[-1]
    if params.top_p < 1.0:
        ordered, order = weights.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        allowed[order[before >= params.top_p]] = False
    if params.min_p > 0.0:
        allowed &= weights >= params.min_p * weights.max()
    cumulative = torch.where(allowed, weights, 0.0).cumsum(-1)
    target = uniform(request.seed, len(request.tokens)) * cumulative[-1]
    return int(torch.searchsorted(cumulative, target.unsqueeze(0), right=True).clamp(max=int(allowed.nonzero()[-1])))
