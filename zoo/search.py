"""The search for a plan: combinations of techniques on a ladder, those that change least on its lowest rung.

A rung holds all combinations that change the same: nothing at all, what is trained, how its frozen part is stored, by
which rule it is updated. Only the lowest rung on which something fits has to be traced in full; of each rung below it
that is skipped, the combination that is the smallest by all that is known is traced, and does not fit.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zoo.errors import InputError
from zoo.memory.workers import Workers
from zoo.plans import Limits, Plan, Rejected
from zoo.resolve import Job
from zoo.step import describe
from zoo.techniques import Technique, registry
from zoo.tracer import Tracer

Combination = tuple[Technique, ...]

SLACK = 0.02
"""By how much a trace without the CPU's own kernels can be above the one that confirms it (seen with tiny models)."""

PROBES = 4
"""How many rungs are looked into at a time: work for several cores, the same number on every machine."""
CLOSE = 8
"""How many of the smallest plans are confirmed, where nothing fits, to name the smallest budget that would do."""


@dataclass
class Search:
    """All that is known of a job's combinations: plans, one for each division of the batch, or why there are none.

    `rungs` are in order of what they change. `answers` grows as combinations are traced.
    """

    job: Job
    tracer: Tracer
    limits: Limits
    workers: Workers[Combination | Plan, list[Plan] | str]
    rungs: list[list[Combination]] = field(init=False)
    answers: dict[Combination, list[Plan] | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rungs = rungs(self.job)

    def run(self, *, exhaustive: bool) -> Plan | None:
        """The plan to choose, or None where nothing fits. `exhaustive`: trace every combination before choosing."""
        lowest, *higher = self.rungs
        self._trace(lowest if not exhaustive else itertools.chain(*self.rungs))
        chosen = self._choose(lowest)
        if chosen is not None or not higher:
            return chosen
        for start in range(0, len(higher), PROBES):
            some = higher[start : start + PROBES]
            probes = [self._smallest_of(rung) for rung in some]
            self._trace(probes)
            for rung, probe in zip(some, probes, strict=True):
                if isinstance(self.answers[probe], str) or any(self._may_fit(plan) for plan in self._known(rung)):
                    self._trace(rung)
                    if (chosen := self._choose(rung)) is not None:
                        return chosen
        return None

    def smallest(self) -> Plan:
        """The smallest plan of all that were traced. Raises `InputError` where none can be built."""
        plans = self.plans()
        if not plans:
            raise InputError([f"{' '.join(describe(t).values())}: {reason}" for t, reason in self.answers.items()])
        rung = next(r for r in self.rungs if min(plans, key=_needs).techniques in r)
        self._trace(rung)
        plans = sorted(self.plans(), key=_needs)
        close = [plan for plan in plans if plan.needed_bytes <= plans[0].needed_bytes * (1 + SLACK)][:CLOSE]
        return min((self._confirm(plan) for plan in close), key=_needs)

    def plans(self) -> list[Plan]:
        """Everything that was traced and can be built."""
        return self._known(self.answers)

    def _known(self, combinations: Iterable[Combination]) -> list[Plan]:
        answers = [self.answers.get(combination, "") for combination in combinations]
        return [plan for answer in answers if not isinstance(answer, str) for plan in answer]

    def rejected(self, chosen: Plan, why_not: str | None) -> list[Rejected]:
        """Every combination but the chosen one, with its reason; those that were not traced are one entry for a rung.

        `why_not` is the reason of those that fit where `chosen` does not, None where it does.
        """
        entries = []
        for combination, answer in self.answers.items():
            if combination == chosen.techniques:
                continue
            if isinstance(answer, str):
                entries.append(Rejected(combination, answer))
                continue
            plan = best(answer, self.limits)
            reason = self.limits.why_not(plan) or why_not or why_not_chosen(plan, chosen)
            entries.append(Rejected(combination, reason, plan))
        for rung in self.rungs:
            rest = [combination for combination in rung if combination not in self.answers]
            if rest:
                others = f" (and {len(rest) - 1} that change the same)" if len(rest) > 1 else ""
                reason = "not tried: the smallest of its kind does not fit"
                if departure(rung[0], self.job) > departure(chosen.techniques, self.job):
                    reason = "not tried: changes more than is needed"
                entries.append(Rejected(rest[0], reason + others))
        return entries

    def _trace(self, combinations: Iterable[Combination]) -> None:
        new = [combination for combination in combinations if combination not in self.answers]
        self.answers.update(zip(new, self.workers.map(new), strict=True))

    def _choose(self, rung: Sequence[Combination]) -> Plan | None:
        """The fastest plan of a rung that fits, confirmed."""
        for plan in sorted((plan for plan in self._known(rung) if self._may_fit(plan)), key=preference):
            confirmed = self._confirm(plan)
            if self.limits.why_not(confirmed) is None:
                return confirmed
        return None

    def _may_fit(self, plan: Plan) -> bool:
        """Whether to confirm a plan: what is not confirmed can be too high, too."""
        return (self.limits if plan.confirmed else self.limits.more_by(SLACK)).why_not(plan) is None

    def _confirm(self, plan: Plan) -> Plan:
        """The plan, confirmed, in place of what was known of it."""
        (answer,) = self.workers.map([plan])
        assert not isinstance(answer, str)
        (confirmed,) = answer
        before = self.answers[plan.techniques]
        assert not isinstance(before, str)
        self.answers[plan.techniques] = [
            confirmed if p.micro_batch_size == plan.micro_batch_size else p for p in before
        ]
        return confirmed

    def _smallest_of(self, rung: Sequence[Combination]) -> Combination:
        """The combination of a rung with most in common with the smallest plan that is known."""
        plans = self.plans()
        if not plans:
            return rung[-1]
        known = set(min(plans, key=_needs).techniques)
        return max(rung, key=lambda combination: len(known & set(combination)))


def rungs(job: Job) -> list[list[Combination]]:
    """Every combination that the recipe leaves open, by what it changes, least first."""
    found: dict[Combination, list[Combination]] = defaultdict(list)
    for combination in itertools.product(*job.choices.values()):
        found[tuple(t for t in combination if t.exactness == "changes-model")].append(combination)
    return sorted(found.values(), key=lambda rung: departure(rung[0], job))


def departure(combination: Combination, job: Job) -> tuple[int, int]:
    """How far a combination is from the model as published, trained in full: the sum over what the planner may choose,
    and for those that are equally far, the order in which the options are listed."""
    free = [t for t in combination if len(job.choices[t.key]) > 1 and t.exactness == "changes-model"]
    return sum(t.departure for t in free), sum(registry()[t.key].index(type(t)) for t in free)


def preference(plan: Plan) -> tuple[float, int, int]:
    """The fastest; of equally fast ones that with fewer divisions, and with the options that are listed first."""
    listed = sum(registry()[t.key].index(type(t)) for t in plan.techniques)
    return plan.estimate.seconds, -plan.micro_batch_size, listed


def best(plans: Sequence[Plan], limits: Limits) -> Plan:
    """The fastest division of the batch that fits, or the smallest of all."""
    fitting = [plan for plan in plans if limits.why_not(plan) is None]
    return min(fitting, key=preference) if fitting else min(plans, key=_needs)


def why_not_chosen(plan: Plan, chosen: Plan) -> str:
    """Why a plan that fits was not taken."""
    changed = [t for t in plan.techniques if t.exactness == "changes-model" and t not in chosen.techniques]
    if changed:
        return "fits, but changes more than is needed"
    return f"fits, but slower: {plan.estimate.seconds:.3g} s a step against {chosen.estimate.seconds:.3g} s"


def _needs(plan: Plan) -> int:
    return plan.needed_bytes
