"""From statistics and sensitivities to the plan of an asset: chosen, predicted where it can be, and measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from octavo.base.errors import CapacityError
from octavo.base.log import log
from octavo.calibrate.cache_plan import CacheOptions, CachePlan, Transforms, make_transforms, plan_for
from octavo.calibrate.divergence import Divergence
from octavo.calibrate.sensitivity import measure_plan, measure_sensitivity
from octavo.calibrate.solve import parse_budget
from octavo.checkpoint.source import Source
from octavo.kv.asset import KVAsset
from octavo.models.dense import DenseDecoder

__all__ = ["Bench", "choose", "predicted", "sensitivities"]

_TRIES = 4


@dataclass(frozen=True)
class Bench:
    """What plans are made and measured with. `load` reads a weight in fp32."""

    source: Source
    model: DenseDecoder
    load: Callable[[str], Tensor]
    device: str
    asset: KVAsset

    def plan(self, options: CacheOptions) -> CachePlan:
        return plan_for(options, self.source.spec, self.asset)

    def transforms(self, cache: CachePlan) -> Transforms:
        return make_transforms(cache, self.source.spec, self.load, self.model.rope, self.device)

    def measure(self, cache: CachePlan, windows: Sequence[Tensor]) -> Divergence:
        return measure_plan(self.model, windows, cache.plan, self.transforms(cache))


def sensitivities(
    bench: Bench, wishes: CacheOptions, schemes: Sequence[str], windows: Sequence[Tensor],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:  # fmt: skip
    """KL of every layer, side and scheme alone (`measure_sensitivity`)."""
    uniform = {}
    for name in schemes:
        cache = bench.plan(replace(wishes, kv_cache_dtype=name))
        uniform[cache.plan.name] = (cache.plan, bench.transforms(cache))
    total, done = len(windows) * bench.source.spec.layers, 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("sensitivity", done, total)

    progress("sensitivity", 0, total)
    return measure_sensitivity(bench.model, windows, uniform, advance)


def choose(bench: Bench, wishes: CacheOptions, windows: Sequence[Tensor]) -> tuple[CachePlan, Divergence]:
    """The plan that was asked for (`auto` is int8) and what it measures on `windows`.

    A budget of KL must hold where it is measured, not where it is predicted: it is solved again for less until it does,
    or a warning says that it does not."""
    if wishes.kv_cache_dtype == "auto":
        wishes = replace(wishes, kv_cache_dtype="int8")
    cache = bench.plan(wishes)
    found = bench.measure(cache, windows)
    wanted = wishes.kv_cache_dtype.removeprefix("auto:")
    allowed = parse_budget(wanted).kl if wanted != wishes.kv_cache_dtype else None
    if allowed is None:
        return cache, found
    aim = allowed
    for _ in range(_TRIES):
        if found.kl_mean <= allowed:
            return cache, found
        aim *= 0.9 * allowed / found.kl_mean
        try:
            tighter = bench.plan(replace(wishes, kv_cache_dtype=f"auto:kl<{aim:.6g}"))
        except CapacityError:  # no plan is predicted to be that good
            break
        cache = replace(cache, plan=replace(tighter.plan, name=cache.plan.name))
        found = bench.measure(cache, windows)
    if found.kl_mean > allowed:
        log.warning("the plan measures KL %.3g on text that was not used, above the %.3g asked", found.kl_mean, allowed)
    return cache, found


def predicted(sensitivity: Mapping[str, Any] | None, cache: CachePlan) -> float | None:
    """The sum of the layers' own divergences, where all schemes of the plan were measured alone."""
    if sensitivity is None:
        return None
    total = 0.0
    for number, layer in enumerate(cache.plan.layers):
        for side, name in (("k", layer.key.scheme.name), ("v", layer.value.scheme.name)):
            if name not in sensitivity[side]:
                return None
            total += sensitivity[side][name][number]
    return total
