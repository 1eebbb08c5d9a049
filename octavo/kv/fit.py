"""Fitted transforms: what to do to keys before they are encoded, from second moments of keys and queries.

Balance. A quantizer adds to a stored key k' = k A an error of about the same size in every direction; the score of a
query q' = q A^-T moves by q' . error. With C_k, C_q the second moments of keys and queries (per KV head, after RoPE),
the mean square of that is proportional to

    trace(A^T C_k A) * trace(A^-1 C_q A^-T)

which over all invertible A is least where A A^T is the geometric mean of C_k^-1 and C_q,

    P = C_k^-1/2 (C_k^1/2 C_q C_k^1/2)^1/2 C_k^-1/2          A = P^1/2 H

by Cauchy and Schwarz; the orthonormal H (the Hadamard rotation) changes nothing of it and spreads what is large. Stored
keys and queries then have the same shape of distribution: no direction is precise where no query looks. Smoothing,
`lambda_c = sqrt(rms K_c / rms Q_c)` (as in SmoothQuant, Xiao et al. 2022, for pairs of dimensions), is its diagonal.
"""

from typing import TYPE_CHECKING

from octavo.kv.transform import SideTransform, hadamard

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["balanced", "rescaled", "smoothed"]


def balanced(key_moment: "Tensor", query_moment: "Tensor", floor: float) -> SideTransform:
    """Second moments `[G, D, D]` -> the transform of the keys. `floor`: what is added to each moment's diagonal, as a
    share of its mean, against directions that were hardly seen. Stored keys keep their mean square."""
    import torch

    keys, queries = (_floored(moment, floor) for moment in (key_moment, query_moment))
    root, inverse = _powers(keys, (0.5, -0.5))
    (middle,) = _powers(root @ queries @ root, (0.5,))
    mean = inverse @ middle @ inverse
    forward, back = _powers(mean, (0.5, -0.5))
    stored = (forward @ keys @ forward).diagonal(dim1=-2, dim2=-1).sum(-1)
    gain = (keys.diagonal(dim1=-2, dim2=-1).sum(-1) / stored).sqrt()[:, None, None]
    turn = torch.from_numpy(hadamard(keys.shape[-1])).double().to(keys.device)
    return SideTransform(True, (forward * gain @ turn).float(), (back / gain @ turn).float())


def smoothed(key_moment: "Tensor", query_moment: "Tensor", rotary_dim: int) -> SideTransform:
    """`K / lambda`, `Q * lambda`, then the rotation; one lambda for each pair of dimensions that RoPE turns."""
    import torch

    keys, queries = (
        moment.double().diagonal(dim1=-2, dim2=-1).clone() for moment in (key_moment, query_moment)
    )  # [G, D]
    half = rotary_dim // 2
    for squares in (keys, queries):
        squares[:, :rotary_dim] = (squares[:, :half] + squares[:, half:rotary_dim]).repeat(1, 2)
        squares += 1e-6 * squares.mean(-1, keepdim=True).clamp_min(1e-30)
    ratio = (keys / queries) ** 0.25
    turn = torch.from_numpy(hadamard(keys.shape[-1])).double().to(keys.device)
    return SideTransform(True, (turn / ratio[:, :, None]).float(), (turn * ratio[:, :, None]).float())


def rescaled(side: SideTransform, scale: "Tensor", zero: "Tensor", keys: bool) -> SideTransform:
    """`side` followed by a static scale: stored = (what `side` stores - zero) / scale, both `[G, D]`, scale > 0.

    It folds into the matrices, so that a static scheme costs what its codes cost and no kernel knows of it."""
    import torch

    dim = scale.shape[-1]
    if side.matrix is None or side.back is None:
        plain = torch.from_numpy(hadamard(dim)) if side.rotated else torch.eye(dim)
        forward = plain.double().to(scale.device).expand(len(scale), dim, dim)
        back = forward if keys else forward.mT
    else:
        forward, back = side.matrix.double(), side.back.double()
    scale, zero = scale.double(), zero.double()
    back = back * scale[:, None, :] if keys else back * scale[:, :, None]
    shift = (zero / scale).float() if side.shift is None else ((side.shift.double() + zero) / scale).float()
    return SideTransform(side.rotated, (forward / scale[:, None, :]).float(), back.float().contiguous(), shift)


def _floored(moment: "Tensor", floor: float) -> "Tensor":
    """fp64, symmetric, positive definite."""
    import torch

    moment = moment.double()
    moment = (moment + moment.mT) / 2
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)[:, None, None]
    return moment + floor * mean * torch.eye(moment.shape[-1], dtype=torch.float64, device=moment.device)


def _powers(matrix: "Tensor", exponents: tuple[float, ...]) -> list["Tensor"]:
    """Powers of symmetric positive definite matrices, by their eigenvalues."""
    import torch

    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = values.clamp_min(values.amax(-1, keepdim=True) * 1e-14)
    return [(vectors * values[:, None, :] ** exponent) @ vectors.mT for exponent in exponents]
