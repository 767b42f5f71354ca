"""From a budget to a plan: try what the recipe leaves open, keep what fits, prefer what changes least and runs fastest.

The planner has no formula for any technique. It runs the very build and step that training runs, without storage,
and reads peaks and times off the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from zoo.card import Source
from zoo.combinations import beside, option
from zoo.data.prepare import Data
from zoo.memory.devices import detect, find
from zoo.memory.workers import Workers
from zoo.plans import Decision, Limits, Plan, Rejected, Workload
from zoo.recipe import Budget
from zoo.resolve import Job, lacks_data
from zoo.search import Search
from zoo.tracer import Tracer
from zoo.units import format_bytes
from zoo.weights.lean import before_traces


def limits_of(budget: Budget) -> Limits:
    """What a recipe's budget allows. Without one, the machine's own device and all of its free memory.

    Beside a GPU of this machine, the host is this machine too. Of one that is named, the host is not known.
    Raises `InputError` for a GPU that is not known.
    """
    own = budget.gpu in (None, "auto")
    device = detect() if own else find(str(budget.gpu))
    host = find("cpu").memory_bytes if own and budget.host is None and device.name != "cpu" else budget.host
    if budget.device is not None:
        return Limits(device, budget.device, host, f"{format_bytes(budget.device)} as the budget says")
    origin = "the budget's gpu" if budget.gpu else "no budget given: this machine"
    return Limits(device, device.memory_bytes, host, f"{device.title}, {origin}")


def what_is_free(limits: Limits, device: torch.device) -> Limits:
    """The limits, lowered to what is free on the machine that is about to train, where that is less."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + (limits.device.context_bytes or 0)  # the context exists by now
        beside = find("cpu").memory_bytes
        limits = replace(limits, host_bytes=beside if limits.host_bytes is None else min(limits.host_bytes, beside))
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
        lacking = f"{job.recipe.data.path} does not exist" if lacks_data(job.recipe) else "the data is not fetched yet"
        if (assume := getattr(job.task, "assume", None)) is not None:
            return Workload(assume(job), train.global_batch_size, lacking), None
        tokens = min(job.recipe.data.max_length or job.card.max_length, job.card.max_length)
        origin = f"{lacking}: planned for inputs of {tokens} tokens, the longest allowed"
        return Workload(tokens, train.global_batch_size, origin), None
    data = job.task.prepare(job, fetch)
    lengths = sorted((job.task.length(example) for example in data.train), reverse=True)
    origin = f"the longest of {len(data.train)} training inputs"
    return Workload(lengths[0], len(data.train), origin, tuple(lengths[: train.global_batch_size])), data


def decide(job: Job, workload: Workload, limits: Limits, *, exhaustive: bool = False, divided: bool = True) -> Decision:
    """The fastest plan that fits among those that change least of what the recipe leaves open.

    `exhaustive`: try what does not matter to the choice, too. `divided` false: the global batch is one micro-batch.
    Raises `InputError` when nothing can be built at all.
    """
    tracer = Tracer(job, workload, limits, divided=divided)
    before_traces()
    tracer.warm_up()
    with Workers(tracer.answer) as workers:
        search = Search(job, tracer, limits, workers)
        chosen = search.run(exhaustive=exhaustive)
        fits = limits.why_not(chosen) is None
        rejected = search.rejected(chosen, None if fits else "")
        if fits:
            reasons = _reasons(chosen, rejected, job, workload, limits)
        elif limits.host_bytes is not None and chosen.needed_bytes <= limits.device_bytes:
            reasons = (f"nothing fits the host; the smallest plan {limits.why_not(chosen)}; raise budget.host",)
        else:
            needed = chosen.needed_bytes
            reasons = (
                f"nothing fits {format_bytes(limits.device_bytes)} ({limits.origin}); "
                f"the smallest budget that would do is {needed} bytes ({format_bytes(needed)})",
            )
        return Decision(fits, limits, workload, chosen, tuple(rejected), reasons, tuple(search.plans()))


def _reasons(
    chosen: Plan, rejected: Sequence[Rejected], job: Job, workload: Workload, limits: Limits
) -> tuple[str, ...]:
    """One line for every decision that was the planner's."""
    lines = [f"length: {workload.tokens} {getattr(job.task, 'length_unit', 'tokens')}, {workload.origin}"]
    for technique in chosen.techniques:
        if len(job.choices[technique.key]) == 1:
            if lacking := technique.arithmetic - limits.device.arithmetic:
                what = f"{limits.device.title} has no {', '.join(sorted(lacking))} arithmetic"
                lines.append(f"{technique.key}: {technique.describe()}, as the recipe says ({what}, and takes longer)")
            continue
        others = [
            f"{option(r.techniques, technique.key).describe()} {r.reason.removeprefix('fits, but ')}"
            for r in rejected
            if (r.plan is not None or r.reason.startswith("does not fit"))
            and beside(r.techniques, technique.key) == beside(chosen.techniques, technique.key)
        ]
        why = "; ".join(others) or "the others change more, or need other changes as well"
        lines.append(f"{technique.key}: {technique.describe()} ({why})")
    if chosen.accumulation_steps > 1:
        lines.append(
            f"micro-batch: {chosen.micro_batch_size} rows, accumulated {chosen.accumulation_steps} times; "
            "the fastest division that fits"
        )
    return tuple(lines)
