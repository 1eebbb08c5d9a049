"""Before a model is served: bundled text through the cache as planned, on the kernels that will run, beside the model
without a cache. A cache that turns the model to nonsense is repaired, aloud, or refused; never served.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.base.errors import CheckFailed, UsageError
from octavo.calibrate.cache_plan import CachePlan, make_transforms
from octavo.calibrate.corpus import BUNDLED, open_corpus, windows
from octavo.calibrate.divergence import Divergence, measure
from octavo.calibrate.sensitivity import exact_log_probabilities, measure_sensitivity
from octavo.checkpoint.tokenizer import Tokenizer
from octavo.engine.batch import Batch
from octavo.engine.options import parse_threshold
from octavo.engine.remedies import Asked, remedies
from octavo.engine.runner import Runner
from octavo.kernels.rows import Rows
from octavo.kv.pool import PagePool
from octavo.models.dense import DenseDecoder

__all__ = ["Bench", "SelfTest", "self_test"]

log = logging.getLogger("octavo")

_WINDOWS, _TOKENS = 4, 128
_NAMED = 6


@dataclass(frozen=True)
class SelfTest:
    """`status`: passed, repaired, off or skipped. Divergences are from the same model without a cache."""

    status: str
    reason: str | None = None
    kl_mean: float | None = None
    same_top: float | None = None
    tokens: int = 0
    threshold: float | None = None
    changes: tuple[str, ...] = ()
    """what was changed of the plan that was asked for"""
    seconds: float = 0.0


@dataclass(frozen=True)
class Bench:
    """A model without its cache, and how to make one of any plan. `load` reads a weight in fp32; `impl_of` chooses the
    kernels for a plan."""

    model: DenseDecoder
    load: Callable[[str], Tensor]
    tokenizer: Tokenizer | None
    device: str
    page_tokens: int
    impl_of: Callable[[CachePlan], str]
    exact: list[Tensor] = field(default_factory=list)
    """log-probabilities of each window without a cache, once they are known"""

    def divergence(self, cache: CachePlan, texts: list[Tensor]) -> Divergence:
        """Each text in one step through a small cache of this plan."""
        if not self.exact:
            self.exact.extend(exact_log_probabilities(self.model, text) for text in texts)
        spec = self.model.spec
        layouts = cache.plan.layouts(spec.kv_heads, spec.head_dim, self.page_tokens)
        transforms = make_transforms(cache, spec, self.load, self.model.rope, self.device)
        pages = -(-max(map(len, texts)) // self.page_tokens)
        pool = PagePool(cache.plan, layouts, pages, self.device, transforms=transforms)
        runner = Runner(self.model, pool, self.impl_of(cache))
        found = (runner.run(_batch(text, pages, self.page_tokens)).float().log_softmax(-1) for text in texts)
        return measure(list(zip(self.exact, found, strict=True)))


def self_test(bench: Bench, cache: CachePlan, asked: Asked, option: str) -> tuple[CachePlan, SelfTest]:
    """The plan to serve with, and how it was found good. Raises CheckFailed where nothing helps."""
    if option == "off":
        return cache, SelfTest("off", "asked for")
    threshold, begin = parse_threshold(option), time.perf_counter()
    reason = _needless(bench, cache) if option == "auto" else None
    texts = [] if reason else _texts(bench)
    if not texts:
        reason = reason or "the model has no tokenizer for the bundled text"
        if option != "auto":
            raise UsageError(f"kv_self_test {option}: {reason}", hint="leave it at auto, or name a --tokenizer")
        if bench.tokenizer is None or not reason.startswith("nothing"):
            log.warning("the cache was not tested: %s", reason)
        return cache, SelfTest("skipped", reason)
    found = bench.divergence(cache, texts)
    changes: tuple[str, ...] = ()
    if not found.kl_mean <= threshold:
        cache, found, changes = _repaired(bench, cache, asked, texts, found, threshold)
    seconds = time.perf_counter() - begin
    log.info(
        "self-test: KL %.2g, same top token %.1f %% on %d tokens of bundled text, computed in %s (%.1f s)",
        found.kl_mean, 100 * found.same_top, found.tokens, _dtype_of(bench), seconds,
    )  # fmt: skip
    status = "repaired" if changes else "passed"
    return cache, SelfTest(
        status, None, found.kl_mean, found.same_top, found.tokens, threshold, changes, round(seconds, 3)
    )


def _needless(bench: Bench, cache: CachePlan) -> str | None:
    width = bench.model.spec.head_dim
    sides = [side for layer in cache.plan.layers for side in (layer.key, layer.value)]
    folded = any(side.scheme.vector_bytes(width) < 2 * width for side in sides)
    return None if folded else "nothing is stored in less than 16 bits"


def _texts(bench: Bench) -> list[Tensor]:
    spec = bench.model.spec
    if bench.tokenizer is None:
        return []
    cut = windows(open_corpus(BUNDLED), bench.tokenizer, _WINDOWS, min(_TOKENS, spec.max_position), seed=0)
    if max(max(ids) for ids in cut.ids) >= spec.vocab_size:
        return []
    return [torch.tensor(ids, device=bench.device) for ids in cut.ids]


def _repaired(
    bench: Bench, cache: CachePlan, asked: Asked, texts: list[Tensor], found: Divergence, threshold: float
) -> tuple[CachePlan, Divergence, tuple[str, ...]]:  # fmt: skip
    """The first plan along the remedies that passes; each is kept if it helped at all."""
    log.warning("self-test: KL %.2g with %s, more than %.2g", found.kl_mean, cache.plan.describe(), threshold)
    layers = _sensitivity(bench, cache, texts)
    changes: list[str] = []
    best, best_found = cache, found
    for remedy in remedies(bench.model.spec, asked, [k + v for k, v in zip(*layers, strict=True)]):
        tried = remedy.apply(best)
        if tried is None:
            continue
        now = bench.divergence(tried, texts)
        log.warning("self-test: %s: KL %.2g", remedy.name, now.kl_mean)
        if now.kl_mean < best_found.kl_mean or not math.isfinite(best_found.kl_mean):
            best, best_found = tried, now
            changes = [change for change in changes if remedy.replaces not in change] + [remedy.name]
        if best_found.kl_mean <= threshold:
            return best, best_found, tuple(changes)
    named = sorted(range(len(layers[0])), key=lambda n: -max(layers[0][n], layers[1][n]))[:_NAMED]
    worst = ", ".join(f"{n} (K {layers[0][n]:.2g}, V {layers[1][n]:.2g})" for n in named)
    fixed = f"; {' and '.join(asked.fixed)} left no remedy" if asked.fixed else ""
    raise CheckFailed(
        f"a cache of {cache.plan.name} breaks this model: KL {found.kl_mean:.2g} on bundled text where {threshold:.2g} "
        f"is allowed, same top token {found.same_top:.1%}, at best {best_found.kl_mean:.2g} with remedies; worst "
        f"layers alone: {worst}{fixed}",
        hint="choose --kv-cache-dtype int8 or bf16, run octavo calibrate, or serve it all the same with "
        "--kv-self-test off",
    )  # fmt: skip


def _sensitivity(bench: Bench, cache: CachePlan, texts: list[Tensor]) -> tuple[list[float], list[float]]:
    """KL of each layer's K alone and V alone, on the first text; what is not finite is worst."""
    transforms = make_transforms(cache, bench.model.spec, bench.load, bench.model.rope, bench.device)
    found = measure_sensitivity(bench.model, texts[:1], {"plan": (cache.plan, transforms)}, lambda: None)
    keys, values = ([kl if math.isfinite(kl) else 1e9 for kl in found[side]["plan"]] for side in "kv")
    return keys, values


def _dtype_of(bench: Bench) -> str:
    return str(bench.model.embedding.dtype).removeprefix("torch.")


def _batch(text: Tensor, pages: int, page_tokens: int) -> Batch:
    count, device = len(text), text.device
    positions = torch.arange(count, device=device)
    context = torch.tensor([count], dtype=torch.int32, device=device)
    rows = Rows(
        query_start=torch.tensor([0, count], dtype=torch.int32, device=device), context=context,
        block_tables=torch.arange(pages, dtype=torch.int32, device=device)[None], positions=positions, slots=positions,
        max_query=count, max_context=count,
    )  # fmt: skip
    return Batch(text, rows, positions, ())
