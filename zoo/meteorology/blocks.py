"""Reading what is stored in pieces as it is stored: one read per chunk, kept while it is of use, never a whole file."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError
from zoo.meteorology.contents import Stored
from zoo.meteorology.files import open_dataset
from zoo.meteorology.grids import Layout

if TYPE_CHECKING:
    import xarray as xr

Floats = npt.NDArray[np.float32]
_SMALLEST_READ = 2**20
"""Bytes of consecutive states that are read at once where the file does not say how they lie together."""
_READ_AHEAD = 12 * 2**20
_MOST_KEPT = 2**29
"""Bytes that are kept at most where two of each variable (of a state and of the one that is forecast from it)
are more than would be kept otherwise: with less, all would be read again for every state."""
_LARGEST_READ = 2**26
"""Bytes that are read at once at most, even where more of them are stored as one chunk."""


class Handles:
    """Open files by path. Each process opens its own: none goes along in a pickle or through a fork."""

    def __init__(self, storage: Mapping[str, Mapping[str, Any]]) -> None:
        self.storage = dict(storage)
        self._open: dict[str, xr.Dataset] = {}
        self._process = os.getpid()

    def get(self, path: str) -> xr.Dataset:
        """The open dataset of a path."""
        if self._process != os.getpid():
            self._open, self._process = {}, os.getpid()
        if path not in self._open:
            self._open[path] = open_dataset(path, self.storage.get(path))
        return self._open[path]

    def variable(self, path: str, name: str) -> Any:
        """A variable of an open file, without the coordinates that a dataset would put around it each time."""
        return self.get(path).variables[name]

    def close(self) -> None:
        """Close what this process has opened; what is asked for afterwards is opened anew."""
        if self._process == os.getpid():
            for data in self._open.values():
                data.close()
        self._open = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"storage": self.storage}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["storage"])  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Part:
    """Some fields of one variable of one file: K of them, at `places` of the array that is delivered."""

    path: str
    stored: Stored
    levels: tuple[int, ...]
    places: tuple[int, ...]
    scale: float
    offset: float
    layout: Layout
    member: int | None
    times: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other parts."""
        return self.path, self.stored.variable, self.places

    @property
    def state_bytes(self) -> int:
        """Bytes of one time."""
        height, width = self.layout.grid.shape
        return max(len(self.levels), 1) * height * width * max(self.stored.itemsize, 4)

    def block_length(self) -> int:
        """How many times are read at once: those of a chunk up to 64 MiB, or about a MiB where nothing is chunked."""
        chunk = self.stored.chunk("time")
        most = max((_LARGEST_READ if chunk else _SMALLEST_READ) // self.state_bytes, 1)
        return min(chunk or most, most, max(self.times, 1))

    def read(self, handles: Handles, start: int, stop: int) -> Floats:
        """Times `start` to `stop` of the file: (T K H W) in the table's unit and the order that is delivered."""
        variable = handles.variable(self.path, self.stored.variable)
        runs = _runs(self.levels, self.stored.chunk("level")) if "level" in self.stored.kinds else [(0, [0])]
        found = [self._read(variable, start, stop, level, take) for level, take in runs]
        block = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        if (self.scale, self.offset) != (1.0, 0.0):
            block = block * np.asarray(self.scale, block.dtype) + np.asarray(self.offset, block.dtype)
        return np.ascontiguousarray(block, dtype=np.float32)

    def _read(self, variable: Any, start: int, stop: int, level: slice | int, take: Sequence[int]) -> npt.NDArray[Any]:
        wanted: dict[str, Any] = {
            "time": slice(start, stop),
            "level": level,
            "latitude": self.layout.row_slice,
            "longitude": self.layout.column_slice,
            "member": self.member,
        }
        pairs = list(zip(self.stored.dims, self.stored.kinds, strict=True))
        key = tuple(wanted[kind] if kind in wanted else self.stored.fixed[dim] for dim, kind in pairs)
        block: npt.NDArray[Any] = variable[key].values
        left = [kind for (_, kind), index in zip(pairs, key, strict=True) if isinstance(index, slice)]
        order = [kind for kind in ("time", "level", "latitude", "longitude") if kind in left]
        block = block.transpose([left.index(kind) for kind in order])
        if "level" not in order:
            block = np.expand_dims(block, len(order) - 2)
        if "time" not in order:
            block = block[None]
        if list(take) != list(range(block.shape[1])):
            block = block[:, list(take)]
        return self.layout.forward(block)


def _runs(levels: Sequence[int], chunk: int) -> list[tuple[slice | int, list[int]]]:
    """What to read for some levels, and where they are in it: one slice where that reads little too much.

    Levels of one chunk are decompressed together anyway; levels stored apart are read one by one.
    """
    low, high = min(levels), max(levels)
    step = max((high - low) // (len(levels) - 1), 1) if len(levels) > 1 else 1
    if sorted(levels) == list(range(low, high + 1, step)) and (step == 1 or chunk <= 1):
        return [(slice(low, high + 1, step), [(level - low) // step for level in levels])]
    if chunk > 1 or 2 * len(levels) >= high - low + 1:
        return [(slice(low, high + 1), [level - low for level in levels])]
    return [(slice(level, level + 1), [0]) for level in levels]


@dataclass
class Block:
    """Consecutive states of a part from time `start` on: `values` (T K H W)."""

    start: int
    values: Floats
    _finite: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def state(self, time: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The values (K H W) of a time, and which fields are finite (K): found when they are needed, as the next that
        is done with the values is to copy them, and they are close to the processor then."""
        place = time - self.start
        values = self.values[place]
        if place not in self._finite:
            # a sum is finite only where every value is, and much cheaper than looking at each
            with np.errstate(invalid="ignore", over="ignore"):
                self._finite[place] = np.isfinite(values.reshape(len(values), -1).sum(axis=-1))
        return values, self._finite[place]


class Reader:
    """Blocks of parts on demand, and ahead of it where times are asked for one after the other."""

    def __init__(self, handles: Handles, cache_bytes: int) -> None:
        self.handles = handles
        self.cache = BlockCache(cache_bytes)
        self._own = cache_bytes
        self._next: dict[Any, tuple[int, int]] = {}
        self._sizes: dict[Any, int] = {}

    def block(self, part: Part, time: int) -> Block:
        """The block that holds a time of a part's file.

        Several blocks are read at once where the one before was asked for last: twice as many each time, up to
        12 MiB, because small reads cost more than their bytes. Raises `InputError` where the file is damaged there.
        """
        length = part.block_length()
        start = time - time % length
        key = part.key
        if key not in self._sizes:
            self._sizes[key] = length * part.state_bytes if length > 1 else 0
            self.cache.limit_bytes = max(self._own, min(2 * sum(self._sizes.values()), _MOST_KEPT))
        found = self.cache.get((key, start))
        expected, ahead = self._next.get(key, (-1, 1))
        if found is None:
            share = 2 * self.cache.limit_bytes // (3 * len(self._sizes))
            most = max(min(_READ_AHEAD, share) // (length * part.state_bytes), 1)
            ahead = min(2 * ahead, most) if start == expected else 1
            ahead = self._read(part, start, length, min(ahead, -(-(part.times - start) // length)))
            found = self.cache.get((key, start))
            assert found is not None  # it was put there just now, and is the most recent one
            self._next[key] = (start + ahead * length, ahead)
        return found

    def _read(self, part: Part, start: int, length: int, count: int) -> int:
        """Read blocks into the cache, and say how many it were: one where those ahead are damaged."""
        stop = min(start + count * length, part.times)
        try:
            values = part.read(self.handles, start, stop)
        except (OSError, RuntimeError, ValueError) as error:
            if count > 1:
                return self._read(part, start, length, 1)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{part.path}: variable {part.stored.variable} cannot be read at times {start} to {stop - 1} of the "
                f"file ({reason}); fetch the file again, or set unreadable: skip to leave such times out"
            ) from error
        for first in reversed(range(0, stop - start, length)):  # the one asked for is the most recent in the end
            self.cache.put((part.key, start + first), Block(start + first, values[first : first + length]))
        return count

    def forget(self) -> None:
        """Let go of what was read, and close files."""
        self.cache.clear()
        self._next, self._sizes = {}, {}
        self.handles.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"handles": self.handles, "cache_bytes": self._own}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@dataclass
class BlockCache:
    """Blocks by where they come from, the most recent ones up to `limit_bytes`; a larger one is kept alone."""

    limit_bytes: int
    held_bytes: int = 0
    _blocks: OrderedDict[Any, Block] = field(default_factory=OrderedDict)

    def get(self, key: Any) -> Block | None:
        """A block that is here, now the most recent one."""
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def put(self, key: Any, block: Block) -> None:
        """Keep a block, and let go of the oldest ones where there are too many bytes."""
        self._blocks[key] = block
        self.held_bytes += block.values.nbytes
        while self.held_bytes > self.limit_bytes and len(self._blocks) > 1:
            _, old = self._blocks.popitem(last=False)
            self.held_bytes -= old.values.nbytes

    def clear(self) -> None:
        self._blocks.clear()
        self.held_bytes = 0
