"""Running code on tensors without storage, under a ledger.

Three worlds without storage are used. *Fake CPU tensors* choose the very kernels that the CPU runs, so their ledger
equals a real run to the byte. *meta tensors* cost a fifth as much to run and are used to search; the few places where
the CPU's choice of kernel differs are bridged here, each with its source, and fake tensors have the last word on them
before a plan is confirmed (see `zoo.tracer`). In the world
*accelerator* meta tensors stand for those of a GPU, with what differs there (see `zoo.memory.accelerator`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's documentation uses)
from torch import nn
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.domain import Batch
from zoo.host import DEVICE, LINK, place
from zoo.memory import accelerator, kernels, memo
from zoo.memory.accelerator import Kind
from zoo.memory.allocator import EMPTY_CACHE
from zoo.memory.leaves import tensors_in
from zoo.memory.ledger import NUMBER_OF, Ledger, Record
from zoo.memory.roofline import Cost
from zoo.memory.values import Values
from zoo.step import Phase, Setup, train_step

World = Literal["fake", "meta", "accelerator"]

Built = TypeVar("Built")


_plain_attention = F.scaled_dot_product_attention


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Fused attention of the CPU without dropout, the plain product with it.

    Source: torch 2.13, ``aten/src/ATen/native/transformers/sdp_utils_cpp.cpp`` (``use_flash_attention_cpp``) and
    ``attention.cpp`` (boolean masks become additive ones of the query's type).
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        open_, shut = (torch.scalar_tensor(v, dtype=query.dtype, device=query.device) for v in (0.0, -math.inf))
        attn_mask = torch.where(attn_mask, open_, shut)
    if dropout_p == 0.0 and query.ndim == 4 and not enable_gqa:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out: torch.Tensor = flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
        return out
    return _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


@contextlib.contextmanager
def _fused_optimizers_on_meta() -> Iterator[None]:
    """Fused optimizers check the kind of device before they run; ``meta`` stands in for one that has them."""
    module: Any = importlib.import_module("torch.optim.optimizer")
    kinds = [*module._get_fused_kernels_supported_devices(), "meta"]
    with mock.patch.object(module, "_get_fused_kernels_supported_devices", return_value=kinds):
        yield


class _HostLedger(Ledger):  # type: ignore[no-untyped-call]
    """A ledger under which autograd sums gradients as it does where nobody is watching."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(as_autograd_does(func, args, kwargs), types, args, kwargs)
        if memo.operation(func).name in kernels.PRODUCTS and out.element_size() == 2:
            self.record.inside.append((len(self.record.events), kernels.inside_a_product(tensors_in(args)[-2:], out)))
        return out


class _MetaHostLedger(_HostLedger):  # type: ignore[no-untyped-call]
    """A ledger under which meta tensors are made as a CPU makes its own."""

    def _run(self, known: memo.Operation, args: Any, kwargs: Any) -> tuple[Any, Cost | None]:
        out, cost = super()._run(known, args, kwargs)
        if known.name == "aten::native_layer_norm" and args[0].element_size() == 2:
            # its statistics are of the input's type (torch 2.13, ``torch/_refs/__init__.py``, native_layer_norm)
            return (out[0], *(torch.empty_like(statistic, dtype=args[0].dtype) for statistic in out[1:])), None
        return out, cost


