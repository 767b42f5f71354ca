"""A plan and what it is measured against: the facts that the planner deals in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.card import Exactness
from zoo.memory.devices import Device
from zoo.memory.predict import Footprint
from zoo.memory.scaling import Estimate
from zoo.step import PHASES, describe
from zoo.techniques import Technique, registry
from zoo.units import MIB, format_bytes

SLACK = 0.05
"""By how much the search can be above the trace that confirms a plan, where not even the least is known."""
OTHERWISE, OTHERWISE_ON_CPU, FEW_BYTES = 0.01, 0.001, MIB
"""The same for inputs of one length, the larger of a share and an amount. On GPUs 0.9 % were seen (Aurora). The search
has not the CPU's own kernels, which was 0.07 %, and of models with less than a million parameters 3 % of 4 MB."""

_RANK: Mapping[Exactness, int] = {"bitwise": 0, "rounding": 1, "changes-model": 2}


@dataclass(frozen=True)
class Workload:
    """What the data demands of a step: `tokens` of the longest training input, `rows` of training data, and whence.

    `lengths` are the tokens of as many of the longest inputs as are in one step, in descending order; where they are
    not known, every input may be the longest.
    """

    tokens: int
    rows: int
    origin: str
    lengths: tuple[int, ...] = ()

    def longest(self, first: int) -> int:
        """Tokens that the longest input of a micro-batch can have which begins with input number `first` of a step.

        The inputs of a step come in order of length.
        """
        return self.lengths[first] if first < len(self.lengths) else self.tokens


@dataclass(frozen=True)
class Limits:
    """A budget in bytes, on a device with known rates."""

    device: Device
    device_bytes: int
    host_bytes: int | None
    origin: str

    def why_not(self, plan: Plan) -> str | None:
        """What of a plan the budget lacks, or None where it fits."""
        least = "at least " if plan.ended else ""
        if plan.needed_bytes > self.device_bytes:
            return f"does not fit: {least}{format_bytes(plan.needed_bytes)} of {format_bytes(self.device_bytes)}"
        if self.host_bytes is not None and plan.host_bytes > self.host_bytes:
            return f"does not fit the host: {least}{format_bytes(plan.host_bytes)} of {format_bytes(self.host_bytes)}"
        return None

    def may_fit(self, plan: Plan) -> bool:
        """Whether to look closer at a plan: what is not confirmed can be too high, too."""
        return self.why_not(with_least(plan, self)) is None


@dataclass(frozen=True)
class Plan:
    """One way to run a recipe, with what it would hold and take.

    Before it is `confirmed`, what an accelerator reserves is not known, and `footprint` is the least it can be; every
    micro-batch is taken to be as long as the first, and `least` is the peak if the others had no length at all. Where
    its trace has `ended` after the first pass of that name, all amounts are what it holds and takes at least.
    """

    techniques: tuple[Technique, ...]
    micro_batch_size: int
    accumulation_steps: int
    estimate: Estimate
    footprint: Footprint
    host_bytes: int
    tokens: int
    confirmed: bool = False
    least: int = 0
    ended: str = ""

    @property
    def peak_bytes(self) -> int:
        """Bytes in tensors on the device."""
        return self.estimate.peak

    @property
    def needed_bytes(self) -> int:
        """What a budget must have: the upper end of the interval that goes with the prediction."""
        return self.footprint.interval[1]

    @property
    def exactness(self) -> Exactness:
        """That of its least exact technique; dividing the batch is exact up to rounding."""
        kinds = [t.exactness for t in self.techniques] + (["rounding"] if self.accumulation_steps > 1 else [])
        return max(kinds, key=lambda kind: _RANK[kind])

    def to_json(self) -> dict[str, Any]:
        return {
            "techniques": dict(describe(self.techniques)),
            "micro_batch_size": self.micro_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "exactness": self.exactness,
            "peak_bytes": {"allocated": self.peak_bytes, **(self._confirmed_bytes() if self.confirmed else {})},
            "needed_bytes": self.needed_bytes,
            "peak_by_phase": {phase: self.estimate.peak_by_phase.get(phase, 0) for phase in PHASES},
            "peak_by_category": self.estimate.peak_by_category,
            "host_bytes": self.host_bytes,
            "host_by_category": self.estimate.host_by_category,
            "step_seconds": self.estimate.seconds,
            "tokens_per_row": self.tokens,
        }

    def _confirmed_bytes(self) -> dict[str, Any]:
        held = self.footprint
        return {"reserved": held.reserved, "process": held.process, "interval": list(held.interval)}


def with_least(plan: Plan, limits: Limits) -> Plan:
    """The plan with the least that it can hold when it is confirmed.

    The first micro-batch is the longest, and in the optimizer's phase there is nothing that could be shorter.
    """
    if plan.confirmed:
        return plan
    sure = max(plan.least, plan.estimate.peak_by_phase.get("optimizer", 0), round(plan.peak_bytes / (1 + SLACK)))
    on_cpu = limits.device.name == "cpu"
    held = max(sure - max(round(sure * (OTHERWISE_ON_CPU if on_cpu else OTHERWISE)), FEW_BYTES), 0)
    host = held if on_cpu else round(plan.host_bytes / (1 + SLACK))
    return replace(plan, footprint=Footprint.of(limits.device, held), host_bytes=host)


def preference(plan: Plan) -> tuple[float, int, int]:
    """The fastest; of equally fast ones that with fewer divisions, and with the options that are listed first."""
    listed = sum(registry()[t.key].index(type(t)) for t in plan.techniques)
    return plan.estimate.seconds, -plan.micro_batch_size, listed


def best(plans: Sequence[Plan], limits: Limits) -> Plan:
    """The fastest division of the batch that fits, or the smallest of all."""
    fitting = [plan for plan in plans if limits.why_not(plan) is None]
    return min(fitting, key=preference) if fitting else min(plans, key=lambda plan: plan.needed_bytes)


def why_not_chosen(plan: Plan, chosen: Plan) -> str:
    """Why a plan that fits was not taken."""
    changed = [t for t in plan.techniques if t.exactness == "changes-model" and t not in chosen.techniques]
    if changed:
        return "fits, but changes more than is needed"
    mine, best = (f"{p.estimate.seconds:.3g} s a step" for p in (plan, chosen))
    return f"fits, but slower: {mine} against {best.removesuffix(' a step')}" if mine != best else "fits, but no faster"


@dataclass(frozen=True)
class Rejected:
    """A combination that was not chosen, at its best micro-batch, and why. `plan` is None where it cannot be built."""

    techniques: tuple[Technique, ...]
    reason: str
    plan: Plan | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "techniques": dict(describe(self.techniques)),
            "reason": self.reason,
            "peak_bytes": None if self.plan is None else self.plan.peak_bytes,
            "micro_batch_size": None if self.plan is None else self.plan.micro_batch_size,
            "step_seconds": None if self.plan is None else self.plan.estimate.seconds,
            "at_least": self.plan is not None and self.plan.ended != "",
        }


@dataclass(frozen=True)
class Decision:
    """The planner's answer. Where nothing fits, `chosen` is the smallest plan there is."""

    fits: bool
    limits: Limits
    workload: Workload
    chosen: Plan
    rejected: tuple[Rejected, ...] = ()
    reasons: tuple[str, ...] = ()
    considered: tuple[Plan, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "budget_bytes": self.limits.device_bytes,
            "device": self.limits.device.name,
            "chosen": self.chosen.to_json(),
            "reasons": list(self.reasons),
            "rejected": [r.to_json() for r in self.rejected],
        }
