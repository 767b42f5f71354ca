"""The one build and the one step, run for real by training and without storage by the planner.

    plan ──► build(...) ──► Setup ──► train_step(setup, batch)

Nothing here knows which of the two worlds it is in: the planner runs these functions under modes that make
every tensor storage-free and count its bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from zoo.card import ModelCard, load_ref
from zoo.domain import Batch, Task
from zoo.errors import InputError
from zoo.host import Host
from zoo.techniques import BEFORE_LOADING, Technique

PHASES = ("forward", "backward", "optimizer")

Phase = Callable[[str], contextlib.AbstractContextManager[None]]
"""Enters a named phase of a step: the meter and the ledger listen here."""

Loader = Callable[["Setup"], None]
"""Fills the empty tensors of `setup.model` with values, pretrained or random."""


@contextlib.contextmanager
def no_phase(name: str) -> Iterator[None]:
    yield


class World(Protocol):
    """The ranks that share a step. `total` sums a number over all of them."""

    rank: int
    size: int

    def total(self, value: float) -> float: ...


class Alone:
    """One process, one device."""

    rank = 0
    size = 1

    def total(self, value: float) -> float:
        return value


class StepOptimizer(Protocol):
    """What the step and the checkpoint need of an optimizer; `torch.optim.Optimizer` has it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Setup:
    """A model that can be stepped. Techniques change it; nothing else does.

    `reference` maps a parameter to its fp32 value in the checkpoint while building, so that master weights
    start from what was published and not from its bf16 rounding. `chosen` are the techniques that will be applied, for
    one to say `why_not` beside another; `last_micro_batch` is whether the gradients of the update in progress are
    complete when the present backward pass is over. `kept_on_host` are parameters of the model that lie in the host's
    memory and not on `device`, once there is memory for them; `steps_on_host` is whether the optimizer does.
    """

    card: ModelCard
    task: Task
    model: nn.Module
    device: torch.device
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    seed: int = 0
    micro_batch_size: int = 1
    master_weights: bool = False
    stochastic_rounding: bool = False
    steps_on_host: bool = False
    last_micro_batch: bool = True
    optimizer: StepOptimizer | None = None
    world: World = field(default_factory=Alone)
    phase: Phase = no_phase
    chosen: tuple[Technique, ...] = ()
    applied: tuple[Technique, ...] = ()
    reference: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    kept_on_host: set[nn.Parameter] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def host(self) -> Host:
        """The memory of the host beside `device`."""
        return Host(self.device)

    @property
    def base(self) -> nn.Module:
        """The model under the names of its card, whatever has been wrapped around it."""
        unwrap = getattr(self.model, "get_base_model", None)
        return self.model if unwrap is None else unwrap()

    def modules_of(self, role: str) -> dict[str, nn.Module]:
        """Modules that the card gives this role, by name. `InputError` when it is unknown or matches nothing."""
        if role not in self.card.roles:
            raise InputError(
                f'"{role}" is not a role of {self.card.name} (roles: {", ".join(sorted(self.card.roles))})'
            )
        found = self.matching(self.card.roles[role])
        if not found:
            some = ", ".join(sorted(n for n, _ in self.base.named_modules() if n)[:12])
            raise InputError(
                f'role "{role}" of {self.card.name} matches no module: patterns '
                f"{', '.join(self.card.roles[role])}; the model has for example {some}"
            )
        return found

    def matching(self, globs: Sequence[str]) -> dict[str, nn.Module]:
        """Modules whose dotted name matches one of `globs`, where ``*`` stays within one component."""
        patterns = [_pattern(glob) for glob in globs]
        return {n: m for n, m in self.base.named_modules() if any(p.fullmatch(n) for p in patterns)}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training changes, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def _pattern(glob: str) -> re.Pattern[str]:
    """``*`` stands for one dotted component or part of it, ``**`` for any number of them."""
    parts = [
        ".*" if part == "**" else "[^.]*" if part == "*" else re.escape(part) for part in re.split(r"(\*\*|\*)", glob)
    ]
    return re.compile("".join(parts))


def plain_model(card: ModelCard, task: Task) -> nn.Module:
    """The card's model with the task's head, in training mode, without storage and before any technique."""
    with storage_free(), uncompiled():
        model: nn.Module = load_ref(card.build)(card, task.head)
    return model.train()


def refusals(setup: Setup, techniques: Sequence[Technique]) -> list[str]:
    """Why techniques cannot be applied together to a `plain_model`; empty where they can."""
    setup.chosen = tuple(techniques)
    return [f"{t.key}: {t.name}: {reason}" for t in techniques if (reason := t.why_not(setup)) is not None]


