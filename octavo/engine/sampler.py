"""From logits to tokens. Every row is computed by itself: what it gets does not depend on who else is in the batch.

One uniform number per token, from sha256 of (seed, position), is put through the inverse of the cumulative
distribution in vocabulary order. So a seed gives the same tokens alone or in a batch, before and after preemption.

Nothing in `choose` waits for the device or reads a token that is still on it.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from octavo.engine.request import Request, TokenLogprobs
from octavo.engine.transfer import Readback, to_device

__all__ = ["Chosen", "Sample", "choose", "sample", "top_logprobs", "uniform"]

_MOST_NUMBERS = 1 << 22
"""rows times vocabulary that are drawn from at once: 32 MiB in float64, of which a draw needs about six"""


@dataclass(frozen=True)
class Sample:
    token: int
    logprobs: TokenLogprobs | None


class Chosen:
    """One token for each request: `ids` int64 `[B]` on the device, and on their way to the host."""

    def __init__(self, ids: Tensor, logprobs: dict[int, tuple[Tensor, Tensor]]):
        """`logprobs`, of the rows that want them: fp32 `[1 + k]` of the chosen token and the best, which those are
        `[k]`"""
        self.ids = ids
        self._counts = {row: len(best) for row, (_, best) in logprobs.items()}
        self.back = Readback([ids, *(torch.cat(parts) for parts in zip(*logprobs.values(), strict=True))])

    def samples(self) -> list[Sample]:
        """What `ids` holds; waits for it."""
        ids, *parts = self.back.wait()
        found = [Sample(token, None) for token in ids.tolist()]
        values, best = (iter(part.tolist()) for part in parts) if parts else (iter(()), iter(()))
        for row, count in self._counts.items():
            token, logprob = found[row].token, next(values)
            top = tuple(zip(islice(best, count), islice(values, count), strict=True))
            found[row] = Sample(token, TokenLogprobs(token, logprob, top))
        return found


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) * 2.0**-53


@torch.inference_mode()
def choose(logits: Tensor, requests: Sequence[Request], eos_ids: tuple[int, ...]) -> Chosen:
    """One token for each request from its row of `[B, V]`, fp32 or what the model computes in."""
    original, device = logits, str(logits.device)
    reshaped = [index for index, request in enumerate(requests) if request.params.reshapes]
    if reshaped:
        logits = logits.to(torch.float32, copy=True)
    for index in reshaped:
        _reshape(logits[index], requests[index], eos_ids)
    ids = logits.argmax(-1)
    drawn = [index for index, request in enumerate(requests) if not request.params.greedy]
    for group in _groups(drawn, requests, logits.shape[-1]):
        table = np.array([_dials(requests[index]) for index in group], dtype=np.float64)
        rows, dials = to_device((np.array(group, dtype=np.int64), table), device)
        ids.index_copy_(0, rows, _draw(logits.index_select(0, rows), dials, _Filters.of(group, requests)))
    counts = {i: r.params.logprobs for i, r in enumerate(requests) if r.params.logprobs is not None}
    return Chosen(ids, {index: _best(original[index], ids[index], count) for index, count in counts.items()})


def sample(logits: Tensor, requests: Sequence[Request], eos_ids: tuple[int, ...]) -> list[Sample]:
    """`choose`, waited for."""
    return choose(logits, requests, eos_ids).samples()


def top_logprobs(logprobs: Tensor, token: int, count: int) -> TokenLogprobs:
    """From a row `[V]` of log-probabilities: that of `token`, and the `count` best."""
    values, ids = logprobs.topk(count)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs[token]), top)


def _best(row: Tensor, token: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Row by row: among equal logits, `topk` of several rows may take other ones than that of a row alone."""
    logprobs = row.float().log_softmax(-1)
    values, ids = logprobs.topk(min(count, len(row)))
    return torch.cat([logprobs.gather(0, token.unsqueeze(0)), values]), ids


