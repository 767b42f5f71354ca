"""A model of PyTorch's caching allocator: what a trace of allocations makes it count and reserve.

``torch.cuda.memory_allocated`` counts blocks, not tensors: sizes are rounded up to 512 bytes, and a block whose rest
is too small to split off is counted whole. ``torch.cuda.memory_reserved`` counts the segments that were asked of the
driver and are kept when tensors die. Source of every rule: ``c10/cuda/CUDACachingAllocator.cpp`` and
``c10/core/AllocatorConfig.h`` of PyTorch 2.13, whose names are given below.
"""

from __future__ import annotations

import bisect
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo.errors import DoesNotFit
from zoo.host import PINNED
from zoo.memory.devices import Device
from zoo.memory.ledger import OUTSIDE, Record
from zoo.units import MIB, format_bytes

MIN_BLOCK = 512
"""kMinBlockSize: all sizes are rounded to multiples of it."""
SMALL_SIZE = 1 * MIB
"""kSmallSize: the largest allocation of the small pool."""
SMALL_BUFFER = 2 * MIB
"""kSmallBuffer: segments of the small pool."""
LARGE_BUFFER = 20 * MIB
"""kLargeBuffer: segments of the large pool for allocations below `MIN_LARGE_ALLOC`."""
MIN_LARGE_ALLOC = 10 * MIB
"""kMinLargeAlloc: allocations from here on get a segment of their own size, in multiples of `ROUND_LARGE`."""
ROUND_LARGE = 2 * MIB


SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where PyTorch's allocator is told how to work; the second name is the older one."""


def grows(device: Device) -> bool:
    """Whether training on `device` has segments that grow (``expandable_segments``), as it asks for where nobody has
    chosen other `SETTINGS`.

    Batches differ in length. Segments of a fixed size are then kept for one and too small for the next: three steps of
    an ESM-2 35M, of 80, 128 and 94 tokens, reserved 3536 MiB on an H200, where 2774 were allocated.
    """
    chosen = next((os.environ[name] for name in SETTINGS if name in os.environ), None)
    if chosen is not None:
        return "expandable_segments:True" in chosen.replace(" ", "")
    return device.vendor == "nvidia" and sys.platform != "win32"


_BASES = {True: 2**50, False: 2**60}
"""Where the expandable segments of the small and of the large pool begin: each is one stretch of addresses."""


@dataclass(eq=False)
class Block:
    """A stretch of a segment. Neighbours in the same segment are linked."""

    address: int
    size: int
    small: bool
    free: bool = True
    before: Block | None = None
    after: Block | None = None


@dataclass
class _Pool:
    """Free blocks in order of size, then address (``BlockComparatorSize``)."""

    keys: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        bisect.insort(self.keys, (block.size, block.address))
        self.blocks[block.address] = block

    def remove(self, block: Block) -> None:
        del self.keys[bisect.bisect_left(self.keys, (block.size, block.address))]
        del self.blocks[block.address]

    def at_least(self, size: int) -> list[Block]:
        """The best fit, and the next larger block for who does not want it."""
        start = bisect.bisect_left(self.keys, (size, 0))
        return [self.blocks[address] for _, address in self.keys[start : start + 2]]


