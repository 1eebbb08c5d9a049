"""Which layers, heads and channels are hard to store, and what the plan does about each."""

from typing import TYPE_CHECKING, Any

from octavo.kv.asset import KVAsset
from octavo.kv.plan import KVPlan
from octavo.kv.statistics import KVStatistics

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HARD", "outlier_rows", "peaks"]

HARD = 8.0
"""a head is called hard where its largest channel is this many times the root mean square over all its channels"""


def outlier_rows(asset: KVAsset, plan: KVPlan) -> list[dict[str, Any]]:
    """One row for each layer and side: the worst head and channel, how far it stands out as stored plainly and after
    the rotation, what first tokens add, and what is done."""
    rows = []
    for number, layer in enumerate(plan.layers):
        for name, side in (("k", layer.key), ("v", layer.value)):
            rows.append(_row(asset, number, name, f"{side}"))
    return rows


def peaks(statistics: KVStatistics, layer: int, name: str) -> "dict[str, Tensor]":
    """Of the keys or values (`name` k or v) of one layer, the largest sizes `[G, D]` over the head's root mean square:
    `plain`, `turned` (after the rotation), `first` (of first tokens) and, where the model adds a bias that is not
    stored, `biased` (with it)."""
    rms = statistics(layer, f"{name}.rms")
    level = rms.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    low, high = statistics(layer, f"{name}.turned.min"), statistics(layer, f"{name}.turned.max")
    sizes = {
        "plain": statistics(layer, f"{name}.absmax"),
        "turned": low.abs().maximum(high.abs()),
        "first": statistics(layer, f"{name}.first"),
    }
    biased = statistics.tensors.get(f"layers.{layer}.{name}.biased.absmax")
    sizes |= {} if biased is None else {"biased": biased}
    return {what: size / level for what, size in sizes.items()}


def _row(asset: KVAsset, layer: int, name: str, done: str) -> dict[str, Any]:
    found = peaks(asset.statistics, layer, name)
    most = {what: float(ratio.max()) for what, ratio in found.items()}
    head, channel = divmod(int(found["plain"].argmax()), found["plain"].shape[1])
    row = {
        "layer": layer, "side": name, "head": head, "channel": channel,
        "peak_over_rms": round(most["plain"], 2),
        "peak_over_rms_rotated": round(most["turned"], 2),
        "first_token_over_rms": round(most["first"], 2),
        "hard": most["plain"] >= HARD,
        "stored_as": done,
    }  # fmt: skip
    if "biased" in most:
        row["peak_over_rms_with_bias"] = round(most["biased"], 2)
    return row