def _reshape(row: Tensor, request: Request, eos_ids: tuple[int, ...]) -> None:
    """Grammar, penalties, biases and the ban on an early end, in place on one row `[V]`."""
    params, device = request.params, str(row.device)
    made = request.length - len(request.prompt)
    if request.grammar is not None:
        request.grammar.mask(row)
    if params.repetition_penalty != 1.0:
        [seen] = to_device([np.array(sorted(set(request.tokens)))], device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and made:
        counts = Counter(request.output)
        ids, times = to_device([np.array(list(counts)), np.array(list(counts.values()), dtype=np.float32)], device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * times
    if params.logit_bias:
        biases = np.array(list(params.logit_bias.values()), dtype=np.float32)
        ids, biases = to_device([np.array(list(params.logit_bias)), biases], device)
        row[ids] += biases
    if made < params.min_tokens:
        [ends] = to_device([np.array([*{*eos_ids, *params.stop_token_ids}], dtype=np.int64)], device)
        row.index_fill_(0, ends, float("-inf"))


def _dials(request: Request) -> tuple[float, ...]:
    params = request.params
    number = uniform(request.seed, request.length)
    return params.temperature, max(params.top_k, 0), params.top_p, params.min_p, number


@dataclass(frozen=True)
class _Filters:
    """What some row of a group asks for: the others pay for it, and get what they would get without."""

    top_k: int
    """the largest"""
    top_p: bool
    min_p: bool

    @classmethod
    def of(cls, group: Sequence[int], requests: Sequence[Request]) -> "_Filters":
        each = [requests[index].params for index in group]
        return cls(max(p.top_k for p in each), any(p.top_p < 1.0 for p in each), any(p.min_p > 0.0 for p in each))


def _groups(rows: Sequence[int], requests: Sequence[Request], vocab_size: int) -> list[list[int]]:
    """Rows that are drawn together: those that need a sorted vocabulary apart, and no more than memory should hold."""
    most = max(1, _MOST_NUMBERS // vocab_size)
    sort = [index for index in rows if requests[index].params.top_p < 1.0]
    plain = [index for index in rows if requests[index].params.top_p == 1.0]
    return [kind[begin : begin + most] for kind in (sort, plain) for begin in range(0, len(kind), most)]


def _draw(logits: Tensor, dials: Tensor, filters: _Filters) -> Tensor:
    """Temperature, then top-k, top-p and min-p each on the distribution that temperature gives; then one draw.

    Logits `[B, V]` and dials float64 `[B, 5]` -> tokens int64 `[B]`.
    """
    temperature, top_k, top_p, min_p, number = dials.unsqueeze(-1).unbind(1)
    vocab_size = logits.shape[-1]
    # in float64 the cumulative sum cannot fall short of the last token that is allowed
    weights = (logits.double() / temperature).softmax(-1)
    allowed = torch.ones_like(weights, dtype=torch.bool)
    if filters.top_k > 0:
        largest = weights.topk(min(filters.top_k, vocab_size)).values
        last = largest.gather(1, (top_k.long() - 1).clamp(0, largest.shape[1] - 1))
        allowed &= (weights >= last) | (top_k == 0) | (top_k >= vocab_size)
    if filters.top_p:
        order = logits.sort(descending=True, stable=True).indices  # that of the weights, from fewer bytes
        ordered = weights.gather(1, order)
        kept = ordered.cumsum(-1) - ordered < top_p
        allowed &= torch.empty_like(allowed).scatter_(1, order, kept)
    if filters.min_p:
        allowed &= weights >= min_p * weights.amax(-1, keepdim=True)
    cumulative = weights.masked_fill_(~allowed, 0.0).cumsum(-1)
    whole = cumulative[:, -1:].contiguous()
    found = torch.searchsorted(cumulative, number * whole, right=True)
    found = torch.minimum(found, torch.searchsorted(cumulative, whole))[:, 0]  # should the product round up to `whole`
    return found.clamp(max=vocab_size - 1)  # a row of nothing but -inf: any token, and its grammar will refuse it
