"""How attention's work is cut into programs. Arithmetic only; the numbers in it were measured (docs/kernels.md)."""

from dataclasses import dataclass
from functools import lru_cache

from octavo.kernels.attention import ROW_BLOCKS
from octavo.kv.tile_codec import TileCodec

__all__ = ["LEAST_PAGES", "Chip", "StagedTiling", "Tiling", "choose_tiling", "padded"]

_SMALL_BYTES = 10 << 10  # of a page's KV head
_MOST_SPLITS = 64
LEAST_PAGES = 4
"""of all contexts, for each program that they are dealt out to, where pages are staged"""


@dataclass(frozen=True)
class Tiling:
    """How the work is cut: query rows a program, tokens a tile, programs that share a context, warps, load stages, and
    whether pages are prefetched to L2."""

    rows: int
    tile: int
    splits: int
    warps: int
    stages: int
    prefetch: bool = False


@dataclass(frozen=True)
class StagedTiling(Tiling):
    """With pages that come through shared memory (triton_staged.py): a row block, a page and a warp a program, and
    `stages` pages ahead."""

    shares: int = 0
    """programs of a KV head among which all pages are dealt out evenly; 0: one program a context"""
    early: bool = False
    """programs begin before the launch before them has ended"""
    places: int = 0
    """so many programs at most live on a multiprocessor, since each takes more shared memory than it needs; 0: as many
    as there is room for"""

    @classmethod
    def of(cls, shares: int, early: bool = False, places: int = 0, stages: int = 1) -> "StagedTiling":
        return cls(
            rows=ROW_BLOCKS[0], tile=64, splits=1, warps=1, stages=stages, shares=shares, early=early, places=places
        )

    def padding(self, page_bytes: int, head_dim: int, shared_kib: int) -> int:
        """KiB of shared memory that a program takes beyond what it needs for a head's page of `page_bytes`, such that
        just `places` of them fit into a multiprocessor's `shared_kib`: the middle of what does that."""
        if not self.places:
            return 0
        merging = self.rows * head_dim * 4 if self.shares else 0
        own = (self.stages * page_bytes + merging) / 1024 + 1  # CUDA reserves a KiB for each program
        return max(0, round((shared_kib / self.places + shared_kib / (self.places + 1)) / 2 - own))


@dataclass(frozen=True)
class Chip:
    processors: int
    has_bulk_copy: bool
    shared_kib: int = 228
    """KiB of a multiprocessor's shared memory"""


def padded(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def choose_tiling(
    codecs: tuple[TileCodec, TileCodec], query_rows: int, head_bytes: int, sequences: int, kv_heads: int, pages: int,
    chip: Chip, stageable: bool = False,
) -> Tiling:  # fmt: skip
    """`query_rows`: new tokens of the longest chunk times query heads per KV head; `pages`: of the longest context;
    `stageable`: whether triton_staged.py runs, and can read them."""
    one_warp = any(codec.one_warp for codec in codecs)
    exact = any(codec.key_compute == "float32" for codec in codecs)
    rows = min(ROW_BLOCKS[-1], max(16 if exact else ROW_BLOCKS[0], padded(query_rows)))
    if rows == ROW_BLOCKS[-1]:
        return Tiling(rows, 32, 1, 4, 1 if one_warp or exact else 2)
    programs = sequences * kv_heads * -(-query_rows // rows)
    resident = (12 if rows == 8 else 8) if one_warp else 4  # programs a multiprocessor holds: measured, not derived
    small = head_bytes <= _SMALL_BYTES
    if stageable and rows == ROW_BLOCKS[0]:
        return _choose_staged(programs, kv_heads, chip.processors, one_warp, small)
    splits = _choose_splits(programs, pages, resident * chip.processors, small)
    if one_warp:
        # int4's few bytes leave memory idle between a program's loads
        return Tiling(rows, 64 if rows == 8 else 32, splits, 1, 1, prefetch=chip.has_bulk_copy and small)
    return Tiling(rows, 32 if exact else 64, splits, 2, 1 if exact else 2)


def _choose_staged(programs: int, kv_heads: int, processors: int, one_warp: bool, small: bool) -> StagedTiling:
    """Measured on an H200 over contexts of one length and of many, between the products of a layer (docs/kernels.md).

    Few contexts are shared by four programs a multiprocessor, or two where they are floats; more of them by eight, as
    many as live there and merge, or four of floats. What few are depends on how long a page takes. No more than these
    fit on a multiprocessor: while the launch before still runs on some of them, the others would take more, and be the
    last to end. Eight codes begin early only where contexts are few: they take all registers, and the launch before has
    some.

    Many contexts have a program each, which begins early for floats, and for int4 where many follow the first. Where
    all are of one length, ten a multiprocessor take less time than the thirteen of int8 that it would hold, and int4
    gains from being dealt out for longer; floats are four at a time, unless there are very many.
    """
    if one_warp:
        if programs >= (20 if small else 14) * processors:
            return StagedTiling.of(0, early=small and programs >= 40 * processors, places=0 if small else 10)
        places = 4 if programs <= (1 if small else 2) * processors else 8
    elif programs > 4 * processors:
        return StagedTiling.of(0, early=True, places=4 if programs <= 32 * processors else 0)
    else:
        places = 2 if programs <= 2 * processors else 4
    early = programs <= 4 * processors
    return StagedTiling.of(max(1, places * processors // kv_heads), early=early, places=places)


@lru_cache(4096)  # every layer of a step asks the same
def _choose_splits(programs: int, pages: int, slots: int, small: bool) -> int:
    """How many programs share a context; `slots` is how many programs the chip holds. Measured on an H200 over contexts
    of one length and of many (docs/kernels.md).

    With a full chip none should: every split has a start, an end and a share of the merging, and since the longest
    contexts are started first the short ones fill what they leave. With half a chip three keep a few long contexts from
    running alone. Below, fewest page times: a wave of programs costs its pages, but for what a chip that is not full
    does faster (down to 0.6, after a full wave to 0.8: then latency rules), and something for its start and end, which
    weighs more where pages are `small`.
    """
    if programs >= slots:
        return 1
    if 2 * programs >= slots:
        return max(1, min(3, pages))

    def page_times(splits: int) -> float:
        full, rest = divmod(programs * splits, slots)
        waves = full + (max(rest / slots, 0.8 if full else 0.6) if rest else 0)
        return waves * -(-pages // splits) + (1.0 if small else 0.3) * (full + (rest > 0))

    return min(range(1, max(1, min(pages, _MOST_SPLITS)) + 1), key=page_times)
