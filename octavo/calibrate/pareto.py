"""What plans a model has between bytes and divergence, from its sensitivities: the Pareto front, and uniform plans.
Pure arithmetic. Bytes per token are those that will be allocated, metadata and alignment included."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.calibrate.budgets import choices_of
from octavo.calibrate.solve import Choice, front

__all__ = ["Point", "front_points", "pareto_facts", "uniform_points"]

Point = tuple[float, float]
"""(bytes per token, predicted KL)"""


def front_points(
    sensitivity: Mapping[str, Any], shape: Mapping[str, int], page_tokens: int, most: int = 200
) -> list[Point]:  # fmt: skip
    """Every plan that no other beats in both bytes and KL, fewest bytes first; of more than `most`, that many, evenly
    taken, the two ends among them."""
    found = [(plan.page_bytes / page_tokens, plan.kl) for plan in front(_choices(sensitivity, shape, page_tokens))]
    if len(found) <= most:
        return found
    return [found[round(number * (len(found) - 1) / (most - 1))] for number in range(most)]


def uniform_points(sensitivity: Mapping[str, Any], shape: Mapping[str, int], page_tokens: int) -> dict[str, Point]:
    """The same scheme, or the same K,V pair, in every layer: name -> point."""
    by_pair = zip(*_choices(sensitivity, shape, page_tokens), strict=True)
    return {
        _name(layers[0].name): (sum(c.page_bytes for c in layers) / page_tokens, sum(c.kl for c in layers))
        for layers in by_pair
    }


def pareto_facts(
    sensitivity: Mapping[str, Any] | None, shape: Mapping[str, int], page_tokens: int
) -> dict[str, Any]:  # fmt: skip
    """What kv_plan.json says of them: `front`, `[bytes_per_token, kl_predicted]` each, and `uniform`, by name. Nothing
    where no sensitivities were measured."""
    if not sensitivity:
        return {}
    uniform = uniform_points(sensitivity, shape, page_tokens)
    return {
        "front": [list(point) for point in front_points(sensitivity, shape, page_tokens)],
        "uniform": {name: {"bytes_per_token": size, "kl_predicted": kl} for name, (size, kl) in uniform.items()},
    }


def _choices(sensitivity: Mapping[str, Any], shape: Mapping[str, int], page_tokens: int) -> Sequence[Sequence[Choice]]:
    return choices_of(sensitivity, shape["kv_heads"], shape["head_dim"], page_tokens)


def _name(pair: str) -> str:
    key, value = pair.split(",")
    return key if key == value else pair
