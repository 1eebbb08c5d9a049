"""Bias-free keys: what a model's key bias adds to the scores, without storing it.

Where a model adds a bias b to K before RoPE, the cache holds RoPE_n(W x) and attention adds back, exactly,

    q . RoPE_n(b) = sum_i A_i cos(n theta_i) + B_i sin(n theta_i)
    A_i = q_i b_i + q_j b_j        B_i = q_j b_i - q_i b_j        j = i + W, the half-split RoPE pair of i

with q after its own RoPE and n the position of the key. The stored vectors are then as tame as those of a model without
bias, which is what a quantizer needs: on Qwen2-style models a few pairs of K carry a bias tens of times larger than all
else. Dimensions that RoPE leaves alone add the same to every score of a query, which softmax does not see.
"""

from torch import Tensor

from octavo.kernels.rows import Rope, ScoreCorrection
from octavo.kernels.store.reference import apply_rope

__all__ = ["bias_correction"]


def bias_correction(q: Tensor, key_bias: Tensor, rope: Rope, positions: Tensor, scale: float) -> ScoreCorrection:
    """q `[T, H, D]` before RoPE, the bias fp32 `[G, D]`, the softmax scale -> what attention adds to the scores."""
    pairs = rope.cos.shape[1]
    turned = apply_rope(q, rope, positions)[..., : 2 * pairs] * scale
    bias = key_bias.repeat_interleave(q.shape[1] // key_bias.shape[0], dim=0)
    (q_i, q_j), (b_i, b_j) = turned.split(pairs, dim=-1), bias[:, : 2 * pairs].split(pairs, dim=-1)
    return ScoreCorrection((q_i * b_i + q_j * b_j).contiguous(), (q_j * b_i - q_i * b_j).contiguous(), rope)
