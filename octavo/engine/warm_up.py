"""Before the first request on a GPU: a batch of each shape that kernels are compiled for, so that none compiles later.

What Triton compiled is kept on disk; a machine pays for it once.
"""

import logging
import time
from dataclasses import dataclass

import torch

from octavo.engine.batch import Batch
from octavo.engine.runner import Runner
from octavo.kernels.ahead import compile_ahead
from octavo.kernels.attention import ROW_BLOCKS
from octavo.kernels.linear import FEW_ROWS
from octavo.kernels.rows import Chunks, Rows

__all__ = ["Variant", "load_products", "product_rows", "variants", "warm_up"]

log = logging.getLogger("octavo")


@dataclass(frozen=True)
class Variant:
    """A step of `sequences`, of `new` tokens each, all there is of them. Kernels are told that they have `context`
    tokens, by which they choose whether to split them."""

    new: int
    context: int
    dense: bool = False
    """as a chunk that the host knows of, which may go to the dense kernel"""
    sequences: int = 1


def variants(group: int, page_tokens: int, most_new: int, longest: int, sequences: int = 1) -> list[Variant]:
    """Each row block that `group` query heads a KV head can fill, whole and split, and each that products know; one
    token of 2, 4, 8 .. as many sequences as there may be, for which attention is cut in other ways; then the largest
    step there can be.

    `most_new` tokens of a step, `longest` context, most `sequences`.
    """
    parted = FEW_ROWS[-1] + 1  # tokens whose products come in parts
    sequences, tokens, most_new = min(sequences, most_new), most_new, min(most_new, longest)
    products = (*FEW_ROWS, parted)
    news = sorted({min(count, most_new) for count in (*(max(1, rows // group) for rows in ROW_BLOCKS), *products)})
    lengths = sorted({min(page_tokens, longest), longest})
    several = [Variant(new, context) for new in news for context in lengths]
    powers = [1 << power for power in range(1, sequences.bit_length()) if 1 << power < sequences]
    several += [Variant(1, longest, sequences=count) for count in (*powers, sequences) if count > 1]
    if most_new < parted <= tokens:  # only together do sequences have as many
        several.append(Variant(most_new, longest, sequences=min(sequences, -(-parted // most_new))))
    return list(dict.fromkeys([*several, Variant(most_new, longest), Variant(most_new, longest, dense=True)]))


def warm_up(runner: Runner, several: list[Variant], threads: int | None = None) -> None:
    """Run each once, on page 0 of a pool that nobody uses yet. With `threads`, Triton kernels are compiled before,
    side by side. What is slow is said in the log."""
    begin = time.perf_counter()
    if threads:
        log.info("compiling kernels, once for this machine and model")
        unchecked = Runner(runner.model, runner.pool, runner.impl, invariant=runner.invariant)
        with compile_ahead(threads):
            for variant in several:
                unchecked.run(_batch(variant, runner))
    for variant in several:
        runner.run(_batch(variant, runner)).argmax().item()  # waits for the device
    if runner.pool.layers[0].pages.is_cuda:
        torch.cuda.empty_cache()  # compiling side by side held the tensors of every layer at once
    log.info("kernels are ready (%.1f s)", time.perf_counter() - begin)


def product_rows(most: int) -> list[int]:
    """Numbers of rows up to `most`, close together, since a library may choose another kernel for each."""
    several, rows = [], 8
    while rows <= most:
        several.append(rows)
        rows += max(8, rows // 32 // 8 * 8)
    return several


@torch.inference_mode()
def load_products(runner: Runner, tokens: int, sequences: int) -> None:
    """Have the library's kernels for products on the device before steps of up to `tokens` need them, whose logits are
    those of up to `sequences` (prompts that are scored have more). CUDA loads a kernel when it is first asked for and
    waits for the device to be idle: where a step runs, for as long as that takes."""
    if runner.invariant:
        return  # all products are of one shape
    for rows in product_rows(tokens):
        runner.model.try_products(rows, runner.impl, rows <= sequences)


def _batch(variant: Variant, runner: Runner) -> Batch:
    pages = runner.pool.layers[0].pages
    page_tokens = runner.pool.layouts[0].page_tokens
    tokens, page_count = variant.new * variant.sequences, -(-variant.new // page_tokens)
    positions = torch.arange(variant.new, device=pages.device).repeat(variant.sequences)
    starts = torch.arange(0, tokens + 1, variant.new, dtype=torch.int32, device=pages.device)
    rows = Rows(
        query_start=starts,
        context=torch.full((variant.sequences,), variant.new, dtype=torch.int32, device=pages.device),
        block_tables=torch.zeros(variant.sequences, page_count, dtype=torch.int32, device=pages.device),
        positions=positions,
        slots=positions % page_tokens,
        max_query=variant.new,
        max_context=variant.context,
        chunks=Chunks.of([variant.new], [variant.new], str(pages.device)) if variant.dense else None,
    )
    wanted = torch.arange(tokens, device=pages.device)
    if tokens > FEW_ROWS[-1]:  # logits are a product of few rows, too
        wanted = wanted[-1:].clone()
    return Batch(torch.zeros_like(positions), rows, wanted, ())
