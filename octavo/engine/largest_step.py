"""What steps take of a GPU's memory: the largest ones there can be, run once over pages that nobody uses."""

import gc
from dataclasses import dataclass

import torch

from octavo.base.device import device_memory
from octavo.engine.batch import Batch
from octavo.engine.graphs import DecodeBuffers, GraphSet
from octavo.engine.pool_size import Room
from octavo.engine.request import Request
from octavo.engine.runner import Runner
from octavo.engine.sampler import sample
from octavo.engine.sampling import SamplingParams
from octavo.kernels.attention import DENSE_TOKENS
from octavo.kernels.rows import Chunks, Rows

__all__ = ["StepLimits", "decode_step", "deep_step", "largest_step", "measure_room", "run_largest"]

_LIBRARIES = 1 << 30
"""what the driver's context, kernels and workspaces may come to; memory in use beyond is that of other processes"""
_ONE_GRAPH = 2 << 20
_SEVERAL = 4
# every filter at once: what a sampler could need
_SAMPLED = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1)


@dataclass(frozen=True)
class StepLimits:
    """The most that one step has: tokens, sequences, and context of one of them."""

    tokens: int
    sequences: int
    longest: int
    page_tokens: int


def largest_step(limits: StepLimits, device: str) -> Batch:
    """Prompts of full length, as many as a step takes, and logits for as many rows as there can be."""
    total = min(limits.tokens, limits.sequences * limits.longest)
    full, rest = divmod(total, limits.longest)
    lengths = [limits.longest] * full + ([rest] if rest else [])
    return _batch(lengths, lengths, min(limits.sequences, total), limits, device)


def deep_step(limits: StepLimits, device: str) -> Batch:
    """As many tokens, in chunks whose contexts are as much as the dense kernel takes at once."""
    count = min(max(1, DENSE_TOKENS // limits.longest), limits.sequences, limits.tokens)
    context = min(limits.longest, DENSE_TOKENS // count)
    return _batch([min(limits.tokens // count, context)] * count, [context] * count, count, limits, device)


def decode_step(limits: StepLimits, device: str) -> Batch:
    """One token of as many sequences as there can be."""
    count = min(limits.sequences, limits.tokens)
    return _batch([1] * count, [1] * count, count, limits, device)


def _batch(lengths: list[int], contexts: list[int], wanted: int, limits: StepLimits, device: str) -> Batch:
    """The last `lengths` tokens of sequences, all on page 0. Kernels are told of the longest context there can be."""
    counts = torch.tensor(lengths, dtype=torch.int32)
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    starts[1:] = counts.cumsum(0)
    positions = torch.cat([torch.arange(end - new, end) for new, end in zip(lengths, contexts, strict=True)])
    chunked = max(lengths) > 1
    rows = Rows(
        query_start=starts.to(device),
        context=torch.tensor(contexts, dtype=torch.int32).to(device),
        block_tables=torch.zeros(len(lengths), -(-limits.longest // limits.page_tokens), dtype=torch.int32).to(device),
        positions=positions.to(device),
        slots=(positions % limits.page_tokens).to(device),
        max_query=max(lengths),
        max_context=limits.longest,
        singles=0 if chunked else len(lengths),
        chunks=Chunks.of(lengths, contexts, device) if chunked else None,
    )
    last = torch.arange(len(positions) - wanted, len(positions))
    return Batch(torch.zeros_like(rows.positions), rows, last.to(device), ())


def run_largest(runner: Runner, limits: StepLimits) -> None:
    """All of them, each with a token sampled for every row: afterwards torch holds what any step needs."""
    device = str(runner.pool.layers[0].pages.device)
    one = Request("largest-step", (0,), _SAMPLED, 0, 2, 0, b"")
    for step in (largest_step(limits, device), deep_step(limits, device), decode_step(limits, device)):
        sample(runner.run(step), [one] * len(step.wanted), ())


def measure_room(runner: Runner, limits: StepLimits, graph_sizes: tuple[int, ...]) -> Room:
    """The memory of the GPU that `runner` is on, whose own pool should be small: it goes when the real one comes."""
    device = runner.pool.layers[0].pages.device
    _settled(device)
    before = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_largest(runner, limits)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_reserved(device) - before[0], torch.cuda.max_memory_allocated(device) - before[1]
    graphs = _graph_bytes(runner, limits, graph_sizes) if graph_sizes else 0
    total, used = _settled(device)
    weights = torch.cuda.memory_allocated(device)
    own = min(used, torch.cuda.memory_reserved(device) + _LIBRARIES)
    return Room(str(device), total - used, total, weights, own - weights, max(peak), graphs)


def _graph_bytes(runner: Runner, limits: StepLimits, sizes: tuple[int, ...]) -> int:
    """Of graphs of all `sizes`: the largest alone holds the activations, every other one its launches. The first
    recording is for what libraries load then and keep, which is not the graphs'."""
    device = runner.pool.layers[0].pages.device
    begin = _settled(device)[1]
    buffers = DecodeBuffers(sizes[-1], limits.longest, limits.page_tokens, str(device), runner.impl)
    inputs, found = _settled(device)[1] - begin, []
    for some in (sizes[-1:], sizes[-1:], sizes[-_SEVERAL:]):
        before = _settled(device)[1]
        graphs = GraphSet(some, buffers)
        graphs.capture(runner.forward)
        found.append(_settled(device)[1] - before)
        del graphs
    _, one, several = found
    each = max((several - one) // (_SEVERAL - 1), _ONE_GRAPH)
    return max(inputs, 0) + max(one, several, 0) + each * max(len(sizes) - _SEVERAL, 0)


def _settled(device: torch.device) -> tuple[int, int]:
    """Bytes of the device, in all and in use, once nothing that could be given back is held."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = device_memory(str(device))
    return total, total - free