def build(
    card: ModelCard,
    task: Task,
    techniques: Sequence[Technique],
    device: torch.device,
    *,
    micro_batch_size: int = 1,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    seed: int = 0,
    load: Loader | None = None,
) -> Setup:
    """Build the card's model with the task's head on `device`, with the techniques applied in stage order.

    The model is built without storage, made real tensor by tensor, filled by `load` (left as it is without one: a
    prediction needs no values), and handed to the techniques. Raises `InputError` when a technique says `why_not`.

    A technique that `loads_on_host` gets the model as `load` filled it there, without storage where there is no `load`.
    """
    setup = Setup(
        card, task, plain_model(card, task), device,
        learning_rate=learning_rate, weight_decay=weight_decay, max_grad_norm=max_grad_norm,
        seed=seed, micro_batch_size=micro_batch_size,
    )  # fmt: skip
    ordered = sorted(techniques, key=lambda t: t.stage)
    if refused := refusals(setup, ordered):
        raise InputError(refused)
    with storage_free():
        for technique in (t for t in ordered if t.stage < BEFORE_LOADING):
            technique.apply(setup)
    on_host = any(t.loads_on_host for t in ordered)
    if load is not None or not on_host:
        materialise(setup.model, torch.device("cpu") if on_host else device, on_host=setup.kept_on_host)
    if load is not None:
        load(setup)
    for technique in (t for t in ordered if t.stage >= BEFORE_LOADING):
        technique.apply(setup)
    setup.reference.clear()
    setup.kept_on_host.clear()
    setup.applied = tuple(ordered)
    return setup


@contextlib.contextmanager
def storage_free() -> Iterator[None]:
    """New tensors get no storage, and no mode (fake tensors, a ledger) takes notice of what happens to them."""
    with _disable_current_modes(), torch.device("meta"):
        yield


def materialise(
    model: nn.Module,
    device: torch.device,
    *,
    keep: Container[torch.Tensor] = (),
    on_host: Container[torch.Tensor] = (),
) -> None:
    """Replace every storage-free parameter and buffer, but those in `keep`, by an empty one on `device`, keeping ties.

    Those in `on_host` come to lie in the host's memory beside it. Where `device` is storage-free itself, only `keep`
    tells what is there already from what is to come.
    """
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None or old.device.type != "meta" or old in keep:
                    continue
                if old not in made:
                    new: torch.Tensor = (
                        Host(device).empty(old.shape, old.dtype)
                        if old in on_host
                        else torch.empty(old.shape, dtype=old.dtype, device=device)
                    )
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    made[old] = new
                store[name] = made[old]  # type: ignore[assignment]


@dataclass(frozen=True)
class StepResult:
    """`loss` is the mean over the step's targets (scalar tensor, fp32), `grad_norm` the global norm before clipping."""

    loss: torch.Tensor
    grad_norm: torch.Tensor | None


def train_step(setup: Setup, batch: Sequence[Batch]) -> StepResult:
    """One optimizer update on one global batch, given as its micro-batches.

    Each micro-batch counts by its targets, so that the update equals that of the undivided batch whatever the
    division, padding and an unequal last part included.
    """
    if setup.optimizer is None:
        raise ValueError("the setup has no optimizer: build it with an optimizer technique")
    total = setup.world.total(float(sum(micro.weight for micro in batch)))
    loss_sum: torch.Tensor | None = None
    for number, micro in enumerate(batch, start=1):
        setup.last_micro_batch = number == len(batch)
        with setup.phase("forward"):
            moved = micro.to(setup.device)
            loss = setup.task.loss(setup.model, moved) / max(total, 1.0)
        with setup.phase("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        detached = loss.detach()
        loss_sum = detached if loss_sum is None else loss_sum + detached
        del loss, moved, micro
    norm: torch.Tensor | None = None
    with setup.phase("optimizer"):
        if setup.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(setup.trainable().values(), setup.max_grad_norm)
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
    if loss_sum is None:
        raise ValueError("a step needs at least one micro-batch")
    return StepResult(loss_sum, norm)


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """While entered, the same numbers come out of the same inputs, on every device: training runs so, and the planner.

    Which kernels run, and what they allocate for themselves, depends on it. New memory is left as it is, where torch
    would fill it to show what reads it too early: that takes time, and cannot be seen in what is computed.
    """
    deterministic: Any = importlib.import_module("torch.utils.deterministic")
    before = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    with _environment("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACES), uncompiled():
        # As torch.use_deterministic_algorithms(True), which imports all of torch's compiler to tell that as well.
        torch.set_deterministic_debug_mode("error")
        deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before[0])
            deterministic.fill_uninitialized_memory = before[1]


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """While entered, `torch.compile` gives back what it is given: what is compiled allocates otherwise, and a ledger or
    a budget that watches every operation takes the compiler down with it."""
    return mock.patch.object(torch, "compile", _as_it_is)


def _as_it_is(function: Any = None, **options: Any) -> Any:
    return _as_it_is if function is None else function


CUBLAS_WORKSPACES = ":4096:8"
"""Eight workspaces of 4096 KiB: one of the two settings with which cuBLAS gives the same numbers every time, and the
one that does not make it slow (cuBLAS documentation, "Results Reproducibility")."""


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """While entered, the environment has this value, unless somebody has chosen another."""
    before = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def describe(techniques: Sequence[Technique]) -> Mapping[str, str]:
    """``{"precision": "fp32", "adapter": "lora(rank=8)"}`` for reports."""
    return {t.key: t.describe() for t in techniques}
