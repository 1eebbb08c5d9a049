"""The size of the pool: bytes in, pages out, and the arithmetic in what is refused."""

from dataclasses import replace

import pytest

from octavo.base.errors import BadValue, CapacityError
from octavo.engine.pool_size import (
    CacheShape,
    MemoryRequest,
    Room,
    count_pages,
    describe,
    gpu_budget,
    host_budget,
    parse_memory,
)

GIB = 1 << 30
SHAPE = CacheShape(page_bytes=32 << 20, page_tokens=64, most_pages=1 << 20)
GPU = Room("cuda", 126 * GIB, 140 * GIB, 13 * GIB, 1 * GIB, activations=2 * GIB, graphs=1 * GIB, scoring=8 * GIB)


def test_a_share_is_of_the_whole_gpu_and_holds_all_that_the_process_needs():
    assert gpu_budget(GPU, 0.9) == 126 * GIB - (13 + 1 + 2 + 1) * GIB
    assert gpu_budget(GPU, 0.5) == 70 * GIB - 17 * GIB


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_what_is_taken_stays_within_the_share_and_within_what_is_free(share):
    cache = gpu_budget(GPU, share)
    assert cache + GPU.weights + GPU.libraries + GPU.activations + GPU.graphs <= share * GPU.total
    assert cache + GPU.activations + GPU.graphs + GPU.scoring <= GPU.free


def test_memory_of_other_processes_counts_only_where_it_is_in_the_way():
    crowded = replace(GPU, free=GPU.free - 60 * GIB)  # another process holds 60 GiB
    assert gpu_budget(crowded, 0.4) == gpu_budget(GPU, 0.4)
    assert gpu_budget(crowded, 0.9) == crowded.free - (2 + 1 + 8) * GIB


def test_nothing_left_is_refused_with_the_arithmetic():
    with pytest.raises(CapacityError, match=r"0\.10 of 140\.00 GiB = 14\.00 GiB, weights 13\.00 GiB.*activations 2"):
        gpu_budget(GPU, 0.1)
    with pytest.raises(CapacityError, match=r"1\.00 GiB are free on cuda"):
        gpu_budget(replace(GPU, free=GIB), 0.9)


@pytest.mark.parametrize(
    ("asked", "pages"),
    [("0.5", 123 * 16), ("64MiB", 2), ("65tok", 2), ("1.0", 123 * 32)],
)
def test_what_is_asked_for_comes_before_the_share(asked, pages):
    assert count_pages(parse_memory(asked), 0, GPU, SHAPE) == pages


def test_without_a_request_no_more_pages_than_sequences_could_use():
    assert count_pages(None, 100 * GIB, GPU, SHAPE) == 3200
    assert count_pages(None, 100 * GIB, GPU, replace(SHAPE, most_pages=7)) == 7


def test_pools_that_cannot_be():
    with pytest.raises(CapacityError, match=r"would take 124\.00 GiB; 126\.00 GiB are free.*3\.00 GiB of them"):
        count_pages(MemoryRequest(byte_count=124 * GIB), 0, GPU, SHAPE)
    with pytest.raises(CapacityError, match=r"one page of all layers takes 32\.00 MiB and the cache has 31\.00 MiB"):
        count_pages(None, 31 << 20, GPU, SHAPE)


def test_a_cpu_gives_two_gib_or_less():
    assert host_budget(Room("cpu", 64 * GIB)) == 2 * GIB
    assert host_budget(Room("cpu", GIB)) == int(0.4 * GIB)
    assert count_pages(parse_memory("1.0"), 0, Room("cpu", GIB), SHAPE) == 32


def test_the_log_names_every_part():
    said = describe(None, 0.9, GPU, 109 * GIB)
    assert said == (
        "pool: 0.90 of 140.00 GiB = 126.00 GiB, weights 13.00 GiB, libraries 1.00 GiB, activations 2.00 GiB, "
        "graphs 1.00 GiB, cache 109.00 GiB"
    )
    assert describe(parse_memory("0.5"), 0.9, GPU, 0).startswith("pool: 50% of free memory asked for, ")


@pytest.mark.parametrize("text", ["0tok", "1.5", "lots", "12"])
def test_requests_that_cannot_be(text):
    with pytest.raises(BadValue):
        parse_memory(text)