class _AcceleratorLedger(Ledger):  # type: ignore[no-untyped-call]
    """A ledger that also counts what an accelerator's kernels allocate for themselves."""

    def __init__(self, kind: Kind, *, count_costs: bool) -> None:
        super().__init__(count_costs=count_costs, memoise=True)
        self._kind = kind
        self._threads: set[bool] = set()
        self._values = Values()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is NUMBER_OF and (value := self._values.of(args[0])) is not None:
            return value.item()
        if (where := place()) != DEVICE:
            return self._beside(where, func, types, args, kwargs)
        known = memo.operation(as_autograd_does(func, args, kwargs))
        if not _is_unusual(known):
            out = self._follow(known, args, kwargs or {})
            self._values.follow(known, args, kwargs or {}, out)
            return out
        accelerator.check_reproducible(known.name, args)
        out = super().__torch_dispatch__(known.func, types, args, kwargs)
        self._values.follow(known, args, kwargs or {}, out)
        if known.name in kernels.PRODUCTS and args[0].device.type == "meta":
            # The autograd engine has a thread for the device, and a handle belongs to a thread (CublasHandlePool.cpp).
            backward = torch._C._current_graph_task_id() != -1
            if backward not in self._threads:
                self._threads.add(backward)
                self.record.events.append(self._new(self._kind.workspace_bytes, "workspace"))
        if sizes := kernels.temporaries(self._kind, known.name, args, out):
            passing = [self._new(size, "kernels") for size in sizes if size]
            self.record.events += [*passing, *(-event for event in passing)]
        return out

    def _beside(self, where: str, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """An operation on the host or over the link to it: what it makes lies there, and it takes their time."""
        record = self.record
        made, done = len(record.sizes), len(record.costs)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        record.devices[made:] = [where] * (len(record.sizes) - made)
        for number in range(done, len(record.costs)):
            cost = record.costs[number]
            moved = args[1].nbytes if where == LINK else cost.bytes
            record.costs[number] = replace(cost, bytes=moved, place=where)
        return out

    def _new(self, size: int, label: str) -> int:
        """The event with which a storage of no tensor comes alive."""
        index = len(self.record.sizes)
        self.record.sizes.append(size)
        self.record.devices.append("meta")
        self.record.labels[index] = label
        return index + 1

    def empty_cache(self) -> None:
        self.record.events.append(EMPTY_CACHE)


@functools.cache
def _is_unusual(known: memo.Operation) -> bool:
    """Whether more is to be known of an operation than what it makes of which arguments."""
    return known.func is NUMBER_OF or known.name in UNUSUAL


UNUSUAL = kernels.PRODUCTS | kernels.WITH_TEMPORARIES | accelerator.MAY_BE_REFUSED


_SUM, _SUM_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


def as_autograd_does(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation that would run were no mode watching: autograd sums gradients in place where it may."""
    return _SUM_IN_PLACE if func is _SUM and _sums_gradients_in_place(args, kwargs) else func


def _sums_gradients_in_place(args: Any, kwargs: Any) -> bool:
    """Whether autograd, summing gradients of one tensor, would write into the first, were nobody watching.

    ``torch/csrc/autograd/input_buffer.cpp``, ``can_accumulate_inplace``: it does where nothing else holds the gradient,
    but never under a dispatch mode such as a ledger. Called from there, a tensor has four references here: the
    engine's, the argument's, and two of Python; its storage has that of the tensor and one for being looked at.
    """
    if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled() or kwargs:
        return False
    first, second = args
    if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
        return False
    tensors: int = first._use_count()  # type: ignore[attr-defined]
    if tensors != 4:
        return False
    alike = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    if not alike or not is_non_overlapping_and_dense_or_false(first):
        return False
    holders: int = torch._C._storage_Use_Count(first.untyped_storage()._cdata)
    return holders == 2


def before_fakes() -> None:
    """Import what fake tensors import when the first real tensor is met.

    That import leaves a cycle of the frames that led to it: met in a step, it would keep alive what they hold.
    """
    importlib.import_module("torch._dynamo.source")


@contextlib.contextmanager
def without_storage(
    world: World, *, count_costs: bool = False, kind: Kind | None = None
) -> Iterator[tuple[torch.device, Ledger]]:
    """Enter a world without storage. Yields the device to build on and the ledger that watches.

    `kind` says which accelerator ``meta`` stands for in the world ``accelerator``.
    """
    with contextlib.ExitStack() as stack:
        ledger: Ledger
        if world == "accelerator":
            kind = kind or Kind()
            ledger = watching = _AcceleratorLedger(kind, count_costs=count_costs)
            stack.enter_context(accelerator.semantics(kind))
            stack.enter_context(mock.patch.object(torch.cuda, "empty_cache", watching.empty_cache))
            stack.enter_context(mock.patch.object(torch.cuda, "synchronize"))
        elif world == "meta":
            ledger = _MetaHostLedger(count_costs=count_costs, memoise=True)
            stack.enter_context(_fused_optimizers_on_meta())
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
        else:
            ledger = _HostLedger(count_costs=count_costs)
            before_fakes()
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(ledger)
        stack.enter_context(_no_garbage_collection())
        yield torch.device("cpu" if world == "fake" else "meta"), ledger


def trace(
    build: Callable[[torch.device], Setup],
    batch: Callable[[Setup], list[Batch]],
    world: World,
    *,
    steps: int = 2,
    count_costs: bool = False,
    kind: Kind | None = None,
    enough: Callable[[Record], bool] | None = None,
    most: int | None = None,
) -> Record:
    """What `steps` training steps allocate. The phases are those of `train_step`.

    With ``steps=1`` the optimizer's states are made first, by a step on empty gradients, so that the one full step
    is a step as all but the first are; with ``steps=0`` that is all. `kind` is the accelerator's in the world
    ``accelerator``, where only the last step has all the micro-batches of `batch`. The trace ends with the first
    forward or the first backward pass after which what there is of it is `enough`, and before its first step where
    weights and states take more than `most` bytes.
    """
    with without_storage(world, count_costs=count_costs, kind=kind) as (device, ledger):

        def ready(device: torch.device) -> Setup:
            setup = build(device)
            ledger.label("parameters", setup.model.parameters())
            ledger.label("buffers", setup.model.buffers())
            if steps < 2:
                _make_states(setup)
            return setup

        left = steps

        def step(setup: Setup, phase: Phase) -> None:
            nonlocal left
            left -= 1
            setup.phase = phase if enough is None else _asking(phase, enough, ledger)
            if world == "accelerator":
                train_step(setup, _Arriving(lambda: ready_batch(setup)[: EARLIER if left else None]))
            else:
                train_step(setup, ready_batch(setup))

        def ready_batch(setup: Setup) -> list[Batch]:
            with torch.device(device):
                micro_batches = batch(setup)
            for micro in micro_batches:
                ledger.label("batch", [*micro.inputs.values(), micro.targets])
            return micro_batches

        def begin(device: torch.device) -> Setup:
            setup = ready(device)
            if most is not None and ledger.record.alive() > most:
                raise _Enough(BEGINNING)
            return setup

        try:
            follow(ledger, device, begin, step, lambda setup: [setup.model], steps=steps)
        except _Enough as end:
            ledger.record.ended = str(end)
            ledger.close()
    return ledger.record


BEGINNING = "beginning"
"""Where a trace has ended before whose first step there was too much."""


class _Enough(Exception):
    """Ends a trace after the phase that it names."""


def _asking(phase: Phase, enough: Callable[[Record], bool], ledger: Ledger) -> Phase:
    """`phase`, which asks whether it is enough after the first of what is before a step's second micro-batch."""
    asked: set[str] = set()

    @contextlib.contextmanager
    def asking(name: str) -> Iterator[None]:
        with phase(name):
            yield
        if name in ("forward", "backward") and name not in asked:
            asked.add(name)
            if enough(ledger.record):
                raise _Enough(name)

    return asking


EARLIER = 1
"""Micro-batches of a step before the last, which is there for what it leaves behind: one leaves all of it."""


class _Arriving(Sequence[Batch]):
    """Micro-batches that lie on the host and come to an accelerator one at a time, to stay no longer than they are
    used: each is made when it is asked for."""

    def __init__(self, make: Callable[[], list[Batch]]) -> None:
        self._make = make
        self._weights = [micro.weight for micro in make()]

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return self._make()[index]


def follow(
    ledger: Ledger,
    device: torch.device,
    build: Callable[[torch.device], Built],
    step: Callable[[Built, Phase], object],
    modules: Callable[[Built], Iterable[nn.Module]],
    *,
    steps: int,
) -> None:
    """Build and take `steps` steps under an entered ledger, giving what comes alive its category."""
    built = build(device)
    for module in modules(built):
        ledger.label("parameters", module.parameters())
        ledger.label("buffers", module.buffers())
    ledger.relabel_alive("other", "optimizer")

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        with ledger.phase(name):
            yield
            if name == "backward":  # what a backward pass leaves in .grad gets its name as soon as the pass ends
                parameters = (p for module in modules(built) for p in module.parameters())
                ledger.label("gradients", (p.grad for p in parameters if p.requires_grad and p.grad is not None))

    for _ in range(steps):
        step(built, phase)
        ledger.relabel_alive("temporaries", "optimizer")
    ledger.close()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Cycles die at a time of the collector's choosing, which would make traces differ from run to run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _make_states(setup: Setup) -> None:
    if setup.optimizer is None:
        raise ValueError("the setup has no optimizer: build it with an optimizer technique")
    for parameter in setup.trainable().values():
        parameter.grad = torch.empty_like(parameter)
    setup.optimizer.step()
    setup.optimizer.zero_grad(set_to_none=True)
