"""The model of PyTorch's caching allocator, on sequences whose result follows from its rules.

Worked out by hand from the rules of ``c10/cuda/CUDACachingAllocator.cpp`` and the constants of
``c10/core/AllocatorConfig.h``.
"""

from __future__ import annotations

import pytest

from zoo.errors import DoesNotFit
from zoo.memory.allocator import EMPTY_CACHE, CachingAllocator, Peak, replay
from zoo.memory.ledger import OUTSIDE, Record
from zoo.units import KIB, MIB


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest of the small pool
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (20 * MIB + 1, 20 * MIB + 512, 22 * MIB),  # the rest of 2 MiB - 512 is split off: it is more than 1 MiB
        (21 * MIB, 22 * MIB, 22 * MIB),  # the rest of exactly 1 MiB is not
    ],
)
def test_one_allocation_takes_its_size_class(size: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.malloc(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_small_allocations_share_a_segment_of_two_mebibytes() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.malloc(512 * KIB) for _ in range(4)]
    assert allocator.reserved == 2 * MIB
    allocator.malloc(1)
    assert allocator.reserved == 4 * MIB
    assert len({block.address for block in blocks}) == 4


def test_a_block_whose_rest_is_too_small_is_counted_whole() -> None:
    allocator = CachingAllocator()
    first = allocator.malloc(16 * MIB)
    allocator.free(first)
    block = allocator.malloc(15 * MIB + 512)  # leaves less than 1 MiB
    assert block.size == 16 * MIB
    assert allocator.allocated == 16 * MIB
    allocator.free(block)
    assert allocator.malloc(15 * MIB - 512).size == 15 * MIB - 512  # leaves more


def test_best_fit_takes_the_smallest_block_that_is_large_enough() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.malloc(size * MIB) for size in (40, 14, 30)]
    for block in blocks:
        allocator.free(block)
    assert allocator.malloc(14 * MIB) is blocks[1]
    assert allocator.malloc(25 * MIB) is blocks[2]
    assert allocator.reserved == 84 * MIB


def test_of_equal_blocks_the_one_of_the_later_segment_is_taken() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.malloc(12 * MIB) for _ in range(3)]
    for block in blocks:
        allocator.free(block)
    assert allocator.malloc(12 * MIB) is blocks[2]


def test_free_neighbours_merge() -> None:
    allocator = CachingAllocator()
    parts = [allocator.malloc(5 * MIB) for _ in range(4)]
    assert allocator.reserved == 20 * MIB
    allocator.free(parts[0])
    allocator.free(parts[2])
    assert allocator.malloc(9 * MIB).size == 9 * MIB  # no two free ones are adjacent
    assert allocator.reserved == 40 * MIB
    allocator.free(parts[1])
    allocator.malloc(15 * MIB)
    assert allocator.reserved == 40 * MIB


def test_segments_are_kept_and_emptying_the_cache_gives_back_whole_ones_only() -> None:
    allocator = CachingAllocator()
    whole = allocator.malloc(50 * MIB)
    part = allocator.malloc(4 * MIB)
    allocator.malloc(4 * MIB)
    allocator.free(whole)
    allocator.free(part)
    assert allocator.reserved == 70 * MIB
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB


def test_at_the_limit_cached_memory_is_given_back_before_giving_up() -> None:
    allocator = CachingAllocator(limit=100 * MIB)
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(80 * MIB)  # fits once the 60 MiB are given back
    assert allocator.reserved == 80 * MIB
    with pytest.raises(DoesNotFit, match=r"an allocation of 40\.0 MiB finds no room: 80\.0 MiB are allocated.*100 MiB"):
        allocator.malloc(40 * MIB)


def test_expandable_segments_grow_by_granules_and_leave_no_gaps() -> None:
    plain, expandable = CachingAllocator(), CachingAllocator(expandable=True)
    for allocator in (plain, expandable):
        block = allocator.malloc(30 * MIB)
        allocator.free(block)
        allocator.malloc(50 * MIB)
    assert plain.reserved == 80 * MIB  # 30 cached, 50 new
    assert expandable.reserved == 60 * MIB  # 40 mapped for 30, then 20 more behind them
    assert expandable.allocated == 50 * MIB


def test_expandable_segments_split_to_512_bytes() -> None:
    allocator = CachingAllocator(expandable=True)
    allocator.malloc(19 * MIB + 512 * KIB)
    assert allocator.allocated == 19 * MIB + 512 * KIB
    allocator.malloc(4 * MIB)
    assert allocator.reserved == 40 * MIB


def test_expandable_segments_give_back_what_is_free_at_their_end() -> None:
    allocator = CachingAllocator(expandable=True)
    first, second = allocator.malloc(20 * MIB), allocator.malloc(40 * MIB)
    allocator.free(second)
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.reserved == 0


def trace_of(*events: int, sizes: list[int], marks: list[tuple[int, str]]) -> Record:
    return Record(
        sizes=sizes, devices=["meta"] * len(sizes), events=list(events), marks=[(0, OUTSIDE), *marks],
        labels={i: f"kind {i}" for i in range(len(sizes))},
    )  # fmt: skip


def test_a_replay_gives_peaks_by_phase_and_who_holds_the_blocks() -> None:
    record = trace_of(
        1, 2, -2, 3, -3, sizes=[10 * MIB, 30 * MIB, 14 * MIB], marks=[(1, "forward"), (3, "backward"), (5, OUTSIDE)]
    )
    played = replay(record)
    assert played.resident == 10 * MIB
    assert played.phases["forward"] == Peak(40 * MIB, 40 * MIB)
    assert played.phases["backward"] == Peak(24 * MIB, 40 * MIB)
    assert played.categories == {"kind 0": 10 * MIB, "kind 1": 30 * MIB}


def test_a_replay_counts_only_the_device_and_only_from_where_it_is_asked() -> None:
    record = trace_of(1, -1, 2, sizes=[64 * MIB, 10 * MIB], marks=[(0, "forward"), (2, "forward")])
    assert replay(record).phases["forward"].allocated == 64 * MIB
    late = replay(record, since=2).phases["forward"]
    assert late == Peak(10 * MIB, 64 * MIB)  # what was reserved before stays
    record.devices[0] = "cpu"
    assert replay(record).phases["forward"] == Peak(10 * MIB, 10 * MIB)


def test_a_replay_empties_the_cache_where_the_program_did() -> None:
    record = trace_of(
        1, -1, EMPTY_CACHE, 2, sizes=[64 * MIB, 10 * MIB], marks=[(0, "forward"), (3, "backward"), (4, OUTSIDE)]
    )
    assert replay(record).phases["backward"] == Peak(10 * MIB, 10 * MIB)
