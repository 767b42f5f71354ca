"""From a budget to a plan: try what the recipe leaves open, keep what fits, prefer what changes least and runs fastest.

The planner has no formula for any technique. It runs the very build and step that training runs, without storage,
and reads peaks and times off the ledger.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from zoo.card import Source
from zoo.data.prepare import Data
from zoo.errors import InputError
from zoo.memory.devices import detect, find
from zoo.memory.workers import spread
from zoo.plans import Decision, Limits, Plan, Rejected, Workload
from zoo.recipe import Budget
from zoo.resolve import Job
from zoo.step import describe
from zoo.techniques import Technique, registry
from zoo.tracer import Tracer
from zoo.units import format_bytes


def limits_of(budget: Budget) -> Limits:
    """What a recipe's budget allows. Without one, the machine's own device and all of its free memory.

    Raises `InputError` for more than one device, and for a GPU that is not known.
    """
    if budget.count > 1:
        raise InputError(f"budget.count: got {budget.count}; training is on one device so far, set count: 1")
    device = detect() if budget.gpu in (None, "auto") else find(str(budget.gpu))
    if budget.device is not None:
        return Limits(device, budget.device, budget.host, f"{format_bytes(budget.device)} as the budget says")
    origin = "the budget's gpu" if budget.gpu else "no budget given: this machine"
    return Limits(device, device.memory_bytes, budget.host, f"{device.title}, {origin}")


def what_is_free(limits: Limits, device: torch.device) -> Limits:
    """The limits, lowered to what is free on the machine that is about to train, where that is less."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + (limits.device.context_bytes or 0)  # the context exists by now
    elif limits.device.name == "cpu":
        free = detect().memory_bytes
    else:
        return limits
    if free >= limits.device_bytes:
        return limits
    return replace(limits, device_bytes=free, origin=f"{limits.origin}, of which {format_bytes(free)} are free now")


def survey(job: Job, fetch: Callable[[Source], Path], *, local: bool) -> tuple[Workload, Data | None]:
    """What the data demands. Without the data at hand (`local` false), the longest input that is allowed."""
    train = job.recipe.train
    if not local:
        tokens = min(job.recipe.data.max_length or job.card.max_length, job.card.max_length)
        origin = f"the data is not fetched yet: planned for inputs of {tokens} tokens, the longest allowed"
        return Workload(tokens, train.global_batch_size, origin), None
    data = job.task.prepare(job, fetch)
    tokens = max(job.task.length(example) for example in data.train)
    return Workload(tokens, len(data.train), f"the longest of {len(data.train)} training inputs"), data


def decide(job: Job, workload: Workload, limits: Limits) -> Decision:
    """Try every combination that the recipe leaves open. Raises `InputError` when none can be built at all."""
    tracer = Tracer(job, workload, limits)
    combinations = list(itertools.product(*job.choices.values()))
    tracer.warm_up()
    outcomes = spread(lambda i: _tried(tracer, combinations[i], job, limits), len(combinations))
    tried = dict(zip(combinations, outcomes, strict=True))
    impossible = {techniques: reason for techniques, reason in tried.items() if isinstance(reason, str)}
    possible = {techniques: plans for techniques, plans in tried.items() if not isinstance(plans, str)}
    considered = tuple(plan for plans in possible.values() for plan in plans)
    if not considered:
        raise InputError([f"{' '.join(describe(t).values())}: {reason}" for t, reason in impossible.items()])
    rejected = [Rejected(techniques, reason) for techniques, reason in impossible.items()]
    candidates = sorted((p for p in considered if limits.why_not(p) is None), key=_preference)
    while candidates:
        chosen = tracer.confirm(candidates.pop(0))
        if limits.why_not(chosen) is None:
            others = [_best(plans, limits) for t, plans in possible.items() if t != chosen.techniques]
            rejected += [Rejected(p.techniques, limits.why_not(p) or _why_not_chosen(p, chosen), p) for p in others]
            reasons = _reasons(chosen, rejected, job, workload)
            return Decision(True, limits, workload, chosen, tuple(rejected), reasons, considered)
        possible[chosen.techniques] = [
            chosen if p.micro_batch_size == chosen.micro_batch_size else p for p in possible[chosen.techniques]
        ]
    smallest = tracer.confirm(min(considered, key=lambda p: p.needed_bytes))
    others = [_best(plans, limits) for t, plans in possible.items() if t != smallest.techniques]
    rejected += [Rejected(p.techniques, limits.why_not(p) or "", p) for p in others]
    reasons = (
        f"nothing fits {format_bytes(limits.device_bytes)} ({limits.origin}); "
        f"the smallest budget that would do is {smallest.needed_bytes} bytes ({format_bytes(smallest.needed_bytes)})",
    )
    return Decision(False, limits, workload, smallest, tuple(rejected), reasons, considered)


def _best(plans: Sequence[Plan], limits: Limits) -> Plan:
    """The fastest division of the batch that fits, or the smallest of all."""
    fitting = [p for p in plans if limits.why_not(p) is None]
    return min(fitting, key=_preference) if fitting else min(plans, key=lambda p: p.needed_bytes)


def _tried(tracer: Tracer, techniques: tuple[Technique, ...], job: Job, limits: Limits) -> list[Plan] | str:
    """The combination with every division of the batch, or why it cannot be."""
    lacking = {f for t in techniques if len(job.choices[t.key]) > 1 for f in t.arithmetic - limits.device.arithmetic}
    if lacking:
        return f"{limits.device.title} has no {', '.join(sorted(lacking))} arithmetic"
    try:
        return tracer.plans(techniques)
    except InputError as error:
        return str(error)


def _preference(plan: Plan) -> tuple[int, float, int]:
    """Least change to the model first (in the order in which a technique lists its options), then throughput."""
    changes = [t for t in plan.techniques if t.exactness == "changes-model"]
    rank = max((registry()[t.key].index(type(t)) for t in changes), default=0)
    return rank, plan.estimate.seconds, -plan.micro_batch_size


def _why_not_chosen(plan: Plan, chosen: Plan) -> str:
    if plan.exactness == "changes-model" and _preference(plan)[0] > _preference(chosen)[0]:
        return "fits, but changes more of what is trained than is needed"
    return f"fits, but slower: {plan.estimate.seconds:.3g} s a step against {chosen.estimate.seconds:.3g} s"


def _reasons(chosen: Plan, rejected: Sequence[Rejected], job: Job, workload: Workload) -> tuple[str, ...]:
    """One line for every decision that was the planner's."""
    lines = [f"length: {workload.tokens} tokens, {workload.origin}"]
    for technique in chosen.techniques:
        if len(job.choices[technique.key]) == 1:
            continue
        others = [
            f"{_named(r.techniques, technique.key)} {r.reason.removeprefix('fits, but ')}"
            for r in rejected
            if r.plan is not None and _beside(r.techniques, technique.key) == _beside(chosen.techniques, technique.key)
        ]
        lines.append(
            f"{technique.key}: {technique.describe()} ({'; '.join(others) or 'the others need other changes as well'})"
        )
    if chosen.accumulation_steps > 1:
        lines.append(
            f"micro-batch: {chosen.micro_batch_size} rows, accumulated {chosen.accumulation_steps} times; "
            "the fastest division that fits"
        )
    return tuple(lines)


def _beside(techniques: Sequence[Technique], key: str) -> list[Technique]:
    return [t for t in techniques if t.key != key]


def _named(techniques: Sequence[Technique], key: str) -> str:
    return next(t.describe() for t in techniques if t.key == key)
