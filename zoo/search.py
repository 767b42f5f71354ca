"""The search for a plan: combinations of techniques on a ladder, those that change least on its lowest rung.

A rung holds all combinations that change the same: nothing at all, what is trained, how its frozen part is stored, by
which rule it is updated. Only the lowest rung on which something fits has to be traced in full; of each rung below it
that is skipped, the combination that is the smallest by all that is known is traced, and does not fit. In a rung, an
option that is outdone by another is left out: beside all else the same it was slower and took more, for every division
of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zoo.combinations import Combination, Corners, beside, departure, option, rungs, standing_part
from zoo.errors import InputError
from zoo.memory.ledger import Record
from zoo.memory.scaling import Family
from zoo.memory.workers import Workers
from zoo.plans import Limits, Plan, Rejected, best, preference, why_not_chosen, with_least
from zoo.resolve import Job
from zoo.techniques import Technique
from zoo.tracer import Answer, IfRoom, Question, Standing, Tracer, Whole
from zoo.units import format_bytes

LARGE = 16
"""Bytes a parameter takes in full training in fp32. Where the budget has less, some combinations have no room for
weights and optimizer states, and a look at those comes before a trace."""
PROBES = 4
"""How many rungs are looked into at a time: work for several cores, the same number on every machine."""
CLOSE = 8
"""How many of the smallest combinations are looked at, where nothing fits, to name the smallest budget that would
do."""


@dataclass
class Search:
    """All that is known of a job's combinations: plans, one for each division of the batch, or why there are none.

    `rungs` are in order of what they change. `answers` and `families` grow as combinations are traced, `looks`
    as their weights and states are counted; `standing` says which of them left no room for anything else, `outdone`
    by which other option one is outdone. `closest` is the rung that is looked into now. With `whole`, no trace ends
    before its end; `if_room`, it ends where weights and states leave no room, which a look at one model would take as
    long to find.
    """

    job: Job
    tracer: Tracer
    limits: Limits
    workers: Workers[Question, Answer]
    rungs: list[list[Combination]] = field(init=False)
    answers: dict[Combination, list[Plan] | str] = field(default_factory=dict)
    standing: dict[Combination, int] = field(default_factory=dict)
    looks: dict[Combination, Answer] = field(default_factory=dict)
    outdone: dict[Technique, Technique] = field(default_factory=dict)
    families: dict[Combination, Family] = field(default_factory=dict)
    corners: Corners = field(default_factory=Corners)
    closest: Sequence[Combination] = ()
    whole: bool = False
    if_room: bool = False

    def __post_init__(self) -> None:
        self.rungs = rungs(self.job)

    def run(self, *, exhaustive: bool) -> Plan:
        """The plan to choose, or where nothing fits the smallest. `exhaustive`: trace every combination first.

        Raises `InputError` where none can be built.
        """
        self.whole = exhaustive
        lowest, *higher = self.rungs
        tight = not exhaustive and LARGE * self.job.card.parameters > self.limits.device_bytes
        self.if_room = tight and self.tracer.depth is None
        large = tight and not self.if_room
        if exhaustive:
            self._trace(itertools.chain(*self.rungs))
        else:
            self._trace_rung(lowest, look_first=large, next_=higher[:1])
        chosen = self._choose(lowest, next_=higher[:1])
        if large and chosen is None:
            self._look(itertools.chain(*higher[:PROBES]))
        while chosen is None and higher:
            # Where nothing is known yet there is nothing to tell the smallest of a rung by.
            count = PROBES if self._seen() else 1
            some, higher = higher[:count], higher[count:]
            probes = [self._smallest_of(rung) for rung in some] if self._seen() else [list(some[0])]
            if large:
                self._look(itertools.chain(*probes))
            for number, rung in enumerate(some):
                if self._seen():
                    ahead = itertools.chain(*probes[number + 1 :], self._not_outdone(rung))
                    self._trace(probes[number], look_first=large, ahead=ahead)
                else:
                    self._trace_rung(rung, look_first=large)
                known = [self.answers[c] for c in rung if c in self.answers]
                if all(isinstance(answer, str) for answer in known) or any(map(self.limits.may_fit, self._known(rung))):
                    self._trace_rung(rung, look_first=large)
                    if (chosen := self._choose(rung)) is not None:
                        break
        return chosen or self._smallest()

    def _smallest(self) -> Plan:
        """The smallest plan of all that are known, confirmed. Raises `InputError` where none can be built.

        It can fit: where the probe of its rung was not the smallest there.
        """
        self.if_room = False
        if self.standing:
            hopeless = next(rung for rung in self.rungs if min(self.standing, key=self.standing.__getitem__) in rung)
            for combination in hopeless:
                if self.standing.pop(combination, None) is not None:
                    del self.answers[combination]
            if self.plans():
                self._trace(self._smallest_of(hopeless))
            else:
                self._trace_rung(hopeless)
        if not self._seen():
            begun = [reason for c, reason in self.answers.items() if not self.tracer.refused(c)]
            raise InputError(_refusals([str(reason).splitlines() for reason in begun or self.answers.values()]))
        self._finish()
        rung = next(r for r in self.rungs if min(self.plans(), key=_needs).techniques in r)
        self._trace_rung(rung)
        self._finish()
        smallest = min(self._confirm_all(self._close(self._smallest_ones()[0])), key=_needs)
        while True:
            for other in self.rungs:
                if any(self._at_least(plan) < smallest.needed_bytes for plan in self._known(other)):
                    self._trace_rung(other)
            self._finish(smallest.needed_bytes)
            unknown = [plan for plan in self._close(smallest) if not plan.confirmed]
            if not unknown:
                return self._choose(rung) or smallest
            smallest = min([smallest, *self._confirm_all(unknown)], key=_needs)

    def _close(self, smallest: Plan) -> list[Plan]:
        """The first few of those that can need as little as `smallest`, which is among them."""
        return [plan for plan in self._smallest_ones() if self._at_least(plan) <= smallest.needed_bytes][:CLOSE]

    def _smallest_ones(self) -> list[Plan]:
        """The smallest division of each combination that was traced to the end, by the least that it can be.

        Of one combination the divisions are told apart rightly before they are confirmed.
        """
        whole = [answer for answer in self._answers() if not answer[0].ended]
        return sorted((min(answer, key=_needs) for answer in whole), key=self._at_least)

    def _finish(self, bound: int | None = None) -> None:
        """Trace to the end what can need less than `bound`, or than all that was traced to the end."""
        while True:
            whole = self.plans()
            below = bound if bound is not None or not whole else min(map(_needs, whole))
            ended = [min(answer, key=_needs) for answer in self._answers() if answer[0].ended]
            smaller = [p for p in sorted(ended, key=self._at_least) if below is None or self._at_least(p) <= below]
            if not smaller:
                return
            self._ask([plan.techniques for plan in smaller[: 1 if below is None else CLOSE]], whole=True)

    def _at_least(self, plan: Plan) -> int:
        """What a plan needs at least when it is confirmed."""
        return with_least(plan, self.limits).needed_bytes

    def plans(self) -> list[Plan]:
        """Everything that was traced to the end and can be built."""
        return [plan for plan in self._seen() if not plan.ended]

    def _seen(self) -> list[Plan]:
        """Everything that was traced and can be built."""
        return [plan for answer in self._answers() for plan in answer]

    def _known(self, combinations: Iterable[Combination]) -> list[Plan]:
        answers = [self.answers.get(combination, "") for combination in combinations]
        return [plan for answer in answers if not isinstance(answer, str) for plan in answer]

    def _answers(self) -> list[list[Plan]]:
        """The plans of every combination that was traced and can be built."""
        return [answer for answer in self.answers.values() if not isinstance(answer, str)]

    def rejected(self, chosen: Plan, why_not: str | None) -> list[Rejected]:
        """Every combination but the chosen one, with its reason.

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
            shown = with_least(plan, self.limits) if plan.ended else plan
            reason = self.limits.why_not(shown) or why_not or why_not_chosen(plan, chosen)
            entries.append(Rejected(combination, reason, plan))
        for combination in (c for rung in self.rungs for c in rung if c not in self.answers):
            needless = departure(combination, self.job) > departure(chosen.techniques, self.job)
            slow = next((t for t in combination if t in self.outdone), None)
            why = "changes more than is needed" if needless else "the smallest that changes the same does not fit"
            if slow is not None and not needless:
                other = self.outdone[slow].describe()
                why = f"{slow.key} {slow.describe()} was slower than {other} and took more, beside all else the same"
            entries.append(Rejected(combination, f"not tried: {why}"))
        return entries

    def _trace_rung(
        self, rung: Sequence[Combination], *, look_first: bool = False, next_: Sequence[Sequence[Combination]] = ()
    ) -> None:
        """Learn the plans of a rung but those with an option that is outdone.

        Options of one key are compared first, then those of each other key, and then the rest is traced. `next_`:
        rungs to look into if nothing fits here.
        """
        self.closest = rung
        left = self._not_outdone(rung)
        keys = [key for key in self.job.choices if len({option(combination, key) for combination in left}) > 1]
        for some in (keys[:1], keys[1:]):
            base = left[0]
            flips = {key: [c for c in left if beside(c, key) == beside(base, key)] for key in some}
            first = dict.fromkeys(itertools.chain(*flips.values()))
            ahead = [c for c in left if c not in first] if some == keys[1:] else ()
            self._trace(first, look_first=look_first, ahead=ahead)
            for key, combinations in flips.items():
                self._compare(key, combinations)
            left = self._not_outdone(left)
        self._trace(left, look_first=look_first, ahead=self._probes(next_))
        # What has outdone an option elsewhere may be refused here.
        refused = [c for c in rung if c not in left and isinstance(self.answers[self._instead(c)], str)]
        self._trace(refused, look_first=look_first)

    def _instead(self, combination: Combination) -> Combination:
        """The combination with what its options are outdone by."""
        while any(t in self.outdone for t in combination):
            combination = tuple(self.outdone.get(t, t) for t in combination)
        return combination

    def _not_outdone(self, rung: Sequence[Combination]) -> list[Combination]:
        return [combination for combination in rung if not any(t in self.outdone for t in combination)]

    def _compare(self, key: str, combinations: Sequence[Combination]) -> None:
        """Find options that are outdone, of combinations that are the same beside `key`."""
        for combination, other in itertools.permutations(combinations, 2):
            mine, others = self._known([combination]), self._known([other])
            worse = [
                a.estimate.seconds > b.estimate.seconds and a.needed_bytes > b.needed_bytes
                for a, b in zip(mine, others, strict=False)
                if b.ended in ("", a.ended)
            ]
            if worse and all(worse) and option(other, key) not in self.outdone:
                self.outdone[option(combination, key)] = option(other, key)

    def _trace(
        self, combinations: Iterable[Combination], *, look_first: bool = False, ahead: Iterable[Combination] = ()
    ) -> None:
        """Learn the plans of combinations. `look_first`: leave out those whose weights and states alone do not fit.

        Those of `ahead` are likely to be asked for next.
        """
        new = [combination for combination in combinations if combination not in self.answers]
        if look_first:
            self._look(new)
        if look_first or self.if_room:
            new = [combination for combination in new if not self._has_no_room(combination)]
        apart, together = self.corners.divide(new)
        self._ask(apart, self._worth_tracing(ahead))
        self._ask([combination for combination in together if not self._splice(combination)])

    def _has_no_room(self, combination: Combination) -> bool:
        """Whether a combination is known to have none beside weights and states, which then is its answer."""
        if (bytes_ := self._too_much_standing(combination)) is None:
            return False
        self.standing[combination] = bytes_
        self.answers[combination] = (
            f"does not fit: weights and optimizer states alone take {format_bytes(bytes_)} "
            f"of {format_bytes(self.limits.device_bytes)}"
        )
        return True

    def _too_much_standing(self, combination: Combination) -> int | None:
        """Bytes of weights and states, where those are known and leave no room."""
        known = self.looks.get(standing_part(combination))
        return known if isinstance(known, int) and known > self.limits.device_bytes else None

    def _worth_tracing(self, combinations: Iterable[Combination]) -> list[Combination]:
        """Those of which nothing is known that would spare a trace."""
        new = [c for c in combinations if c not in self.answers and self._too_much_standing(c) is None]
        return [combination for combination in new if self.corners.of(combination) is None]

    def _ask(
        self, combinations: Sequence[Combination], ahead: Sequence[Combination] = (), *, whole: bool = False
    ) -> None:
        """Trace combinations. Processes with nothing to do begin to confirm what may be chosen, and with `ahead`."""
        if not combinations:
            return
        questions = [self._question(combination, whole) for combination in combinations]
        likely = [plan for plan in self._candidates(self.closest)[:1] if not plan.confirmed]
        next_ = [*(q for p in likely for q in self.tracer.to_confirm(p)), *map(self._question, ahead)]
        answers = self.workers.map(questions, next_)
        for combination, answer in zip(combinations, answers, strict=True):
            assert not isinstance(answer, Record)
            if isinstance(answer, int):
                self.looks[standing_part(combination)] = answer
                self._has_no_room(combination)
                continue
            if isinstance(answer, str):
                self.answers[combination] = answer
                continue
            self.answers[combination] = answer.plans
            if answer.family is not None:
                self.families[combination] = answer.family

    def _question(self, combination: Combination, whole: bool = False) -> Question:
        if whole or self.whole:
            return Whole(combination)
        return IfRoom(combination) if self.if_room else combination

    def _splice(self, combination: Combination) -> bool:
        """Whether a combination's plans could be learned from the traces of three others."""
        corners = self.corners.of(combination)
        if corners is None or not all(corner in self.families for corner in corners):
            return False
        if refused := self.tracer.refused(combination):
            self.answers[combination] = refused
            return True
        found = self.tracer.spliced(combination, *(self.families[corner] for corner in corners))
        if found is None or any(plan.ended and self.limits.may_fit(plan) for plan in found.plans):
            return False
        self.answers[combination] = found.plans
        return True

    def _look(self, combinations: Iterable[Combination]) -> None:
        """Learn what weights and optimizer states alone take, of many combinations at a time."""
        new = {part: Standing(c) for c in combinations if (part := standing_part(c)) not in self.looks}
        self.looks.update(zip(new, self.workers.map(list(new.values())), strict=True))

    def _choose(self, rung: Sequence[Combination], *, next_: Sequence[Sequence[Combination]] = ()) -> Plan | None:
        """The fastest plan of a rung that fits, confirmed, or None. `next_`: rungs to look into if there is none."""
        for plan in self._candidates(rung):
            confirmed = self._confirm_all([plan], ahead=self._worth_tracing(self._probes(next_)))[0]
            if self.limits.why_not(confirmed) is None:
                return confirmed
        return None

    def _candidates(self, rung: Sequence[Combination]) -> list[Plan]:
        """The plans of a rung that may fit, the fastest first."""
        return sorted((plan for plan in self._known(rung) if self.limits.may_fit(plan)), key=preference)

    def _confirm_all(self, plans: Sequence[Plan], *, ahead: Sequence[Combination] = ()) -> list[Plan]:
        """Plans, confirmed, in place of what was known of them."""
        asked = [[] if plan.confirmed else self.tracer.to_confirm(plan) for plan in plans]
        answers = iter(self.workers.map(list(itertools.chain(*asked)), map(self._question, ahead)))
        return [
            plan if plan.confirmed else self._confirmed(plan, [next(answers) for _ in questions])
            for plan, questions in zip(plans, asked, strict=True)
        ]

    def _confirmed(self, plan: Plan, answers: Sequence[Answer]) -> Plan:
        confirmed = self.tracer.confirmed(plan, _records(answers), lambda asked: _records(self.workers.map(asked)))
        before = self.answers[plan.techniques]
        assert not isinstance(before, str)
        size = plan.micro_batch_size
        self.answers[plan.techniques] = [confirmed if p.micro_batch_size == size else p for p in before]
        return confirmed

    def _probes(self, rungs: Iterable[Sequence[Combination]]) -> list[Combination]:
        """The combinations by which rungs are told to be worth a closer look or not."""
        return [combination for rung in rungs for combination in self._smallest_of(rung)] if self._seen() else []

    def _smallest_of(self, rung: Sequence[Combination]) -> list[Combination]:
        """The combination of a rung with most in common with the smallest plan that is known.

        And, for each option that no plan is known with, the one that has this option beside.
        """
        plans = self._seen()
        if not plans:
            return [rung[-1]]
        known = min(self.plans() or plans, key=_closeness).techniques
        seen = {t for plan in plans for t in plan.techniques}
        unknown = dict.fromkeys(t for c in self.standing for t in c if t not in seen)
        alike = [{t for t in known if t.key != other.key} | {other} for other in unknown]
        found = (max(rung, key=lambda c: len(wanted.intersection(c))) for wanted in (set(known), *alike))
        return list(dict.fromkeys(found))


def _refusals(reasons: Sequence[Sequence[str]]) -> list[str]:
    """Why no combination can be built: what all are refused for, or all reasons where there is no such."""
    everything = list(dict.fromkeys(itertools.chain(*reasons)))
    return [one for one in everything if all(one in some for some in reasons)] or everything


def _records(answers: Sequence[Answer]) -> list[Record]:
    return [answer for answer in answers if isinstance(answer, Record)]


def _needs(plan: Plan) -> int:
    return plan.needed_bytes


def _closeness(plan: Plan) -> tuple[int, int]:
    """The farther its trace went before it was too much, the less a plan is likely to need."""
    return ("", "backward", "forward").index(plan.ended), plan.needed_bytes
