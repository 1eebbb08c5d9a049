"""What the rows of one step look like to a kernel: variable-length runs of new tokens over paged sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Chunks", "Rope", "Rows", "ScoreCorrection"]


@dataclass(frozen=True)
class Chunks:
    """What the host knows of the rows that follow the single ones: C chunks of prompts, laid end to end."""

    query_start: Tensor
    """int32 `[C + 1]`, from 0"""
    key_start: Tensor
    """int32 `[C + 1]`: their contexts, laid end to end"""
    tokens: int
    context_tokens: int

    @classmethod
    def of(cls, counts: Sequence[int], contexts: Sequence[int], device: str) -> "Chunks":
        both = torch.zeros(2, len(counts) + 1, dtype=torch.int32)
        both[0, 1:], both[1, 1:] = torch.tensor(counts).cumsum(0), torch.tensor(contexts).cumsum(0)
        return cls(both[0].clone().to(device), both[1].clone().to(device), sum(counts), sum(contexts))


@dataclass(frozen=True)
class Rows:
    """R rows with T new tokens in all. Row r's new tokens are `[query_start[r], query_start[r+1])` of the step; its
    sequence has `context[r]` tokens once they are stored, so token i of n sits at position `context[r] - n + i`.
    """

    query_start: Tensor
    """int32 `[R + 1]`"""
    context: Tensor
    """int32 `[R]`"""
    block_tables: Tensor
    """int32 `[R, M]`, page ids; entries past ceil(context / page_tokens) are never read"""
    positions: Tensor
    """int64 `[T]`"""
    slots: Tensor
    """int64 `[T]`, page * page_tokens + offset: where each new token is stored; -1 stores nowhere"""
    max_query: int
    max_context: int
    singles: int = 0
    """the first rows, as many as are known to have one new token each"""
    chunks: Chunks | None = None
    """the rows after them; None: not known, or there are none"""
    compute: torch.dtype | None = None
    """what the model computes in, if kernels may round to it, and return attention in it"""
    invariant: bool = False
    """kernels cut their work alike for every batch, so that what a token gets does not depend on its company"""


@dataclass(frozen=True)
class Rope:
    """The half-split rotary embedding: dimension i pairs with i + rotary_dim / 2. Dimensions past 2W are left alone."""

    cos: Tensor
    """fp32 `[positions, W]`, already multiplied by the attention factor of the scaling, if any"""
    sin: Tensor


@dataclass(frozen=True)
class ScoreCorrection:
    """A term added to the scaled score of each query with key position n:
    `sum_w a_w cos(n theta_w) + b_w sin(n theta_w)`.

    It carries what was left out of the stored keys (bias-free keys): exact, and independent of their encoding.
    """

    a: Tensor
    """fp32 `[T, H, W]`"""
    b: Tensor
    rope: Rope
