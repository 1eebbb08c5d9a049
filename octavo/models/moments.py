"""Second moments of a model's keys and queries after RoPE, from its weights alone.

The input of an attention layer leaves a norm: taken as white, it gives keys W x the second moment W diag(g^2) W^T, with
g the norm's weight; a bias adds b b^T, and RoPE is averaged over positions. It is a guess, and a good one: int4 keys
balanced by it (octavo/kv/fit.py) lose nearly as little as by moments measured on text.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.kernels.rows import Rope
from octavo.models.spec import ModelSpec

__all__ = ["rope_average", "weight_moments"]

_POSITIONS = 1024  # the slowest pairs hardly turn within what most queries look at


def weight_moments(
    spec: ModelSpec, layer: int, load: Callable[[str], Tensor], rope: Rope | None, key_bias: bool
) -> tuple[Tensor, Tensor]:
    """fp64 `[G, D, D]`, of keys and of the queries that read them. `key_bias`: whether stored keys carry their bias."""
    name = f"model.layers.{layer}."
    gain = load(f"{name}input_layernorm.weight").double()
    sides = {"k": key_bias or spec.qk_norm, "q": True}  # a norm comes after the bias, which is then always stored
    keys, queries = (_projected(spec, load, f"{name}self_attn.{side}_", gain, biased) for side, biased in sides.items())
    queries = queries.unflatten(0, (spec.kv_heads, -1)).mean(1)
    if rope is None:
        return keys, queries
    return rope_average(keys, rope), rope_average(queries, rope)


def _projected(spec: ModelSpec, load: Callable[[str], Tensor], name: str, gain: Tensor, biased: bool) -> Tensor:
    """`[N, D, D]` for the N heads of one projection, before RoPE."""
    weight = load(f"{name}proj.weight")
    weight = (weight.double() * gain.to(weight.device)).unflatten(0, (-1, spec.head_dim))
    moment = weight @ weight.mT
    if spec.qkv_bias and biased:
        moment = moment + _outer(load(f"{name}proj.bias"), spec.head_dim)
    if spec.qk_norm:
        mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
        norm = load(f"{name}norm.weight").double()
        moment = moment / mean[:, None, None] * norm[:, None] * norm[None, :]
    return moment


def _outer(bias: Tensor, head_dim: int) -> Tensor:
    heads = bias.double().unflatten(0, (-1, head_dim))
    return heads[:, :, None] * heads[:, None, :]


def rope_average(moment: Tensor, rope: Rope) -> Tensor:
    """`[N, D, D]` before RoPE -> its mean over the first 1024 positions after RoPE."""
    dim, half = moment.shape[-1], rope.cos.shape[1]
    rest = dim - 2 * half
    assert rest % 2 == 0, f"{rest} of {dim} dimensions without a partner"
    still = torch.ones(1, rest // 2, dtype=torch.float64, device=rope.cos.device)
    cos, sin = rope.cos[:_POSITIONS].double(), rope.sin[:_POSITIONS].double()
    cos, sin = torch.cat((cos, still.expand(len(cos), -1)), 1), torch.cat((sin, 0 * still.expand(len(sin), -1)), 1)
    order = torch.cat((torch.arange(half), torch.arange(2 * half, 2 * half + rest // 2)))
    order = torch.cat((order, torch.arange(half, 2 * half), torch.arange(2 * half + rest // 2, dim)))
    order = order.to(moment.device)
    cc, cs, ss = cos.T @ cos / len(cos), cos.T @ sin / len(cos), sin.T @ sin / len(cos)
    sc = cs.T
    sorted_moment = moment[:, order][:, :, order]
    (a, b), (c, d) = (rows.chunk(2, dim=2) for rows in sorted_moment.chunk(2, dim=1))
    top = torch.cat((cc * a - cs * b - sc * c + ss * d, cs * a + cc * b - ss * c - sc * d), 2)
    low = torch.cat((sc * a - ss * b + cc * c - cs * d, ss * a + sc * b + cs * c + cc * d), 2)
    back = order.argsort()
    return torch.cat((top, low), 1)[:, back][:, :, back]
