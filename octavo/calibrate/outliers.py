"""Which layers, heads and channels are hard to store, and what the plan does about each."""

from typing import Any

from octavo.kv.asset import KVAsset
from octavo.kv.plan import KVPlan

__all__ = ["HARD", "outlier_rows"]

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


def _row(asset: KVAsset, layer: int, name: str, done: str) -> dict[str, Any]:
    statistics = asset.statistics
    peak, rms = statistics(layer, f"{name}.absmax"), statistics(layer, f"{name}.rms")
    level = rms.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    ratio = peak / level  # [G, D]
    worst = int(ratio.argmax())
    head, channel = divmod(worst, ratio.shape[1])
    low, high = statistics(layer, f"{name}.turned.min"), statistics(layer, f"{name}.turned.max")
    turned = float((low.abs().maximum(high.abs()) / level).max())
    row = {
        "layer": layer, "side": name, "head": head, "channel": channel,
        "peak_over_rms": round(float(ratio.max()), 2),
        "peak_over_rms_rotated": round(turned, 2),
        "first_token_over_rms": round(float((statistics(layer, f"{name}.first") / level).max()), 2),
        "hard": bool(ratio.max() >= HARD),
        "stored_as": done,
    }  # fmt: skip
    biased = statistics.tensors.get(f"layers.{layer}.k.biased.absmax") if name == "k" else None
    if biased is not None:
        row["peak_over_rms_with_bias"] = round(float((biased / level).max()), 2)
    return row
