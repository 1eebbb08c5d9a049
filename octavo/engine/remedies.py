"""What can be done for a cache that breaks its model, mildest first: exact changes that cost no memory, then more bits
in the layers that need them. What the user asked for by name is left alone, but for the number of bits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from octavo.calibrate.cache_plan import CachePlan
from octavo.kv.plan import KVPlan, LayerPlan, SidePlan
from octavo.kv.schemes import SCHEMES
from octavo.models.spec import ModelSpec

__all__ = ["Asked", "Remedy", "remedies"]

_WIDER = "int8"


@dataclass(frozen=True)
class Asked:
    """What the user chose: auto, on or off (`kv_balance` has more names)."""

    rotate: str = "auto"
    bias_free: str = "auto"
    balance: str = "auto"

    @property
    def fixed(self) -> tuple[str, ...]:
        """The choices that stand in the way of a remedy, as flags."""
        flags = {"--kv-rotate off": self.rotate, "--kv-bias-free off": self.bias_free, "--kv-balance off": self.balance}
        return tuple(flag for flag, chosen in flags.items() if chosen == "off")


@dataclass(frozen=True)
class Remedy:
    """`apply` returns the changed plan, or None where there is nothing left to change. Its name takes the place of one
    that has `replaces` in it."""

    name: str
    apply: Callable[[CachePlan], CachePlan | None]

    @property
    def replaces(self) -> str:
        return self.name.split(" in ")[0]


def remedies(spec: ModelSpec, asked: Asked, divergence: Sequence[float]) -> Iterator[Remedy]:
    """In the order to try them, each on top of those before. `divergence`: of each layer alone, as first planned."""
    width = spec.head_dim
    if spec.has_key_bias and asked.bias_free == "auto":
        yield _of_keys("keys without their bias", lambda side: replace(side, bias_free=True))
    if asked.rotate == "auto":
        yield Remedy("rotation", lambda cache: _changed(cache, _rotated, _rotated))
    if asked.balance == "auto":
        yield _of_keys("balanced keys", _balanced)
    order = sorted(range(len(divergence)), key=lambda layer: -divergence[layer])
    turn = asked.rotate != "off"
    for share in (8, 4, 2, 1):
        worst = frozenset(order[: max(1, -(-len(order) // share))])
        where = f"in layers {', '.join(map(str, sorted(worst)))}" if share > 1 else "in all layers"
        yield Remedy(f"{_WIDER} keys {where}", _widen(worst, width, turn, values=False))
    yield Remedy(f"{_WIDER} values in all layers", _widen(frozenset(order), width, turn, values=True))


def _of_keys(name: str, change: Callable[[SidePlan], SidePlan]) -> Remedy:
    return Remedy(name, lambda cache: _changed(cache, change, lambda side: side))


def _rotated(side: SidePlan) -> SidePlan:
    return side if side.fitted else replace(side, rotated=True)


def _balanced(side: SidePlan) -> SidePlan:
    return side if side.fitted or not side.rotated else replace(side, fitted=("balance",))


def _widen(layers: frozenset[int], width: int, turn: bool, values: bool) -> Callable[[CachePlan], CachePlan | None]:
    wider = SCHEMES[_WIDER]

    def change(side: SidePlan) -> SidePlan:
        if side.scheme.vector_bytes(width) > wider.vector_bytes(width) or side.scheme is wider:
            return side
        return SidePlan(wider, turn, side.bias_free)

    def keep(side: SidePlan) -> SidePlan:
        return side

    return lambda cache: _changed(cache, change, change if values else keep, layers)


def _changed(
    cache: CachePlan, keys: Callable[[SidePlan], SidePlan], values: Callable[[SidePlan], SidePlan],
    layers: frozenset[int] | None = None,
) -> CachePlan | None:  # fmt: skip
    plan = cache.plan
    made = tuple(
        LayerPlan(keys(layer.key), values(layer.value)) if layers is None or number in layers else layer
        for number, layer in enumerate(plan.layers)
    )
    if made == plan.layers:
        return None
    fitted = any(layer.key.fitted or layer.value.fitted for layer in made)
    digest = plan.params_digest or ("weights, repaired" if fitted else "")
    return replace(cache, plan=KVPlan(plan.name, made, digest))
