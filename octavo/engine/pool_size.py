"""How many pages the pool gets: arithmetic over bytes that somebody else has measured.

A GPU's memory, when an engine is ready (what is held by other processes lies in none of these):

    [ weights, libraries | activations | graphs | cache                  ] what is left
    0                                                  share x total       total

Nothing after that is ever allocated: the largest step there can be has run.
"""

import re
from dataclasses import dataclass

from octavo.base.errors import BadValue, CapacityError
from octavo.base.units import format_bytes, parse_bytes

__all__ = [
    "CacheShape",
    "MemoryRequest",
    "Room",
    "count_pages",
    "describe",
    "gpu_budget",
    "host_budget",
    "parse_memory",
]

_DEFAULT_HOST_BYTES = 2 << 30
_HOST_SHARE = 0.4


@dataclass(frozen=True)
class MemoryRequest:
    """How much memory the cache may take: exactly one of a share of what is free, bytes, or tokens."""

    share: float | None = None
    byte_count: int | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"{self.share:.0%} of free memory"
        return f"{self.tokens} tokens" if self.tokens is not None else f"{self.byte_count} bytes"


def parse_memory(text: str | int | float) -> MemoryRequest:
    """`0.9` (share), `24GiB` (bytes) or `200000tok` (tokens). Raises BadValue."""
    tokens = re.fullmatch(r"\s*([0-9]+)\s*tok(?:ens)?\s*", str(text))
    if tokens:
        if int(tokens[1]) == 0:
            raise BadValue("kv cache memory: 0 tokens", hint="give at least one page, 64tok")
        return MemoryRequest(tokens=int(tokens[1]))
    if re.fullmatch(r"\s*[01]?\.[0-9]+\s*|\s*1\.0*\s*", str(text)):
        share = float(text)
        if not 0 < share <= 1:
            raise BadValue(f"kv cache memory: share {share} is not between 0 and 1")
        return MemoryRequest(share=share)
    byte_count = parse_bytes(str(text))
    if byte_count < 4096:
        raise BadValue(f"kv cache memory: {byte_count} bytes hold no page", hint="write 0.5, 512MiB or 20000tok")
    return MemoryRequest(byte_count=byte_count)


@dataclass(frozen=True)
class CacheShape:
    """One page of all layers, and how many pages all sequences could use at full length."""

    page_bytes: int
    page_tokens: int
    most_pages: int


@dataclass(frozen=True)
class Room:
    """Bytes of a device with the weights on it, before there is a pool. On a CPU only `free` is known."""

    device: str
    free: int
    total: int = 0
    weights: int = 0
    libraries: int = 0
    """what this process holds beside the weights: the driver's context, kernels, workspaces"""
    activations: int = 0
    """what the largest step takes, and goes on holding"""
    graphs: int = 0
    scoring: int = 0
    """what a step takes beyond that, now and then, whose requests want the logits of their prompts: any share leaves
    it free"""

    @property
    def usable(self) -> int:
        """What is free once steps have all they need."""
        return max(0, self.free - self.activations - self.graphs)


def host_budget(room: Room) -> int:
    """Bytes for the cache on a CPU if nothing was asked for."""
    return min(_DEFAULT_HOST_BYTES, int(room.free * _HOST_SHARE))


def gpu_budget(room: Room, share: float) -> int:
    """Bytes for the cache such that this process holds at most `share` of the device's memory, never more than is
    free. Raises CapacityError if nothing is left."""
    held = room.weights + room.libraries + room.activations + room.graphs
    budget = min(int(share * room.total) - held, room.usable - room.scoring)
    if budget <= 0:
        raise CapacityError(
            f"nothing is left for the cache: {_parts(room, share)}, and {format_bytes(room.free)} are free on "
            f"{room.device}",
            hint="raise --gpu-memory-utilization, lower --max-num-batched-tokens, or free the GPU of other processes",
        )
    return budget


def count_pages(request: MemoryRequest | None, budget: int, room: Room, shape: CacheShape) -> int:
    """Pages that the request pays for, or, without one, `budget`: then never more than all sequences at full length
    could use. Raises CapacityError, with the arithmetic, if they do not fit or not even one does."""
    if request is None:
        return _at_least_one(min(budget // shape.page_bytes, shape.most_pages), shape, budget)
    if request.tokens is not None:
        pages = -(-request.tokens // shape.page_tokens)
        budget = pages * shape.page_bytes
    else:
        budget = int(room.usable * request.share) if request.share is not None else request.byte_count or 0
        pages = budget // shape.page_bytes
    if pages * shape.page_bytes > room.usable:
        steps = room.activations + room.graphs
        needed = f" and {format_bytes(steps)} of them are what a step needs" if steps else ""
        raise CapacityError(
            f"the cache would take {format_bytes(pages * shape.page_bytes)}; {format_bytes(room.free)} are free on "
            f"{room.device}{needed}",
            hint="lower --kv-cache-memory",
        )
    return _at_least_one(pages, shape, budget)


def _at_least_one(pages: int, shape: CacheShape, budget: int) -> int:
    if pages < 1:
        raise CapacityError(
            f"one page of all layers takes {format_bytes(shape.page_bytes)} and the cache has {format_bytes(budget)}",
            hint="raise --kv-cache-memory or choose a smaller --kv-cache-dtype",
        )
    return pages


def describe(request: MemoryRequest | None, share: float, room: Room, cache_bytes: int) -> str:
    """What was meant and what was found, in a line."""
    asked = f"{request} asked for, " if request is not None else ""
    return f"pool: {asked}{_parts(room, share)}, cache {format_bytes(cache_bytes)}"


def _parts(room: Room, share: float) -> str:
    whole = f"{share:.2f} of {format_bytes(room.total)} = {format_bytes(share * room.total)}"
    return (
        f"{whole}, weights {format_bytes(room.weights)}, libraries {format_bytes(room.libraries)}, "
        f"activations {format_bytes(room.activations)}, graphs {format_bytes(room.graphs)}"
    )
