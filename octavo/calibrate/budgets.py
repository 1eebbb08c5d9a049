"""From measured sensitivities and a budget to a scheme, or K,V pair, for every layer."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.base.errors import AssetError
from octavo.calibrate.solve import Budget, Choice, Solution, solve
from octavo.kv.asset import KVAsset
from octavo.kv.layout import PageLayout
from octavo.kv.schemes import SCHEMES

__all__ = ["choices_of", "pages_budget", "solve_budget", "solved_dtypes"]


def choices_of(sensitivity: Mapping[str, Any], kv_heads: int, head_dim: int, page_tokens: int) -> list[list[Choice]]:
    """For every layer, every pair of the schemes that were measured, with the bytes that will be allocated for it."""
    names: Sequence[str] = sensitivity["schemes"]
    pairs = [(key, value) for key, value in itertools.product(names, names)]
    sizes = {
        (key, value): PageLayout(SCHEMES[key], SCHEMES[value], kv_heads, head_dim, page_tokens).page_bytes
        for key, value in pairs
    }
    keys, values = sensitivity["k"], sensitivity["v"]
    return [
        [
            Choice(f"{key},{value}", sizes[key, value], max(keys[key][layer], 0.0) + max(values[value][layer], 0.0))
            for key, value in pairs
        ]
        for layer in range(len(keys[names[0]]))
    ]


def pages_budget(budget: Budget, layers: int, kv_heads: int, head_dim: int, page_tokens: int, tokens: int) -> float:
    """Bytes that one page of all layers may take. `tokens`: what the whole cache must hold (for `auto:24GiB`)."""
    if budget.bits is not None:
        return budget.bits / 8 * 2 * layers * kv_heads * head_dim * page_tokens
    if budget.token_bytes is not None:
        return budget.token_bytes * page_tokens
    assert budget.total_bytes is not None, f"{budget.text} is no budget of bytes"
    return budget.total_bytes / -(-tokens // page_tokens)


def solve_budget(
    budget: Budget, sensitivity: Mapping[str, Any], shape: Mapping[str, int], page_tokens: int, tokens: int
) -> tuple[Solution, list[str]]:
    """The optimum and its scheme pair for every layer. Raises CapacityError where the budget allows none."""
    choices = choices_of(sensitivity, shape["kv_heads"], shape["head_dim"], page_tokens)
    if budget.kl is not None:
        found = solve(choices, kl=budget.kl)
    else:
        sizes = (shape["layers"], shape["kv_heads"], shape["head_dim"])
        found = solve(choices, page_bytes=pages_budget(budget, *sizes, page_tokens, tokens))
    return found, [layer[number].name for layer, number in zip(choices, found.choices, strict=True)]


def solved_dtypes(budget: Budget, asset: KVAsset, page_tokens: int, tokens: int) -> list[str]:
    """A scheme pair for every layer. Raises AssetError where the asset has no sensitivities."""
    sensitivity = asset.about.get("sensitivity")
    if not sensitivity:
        raise AssetError(
            f"{asset.path} has no sensitivities to solve `auto:{budget.text}` from",
            hint="run octavo calibrate with --sensitivity",
        )
    _, names = solve_budget(budget, sensitivity, asset.about["shape"], page_tokens, tokens)
    return names