class CachingAllocator:
    """Allocates and frees as PyTorch does on one stream of one device. Sizes in bytes.

    `limit` is what may be reserved; beyond it cached segments are given back, and `DoesNotFit` is raised when that does
    not help. `expandable` is ``PYTORCH_ALLOC_CONF=expandable_segments:True``. Read `allocated` and `reserved`.
    """

    def __init__(self, *, limit: int | None = None, expandable: bool = False) -> None:
        self.allocated = 0
        self.reserved = 0
        self.limit = limit
        self.expandable = expandable
        self._pools = {True: _Pool(), False: _Pool()}
        self._tails: dict[bool, Block | None] = {True: None, False: None}
        self._next_address = 2**48

    def malloc(self, size: int) -> Block:
        """The block that an allocation of `size` bytes gets. Raises `DoesNotFit` where nothing is left."""
        size = max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)  # round_size
        small = size <= SMALL_SIZE  # get_pool
        block = self._cached(size, small) or self._new(size, small)
        if block is None:
            self.empty_cache()  # release_cached_blocks
            block = self._new(size, small)
        if block is None:
            raise DoesNotFit(
                f"an allocation of {format_bytes(size)} finds no room: {format_bytes(self.allocated)} are allocated "
                f"and {format_bytes(self.reserved)} reserved of {format_bytes(self.limit or 0)}; "
                "make the micro-batch smaller or the device larger"
            )
        rest = block.size - size
        if rest >= MIN_BLOCK if small or self.expandable else rest > SMALL_SIZE:  # should_split
            after = Block(block.address + size, rest, small, True, block, block.after)
            if block.after is not None:
                block.after.before = after
            block.after, block.size = after, size
            if self._tails[small] is block:
                self._tails[small] = after
            self._pools[small].add(after)
        block.free = False
        self.allocated += block.size
        return block

    def free(self, block: Block) -> None:
        """Give a block back; it merges with free neighbours (``free_block``, ``try_merge_blocks``)."""
        self.allocated -= block.size
        block.free = True
        pool = self._pools[block.small]
        for neighbour in (block.before, block.after):
            if neighbour is None or not neighbour.free:
                continue
            pool.remove(neighbour)
            first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
            block.address, block.size = first.address, first.size + second.size
            block.before, block.after = first.before, second.after
            if self._tails[block.small] is neighbour:
                self._tails[block.small] = block
        if block.before is not None:
            block.before.after = block
        if block.after is not None:
            block.after.before = block
        pool.add(block)

    def empty_cache(self) -> None:
        """Give back segments that hold nothing (``release_blocks``); of expandable ones, free granules at the end."""
        for small, pool in self._pools.items():
            granule = SMALL_BUFFER if small else LARGE_BUFFER
            for block in list(pool.blocks.values()):
                if not self.expandable:
                    if block.before is None and block.after is None:
                        pool.remove(block)
                        self.reserved -= block.size
                elif self._tails[small] is block and (gone := block.size // granule * granule):
                    # unmap_block: granules inside the segment could go as well; their holes are not modelled
                    pool.remove(block)
                    self.reserved -= gone
                    block.size -= gone
                    if block.size:
                        pool.add(block)
                    else:
                        self._tails[small] = block.before
                        if block.before is not None:
                            block.before.after = None

    def _cached(self, size: int, small: bool) -> Block | None:
        """Best fit (``get_free_block``). The end of an expandable segment is left alone where another block fits."""
        found = self._pools[small].at_least(size)
        if not found:
            return None
        tail = self.expandable and found[0] is self._tails[small] and len(found) > 1
        block = found[1 if tail else 0]
        self._pools[small].remove(block)
        return block

    def _new(self, size: int, small: bool) -> Block | None:
        """A new segment (``get_allocation_size``, ``alloc_block``), or more of the expandable one, or None."""
        if self.expandable:
            return self._grow(size, small)
        segment = SMALL_BUFFER if small else LARGE_BUFFER if size < MIN_LARGE_ALLOC else _up(size, ROUND_LARGE)
        if not self._reserve(segment):
            return None
        return Block(self._place(segment), segment, small)

    def _grow(self, size: int, small: bool) -> Block | None:
        """Map enough granules behind the end of the pool's segment (``try_allocate_expandable_block``)."""
        tail = self._tails[small]
        have = tail.size if tail is not None and tail.free else 0
        more = _up(size - have, SMALL_BUFFER if small else LARGE_BUFFER)
        if not self._reserve(more):
            return None
        if tail is not None and tail.free:
            self._pools[small].remove(tail)
            tail.size += more
            return tail
        address = _BASES[small] if tail is None else tail.address + tail.size
        block = Block(address, more, small, True, tail, None)
        if tail is not None:
            tail.after = block
        self._tails[small] = block
        return block

    def _reserve(self, size: int) -> bool:
        if self.limit is not None and self.reserved + size > self.limit:
            return False
        self.reserved += size
        return True

    def _place(self, size: int) -> int:
        """Later segments lie at lower addresses, as the driver's reservations of address space grow downwards on Linux.

        It decides which of several free blocks of one size is taken, and by that what large ones are left: reserved
        memory of the published eager runs is met to 0.2 % this way, with ascending addresses to 9 %.
        """
        self._next_address -= size
        return self._next_address


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def on_host(record: Record) -> dict[str, int]:
    """Most bytes that the host holds beside the device of a trace, by category; ``cached`` is page-locked and unused.

    Page-locked memory comes in powers of two and is never given back (``at/core/CachingHostAllocator.h``,
    ``allocate``); a freed block is used again for the next of its size. Other memory is counted as it is.
    """
    beside = record.beside()
    if not beside.any():
        return {}
    free: dict[int, int] = defaultdict(int)
    held: dict[str, int] = defaultdict(int)
    most: dict[str, int] = {}
    taken = highest = 0
    for event in record.events:
        index = abs(event) - 1
        if not event or not beside[index] or not record.sizes[index]:
            continue
        size, label, pinned = record.sizes[index], record.labels.get(index, "other"), record.devices[index] == PINNED
        if pinned:
            size = 1 << (size - 1).bit_length()
        held[label] += size if event > 0 else -size
        if pinned and event < 0:
            free[size] += 1
            continue
        if pinned and free[size]:
            free[size] -= 1
            continue
        taken += size if event > 0 else -size
        if taken > highest:
            highest, most = taken, {name: amount for name, amount in held.items() if amount}
    cached = highest - sum(most.values())
    return dict(sorted(most.items())) | ({"cached": cached} if cached else {})


EMPTY_CACHE = 0
"""An event that is no storage: the cache is emptied (``torch.cuda.empty_cache``)."""


@dataclass(frozen=True)
class Peak:
    """Highest `allocated` and `reserved` bytes of a phase, as ``torch.cuda.max_memory_*`` would say."""

    allocated: int
    reserved: int


@dataclass(frozen=True)
class Replay:
    """What the allocator did: peaks by phase, who held the blocks (bytes by category) at the highest of them, and
    what was allocated after the first stretch of the trace, before any phase."""

    phases: Mapping[str, Peak]
    categories: Mapping[str, int]
    resident: int


def replay(
    record: Record, *, device: str = "meta", limit: int | None = None, expandable: bool = False, since: int = 0
) -> Replay:
    """Run the events that a trace has on `device` through the allocator.

    What happens before event `since` is run too, but its peaks are not looked at. Raises `DoesNotFit` beyond `limit`.
    """
    allocator = CachingAllocator(limit=limit, expandable=expandable)
    held: dict[int, Block] = {}
    peaks: dict[str, Peak] = {}
    sizes: dict[int, int] = {}
    highest, top = -1, 0
    resident: int | None = None
    ends = [*(start for start, _ in record.marks[1:]), len(record.events)]
    for (start, phase), end in zip(record.marks, ends, strict=True):
        allocated, reserved = allocator.allocated, allocator.reserved
        counts = start >= since and phase != OUTSIDE
        resident = allocated if resident is None and phase != OUTSIDE else resident
        for place, event in enumerate(record.events[start:end], start):
            index = abs(event) - 1
            if event == EMPTY_CACHE:
                allocator.empty_cache()
            elif record.devices[index] != device or not record.sizes[index]:
                continue
            elif event < 0:
                allocator.free(held.pop(index))
            else:
                held[index] = block = allocator.malloc(record.sizes[index])
                sizes[index] = block.size
                if counts and allocator.allocated > highest:
                    highest, top = allocator.allocated, place + 1
                allocated, reserved = max(allocated, allocator.allocated), max(reserved, allocator.reserved)
        if start >= since:
            old = peaks.get(phase, Peak(0, 0))
            peaks[phase] = Peak(max(old.allocated, allocated), max(old.reserved, reserved))
            if counts and allocator.allocated > highest:  # nothing came in it: what was there before is its peak
                highest, top = allocator.allocated, start
    categories: dict[str, int] = defaultdict(int)
    for event in record.events[:top]:
        index = abs(event) - 1
        if index in sizes:
            categories[record.labels.get(index, "other")] += sizes[index] if event > 0 else -sizes[index]
    categories = {category: held_by for category, held_by in categories.items() if held_by}
    return Replay(peaks, dict(sorted(categories.items())), resident or 0)
