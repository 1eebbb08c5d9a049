"""One window through the model without a cache, layer by layer, with a look at, or a hand in, every layer's q, k, v.

T tokens · H query heads · G kv heads · D head width
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels.store.reference import apply_rope
from octavo.models.dense import Attention, DenseDecoder, rms_norm

__all__ = ["Vectors", "attention_output", "embed", "finish", "layer_step", "project"]


@dataclass(frozen=True)
class Vectors:
    """One layer's q fp32 `[T, H, D]`, k and v fp32 `[T, G, D]`, after RoPE; `k` with the model's bias, `k_free` without
    (the same tensor where there is none)."""

    q: Tensor
    k: Tensor
    k_free: Tensor
    v: Tensor


def embed(model: DenseDecoder, tokens: Tensor) -> Tensor:
    """Token ids `[T]` -> hidden states `[T, width]`."""
    return functional.embedding(tokens, model.embedding)


def project(model: DenseDecoder, layer: int, hidden: Tensor) -> Vectors:
    """What layer `layer` would store and ask, for hidden states `[T, width]` of a window that begins at position 0."""
    norm, attention, _, _ = model.blocks[layer]
    q, k, v = attention.project(rms_norm(hidden, norm, model.spec.norm_eps))
    positions = torch.arange(len(hidden), device=hidden.device)
    free = apply_rope(k, model.rope, positions)
    full = free
    if attention.key_bias is not None:
        full = apply_rope(k.float() + attention.key_bias, model.rope, positions)
    return Vectors(apply_rope(q, model.rope, positions), full, free, v.float())


def attention_output(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention in fp32, `[T, H, D]`; queries see keys in (position - window, position]."""
    tokens = len(q)
    mask = None
    if window is not None and window < tokens:
        distance = torch.arange(tokens, device=q.device)[:, None] - torch.arange(tokens, device=q.device)[None, :]
        mask = (distance >= 0) & (distance < window)
    group = q.shape[1] // k.shape[1]
    keys, values = (side.repeat_interleave(group, dim=1).transpose(0, 1) for side in (k, v))
    batch = (side[None].contiguous() for side in (q.transpose(0, 1), keys, values))  # what the fused kernel takes
    mixed = functional.scaled_dot_product_attention(*batch, attn_mask=mask, is_causal=mask is None)
    return mixed[0].transpose(0, 1)


def layer_step(model: DenseDecoder, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a layer after attention: hidden states of the next one, `[T, width]`."""
    _, attention, norm, mlp = model.blocks[layer]
    assert isinstance(attention, Attention), f"layer {layer} is a {type(attention).__name__}"
    hidden = hidden + attention.out(mixed.flatten(1).to(hidden.dtype))
    return hidden + mlp(rms_norm(hidden, norm, model.spec.norm_eps), "reference")  # which leaves no parts


def finish(model: DenseDecoder, hidden: Tensor) -> Tensor:
    """Log-probabilities fp32 `[T, V]` of what follows each position."""
    return model.head(rms_norm(hidden, model.norm, model.spec.norm_eps)).float().log_softmax(-1)
