"""The planner's choices: what it prefers, what it refuses and with which numbers, and what it costs to ask."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Recipes
from torch import nn
from typer.testing import CliRunner

from zoo import search
from zoo.cli import app
from zoo.combinations import departure, rungs
from zoo.domain import Batch
from zoo.errors import DoesNotFit, InputError
from zoo.memory import workers
from zoo.memory.predict import Footprint
from zoo.memory.scaling import Estimate
from zoo.planner import decide, limits_of
from zoo.plans import Decision, Limits, Plan, Workload
from zoo.recipe import Budget
from zoo.resolve import Job
from zoo.resources import shared
from zoo.search import Search
from zoo.step import PHASES
from zoo.tasks.regression import SequenceRegression
from zoo.tasks.sequence import logits
from zoo.techniques import registry
from zoo.tracer import Traced, Tracer, Whole
from zoo.training import run
from zoo.units import GIB, MIB

PLAIN = {"quantization": "none", "optimizer": "adamw"}
OPEN: dict[str, Any] = {"techniques": PLAIN, "train.global_batch_size": 16, "budget": {}}
WORK = Workload(100, 64, "64 inputs of 100 tokens")


@pytest.fixture(scope="module", autouse=True)
def _trace_each_combination_once() -> Iterator[None]:
    """What a combination takes does not depend on the budget, and most tests here ask about budgets."""
    traced: dict[Any, Any] = {}
    original = Tracer._family

    def remembered(self: Any, techniques: Any, whole: bool, most: int | None) -> Any:
        key = (id(self.job.task), self.job.card.name, tuple(sorted(self.job.card.roles)), self.tokens, techniques)
        if key not in traced:
            traced[key] = self.job, original(self, techniques, True, None)
        return traced[key][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracer, "_family", remembered)
        yield


def _decide(job: Job, device: int | None, host: int | None = None, *, exhaustive: bool = False) -> Decision:
    """Plan for the CPU with a budget in bytes."""
    return decide(job, WORK, limits_of(Budget(device=device, host=host)), exhaustive=exhaustive)


@pytest.fixture(scope="module", name="job")
def _job(session_recipes: Callable[[str], Recipes]) -> Job:
    """Everything left open."""
    return session_recipes("planner").job(OPEN)


@pytest.fixture(scope="module", name="generous")
def _generous(job: Job) -> Decision:
    return _decide(job, 64 * GIB, exhaustive=True)


@pytest.fixture(scope="module", name="full")
def _full(session_recipes: Callable[[str], Recipes]) -> Job:
    """Only checkpointing and the division of the batch are left open."""
    return session_recipes("full").job({**OPEN, "techniques": {**PLAIN, "precision": "fp32", "adapter": "full"}})


def _option(plan: Plan, key: str) -> str:
    return next(t.name for t in plan.techniques if t.key == key)


def _changes(plan: Plan) -> bool:
    return any(t.exactness == "changes-model" for t in plan.techniques)


# ------------------------------------------------------------------------------------------------ preference


def test_a_generous_budget_takes_the_fastest_plan_that_does_not_change_the_model(generous: Decision) -> None:
    assert generous.fits
    faithful = [p for p in generous.considered if not _changes(p)]
    assert generous.chosen.estimate.seconds == min(p.estimate.seconds for p in faithful)
    assert min(p.estimate.seconds for p in generous.considered) < generous.chosen.estimate.seconds, (
        "training less is faster, and still not chosen"
    )
    assert (_option(generous.chosen, "adapter"), _option(generous.chosen, "checkpointing")) == ("full", "none")
    assert (generous.chosen.micro_batch_size, generous.chosen.accumulation_steps) == (16, 1)


def test_every_combination_and_division_is_considered(job: Job, generous: Decision) -> None:
    combinations = 1
    for options in job.choices.values():
        combinations *= len(options)
    assert len(generous.considered) == combinations * 5
    assert {p.micro_batch_size for p in generous.considered} == {16, 8, 4, 2, 1}
    assert all(p.micro_batch_size * p.accumulation_steps == 16 for p in generous.considered)
    assert len(generous.rejected) == combinations - 1
    assert all(r.reason for r in generous.rejected)


def test_a_tighter_budget_checkpoints_and_a_still_tighter_one_divides_the_batch(full: Job) -> None:
    considered = _decide(full, 64 * GIB).considered
    whole = {_option(p, "checkpointing"): p for p in considered if p.accumulation_steps == 1}
    assert whole["block"].needed_bytes < whole["none"].needed_bytes
    undivided = max(whole["block"].needed_bytes, 1)
    kept = [p for p in considered if _option(p, "checkpointing") == "none" and p.needed_bytes <= undivided]
    fastest = min([*kept, whole["block"]], key=lambda p: p.estimate.seconds)
    tighter = _decide(full, undivided)
    assert tighter.fits
    assert tighter.chosen.techniques == fastest.techniques
    below = min(p.needed_bytes for p in considered if _option(p, "checkpointing") == "none") - 1
    checkpointed = _decide(full, below)
    assert checkpointed.fits
    assert _option(checkpointed.chosen, "checkpointing") in ("block", "selective")
    divided = _decide(full, whole["block"].needed_bytes - 1)
    assert divided.fits
    assert divided.chosen.accumulation_steps > 1
    smallest = _decide(full, min(p.needed_bytes for p in considered) + 1)
    assert smallest.fits
    assert _option(smallest.chosen, "checkpointing") == "block"
    assert smallest.chosen.accumulation_steps > 1
    assert smallest.chosen.exactness == "rounding", "a divided batch is exact up to rounding only"
    assert any("micro-batch: " in reason for reason in smallest.reasons)


def test_adapters_are_the_last_resort_and_only_where_the_recipe_leaves_them_open(
    job: Job, full: Job, generous: Decision
) -> None:
    by_name = {option.name: option for option in job.choices["adapter"]}
    faithful, lora = (
        _decide(replace(job, choices={**job.choices, "adapter": (by_name[name],)}), 1).chosen.needed_bytes
        for name in ("full", "lora")
    )
    assert lora < faithful
    just = _decide(job, faithful)
    assert just.fits
    assert not _changes(just.chosen)
    below = _decide(job, faithful - 1)
    assert below.fits
    assert _option(below.chosen, "adapter") == "lora"
    assert below.chosen.exactness == "changes-model"
    assert any("adapter: lora" in reason and "does not fit" in reason for reason in below.reasons)
    head = _decide(job, lora - 1)
    assert head.fits
    assert _option(head.chosen, "adapter") == "head"
    assert not _decide(full, faithful - 1).fits, "fp32 and full are the recipe's word"


def test_less_memory_never_makes_a_step_faster(job: Job, generous: Decision) -> None:
    budgets = sorted({p.needed_bytes for p in generous.considered if not _changes(p)})
    decisions = [_decide(job, budget) for budget in budgets[:: max(len(budgets) // 4, 1)]]
    chosen = [decision.chosen for decision in decisions if decision.fits]
    seconds = [plan.estimate.seconds for plan in chosen if not _changes(plan)]
    assert len(seconds) > 2
    assert seconds == sorted(seconds, reverse=True)


# ------------------------------------------------------------------------------------------------ what is given by hand


def test_techniques_given_by_hand_are_kept_and_refused_with_the_numbers(
    session_recipes: Callable[[str], Recipes],
) -> None:
    given = {**PLAIN, "precision": "fp32", "adapter": {"lora": {"rank": 3}}, "checkpointing": "none"}
    job = session_recipes("by_hand").job({**OPEN, "techniques": given})
    decision = _decide(job, 64 * GIB)
    names = decision.to_json()["chosen"]["techniques"]
    defaults = {key: options[0].name for key, options in registry().items()}
    assert names == {**defaults, "adapter": "lora(rank=3)"}
    refused = _decide(job, MIB)
    assert not refused.fits
    assert refused.to_json()["chosen"]["techniques"] == names
    assert "nothing fits 1.00 MiB" in refused.reasons[0]
    assert f"{refused.chosen.needed_bytes} bytes" in refused.reasons[0]


def test_an_impossible_budget_names_the_smallest_that_would_do(job: Job) -> None:
    decision = _decide(job, 1000)
    assert not decision.fits
    assert decision.chosen.needed_bytes == min(p.needed_bytes for p in decision.considered)
    assert "nothing fits 1000 B (1000 B as the budget says)" in decision.reasons[0]
    assert f"the smallest budget that would do is {decision.chosen.needed_bytes} bytes" in decision.reasons[0]
    again = _decide(job, decision.chosen.needed_bytes)
    assert again.fits, "the smallest budget is not enough"
    assert again.chosen.needed_bytes == decision.chosen.needed_bytes
    assert again.chosen.estimate.seconds <= decision.chosen.estimate.seconds
    less = _decide(job, decision.chosen.needed_bytes - 1)
    assert not less.fits
    assert less.chosen.needed_bytes == decision.chosen.needed_bytes


@pytest.mark.parametrize("length", [12, 100])
def test_the_smallest_budget_is_the_smallest_whatever_the_search_has_left_out(
    session_recipes: Callable[[str], Recipes], length: int
) -> None:
    """With everything open but the adapter, and budgets from which on each combination would have no room."""
    recipe = session_recipes("smallest").job({**OPEN, "techniques": {"adapter": "full"}, "train.global_batch_size": 4})
    work = replace(WORK, tokens=length)

    def planned(budget: int, *, exhaustive: bool = False) -> Decision:
        return decide(recipe, work, limits_of(Budget(device=budget)), exhaustive=exhaustive)

    needed = planned(1).chosen.needed_bytes
    held = sorted({p.needed_bytes for p in planned(1, exhaustive=True).considered})
    assert needed == held[0]
    for budget in (held[0] // 2, needed - 1):
        refused = planned(budget)
        assert not refused.fits
        assert refused.chosen.needed_bytes == needed
    for budget in (needed, needed + 1, *held[1 :: len(held) // 5]):
        assert planned(budget).fits


def test_a_full_host_is_refused_too(full: Job) -> None:
    decision = _decide(full, 64 * GIB, host=MIB)
    assert not decision.fits
    assert decision.reasons[0].startswith("nothing fits the host; the smallest plan does not fit the host: ")
    assert decision.reasons[0].endswith(" of 1.00 MiB; raise budget.host")
    assert all("does not fit the host: " in r.reason and "1.00 MiB" in r.reason for r in decision.rejected)


def test_training_that_does_not_fit_is_refused_before_anything_is_built(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "build_for", lambda *_, **__: pytest.fail("built in spite of the plan"))
    job = recipes.job({"budget": {"device": "1MiB"}})
    with pytest.raises(DoesNotFit) as caught:
        run.train(job)
    said = str(caught.value)
    assert "nothing fits 1.00 MiB" in said
    assert "the smallest budget that would do is" in said
    assert "it would use " in said
    assert all(part in said for part in ("precision fp32", "adapter full", "checkpointing none"))


def test_a_combination_that_cannot_be_built_says_why(job: Job) -> None:
    roles = {role: globs for role, globs in job.card.roles.items() if role != "block"}
    blockless = replace(job, card=job.card.model_copy(update={"roles": roles}))
    decision = _decide(blockless, 64 * GIB)
    assert decision.fits
    without = [r for r in decision.rejected if r.plan is None]
    assert without
    assert any("has no role block" in r.reason for r in without)
    only = {**job.choices, "checkpointing": job.choices["checkpointing"][1:]}
    with pytest.raises(InputError, match="sapiens_vh has no role block"):
        _decide(replace(blockless, choices=only), 64 * GIB)


# ------------------------------------------------------------------------------------------------ predictions


def test_the_chosen_plan_is_what_training_measures(recipes: Recipes) -> None:
    """The same numbers through the front door, with accumulation and an unequal last micro-batch."""
    job = recipes.job({"train.max_steps": 3, "train.global_batch_size": 7, "train.max_grad_norm": 1.0})
    decision, _, _ = run.plan(job)
    summary = run.train(job).summary
    predicted, measured = (summary["memory"][f"{kind}_bytes"] for kind in ("predicted", "measured"))
    assert predicted["peak"] == decision.chosen.peak_bytes
    for phase in PHASES:
        assert predicted[phase] == pytest.approx(measured[phase], rel=0.01)


def test_the_optimizer_has_its_states_in_what_is_confirmed(full: Job) -> None:
    """The first step of a run has none yet: its peak is not the run's."""
    decision = _decide(full, 64 * GIB)
    held = decision.chosen.estimate.peak_by_category
    assert held["optimizer"] == pytest.approx(2 * held["parameters"], rel=0.02)
    rough = next(
        p
        for p in decision.considered
        if p.techniques == decision.chosen.techniques and p.micro_batch_size == decision.chosen.micro_batch_size
    )
    assert decision.chosen.peak_bytes == pytest.approx(rough.peak_bytes, rel=0.005)


class _Contrastive(SequenceRegression):
    """Compares every row with every other: memory grows with the square of the rows."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        scores = logits(model, batch.inputs)
        return (scores @ scores.t()).square().sum() / len(scores)


def test_a_loss_over_pairs_of_rows_is_planned_by_full_traces(full: Job) -> None:
    job = replace(full, task=_Contrastive())
    decision = decide(job, replace(WORK, tokens=20), limits_of(Budget(device=64 * GIB)))
    assert decision.fits
    by_rows = {p.micro_batch_size: p for p in decision.considered if _option(p, "checkpointing") == "none"}
    assert by_rows[16].peak_bytes > by_rows[1].peak_bytes
    assert by_rows[1].estimate.seconds > by_rows[16].estimate.seconds, "sixteen small steps take longer than one"
    assert decision.chosen.micro_batch_size == 16


# ------------------------------------------------------------------------------------------------ the command


def _cli(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize(("budget", "code"), [("2GiB", 0), ("1MiB", 1)])
def test_json_of_zoo_plan_keeps_its_contract(recipes: Recipes, budget: str, code: int) -> None:
    path = recipes.write({"techniques.checkpointing": None})
    exit_code, answer = _cli(str(path), "--budget", budget)
    assert exit_code == code
    assert answer["fits"] is (code == 0)
    assert answer["budget_bytes"] == {"2GiB": 2 * GIB, "1MiB": MIB}[budget]
    chosen = answer["chosen"]
    assert set(chosen["techniques"]) == set(registry())
    assert chosen["micro_batch_size"] * chosen["accumulation_steps"] >= 8
    assert chosen["exactness"] in ("bitwise", "rounding", "changes-model")
    assert set(chosen["peak_by_phase"]) == {"forward", "backward", "optimizer"}
    assert chosen["peak_bytes"]["allocated"] == max(chosen["peak_by_phase"].values())
    assert sum(chosen["peak_by_category"].values()) == pytest.approx(chosen["peak_bytes"]["allocated"], abs=16)
    assert isinstance(chosen["host_bytes"], int)
    assert answer["rejected"]
    for rejected in answer["rejected"]:
        assert set(rejected["techniques"]) == set(chosen["techniques"])
        assert rejected["reason"]
        assert rejected["peak_bytes"] is None or rejected["peak_bytes"] > 0
    assert all(isinstance(reason, str) for reason in answer["reasons"])


SHIPPED = sorted(
    path for path in (shared() / "recipes").rglob("*.yaml") if path.parent.name != "meteorology"
)  # those need data of the reader's own, or data made here: see test_meteorology_recipes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_planned_within_its_budget(path: Path) -> None:
    code, answer = _cli(str(path))
    assert code == 0
    assert answer["fits"]
    assert 0 < answer["chosen"]["peak_bytes"]["allocated"] <= answer["budget_bytes"]


def test_recipes_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"solubility", "freesolv", "mouse_v_genes", "antimicrobial_peptides"}


# ------------------------------------------------------------------------------------------------ very large models

_ASK = """
import json, pathlib, sys
from zoo import plan
decision = plan(sys.argv[1])
lines = pathlib.Path("/proc/self/status").read_text().splitlines()  # unlike getrusage's, it starts with this program
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
print(json.dumps({"host": peak, **decision.to_json()}))
"""


def test_the_largest_model_is_planned_offline_in_little_memory(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = ["".join(draw.choice("ACDEFGHIKLMNPQRSTVWY") for _ in range(draw.randint(200, 398))) for _ in range(39)]
    rows.insert(0, "A" * 398)
    table = tmp_path / "proteins.csv"
    table.write_text("sequence,value,part\n" + "\n".join(
        f"{row},{i / 10},{'train' if i < 32 else 'test'}" for i, row in enumerate(rows)
    ) + "\n")  # fmt: skip
    recipe = tmp_path / "large.yaml"
    recipe.write_text(yaml.safe_dump({
        "name": "large", "domain": "biology", "model": "esm2_t48_15b", "task": "sequence_regression",
        "data": {
            "path": str(table), "columns": {"input": "sequence", "target": "value"},
            "split": {"method": "column", "column": "part"},
        },
        "budget": {"device": "80GiB"},
        "train": {"max_steps": 10, "global_batch_size": 8},
    }))  # fmt: skip
    cache = tmp_path / "cache"
    environment = {**os.environ, "ZOO_CACHE": str(cache), "ZOO_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    asked = subprocess.run(
        [sys.executable, "-c", _ASK, str(recipe)], env=environment, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert answer["host"] < 2 * 10**9
    assert not cache.exists() or not any(p.is_file() for p in cache.rglob("*")), "something was downloaded"
    assert answer["fits"]
    chosen = answer["chosen"]
    assert chosen["techniques"]["adapter"].startswith("lora"), "15 B parameters in full need 16 bytes each"
    assert chosen["tokens_per_row"] == 400
    weights = 15_129_100_194 * (2 if chosen["techniques"]["precision"] == "bf16" else 4)
    assert chosen["peak_by_category"]["parameters"] == pytest.approx(weights, rel=0.01)
    trained = {"adapter": "full", "quantization": "none"}
    full = [r for r in answer["rejected"] if trained.items() <= r["techniques"].items()]
    assert full
    assert all("does not fit: weights and optimizer states alone take" in r["reason"] for r in full)


# ------------------------------------------------------------------------------------------------ the ladder


@pytest.fixture(scope="module", name="ladder")
def _ladder(session_recipes: Callable[[str], Recipes]) -> Job:
    """Everything left open, quantization and the optimizer too."""
    return session_recipes("ladder").job({**OPEN, "techniques": {}, "train.global_batch_size": 4})


def test_rungs_are_in_order_of_what_they_change(ladder: Job) -> None:
    found = rungs(ladder)
    assert sorted(c for rung in found for c in map(str, rung)) == sorted(
        map(str, itertools.product(*ladder.choices.values()))
    )
    far = [departure(rung[0], ladder) for rung in found]
    assert far == sorted(far)
    assert far[0] == (0, 0)
    for rung in found:
        changes = {tuple(t for t in c if t.exactness == "changes-model") for c in rung}
        assert len(changes) == 1


class _Told:
    """A tracer and its workers that know what every combination takes, and remember which were asked about."""

    FACTS = {"fp32": (2, 2), "block": (2, 0.5), "selective": (1.5, 1.5)}  # noqa: RUF012  (seconds and bytes, in those of others)

    def __init__(self, limits: Limits) -> None:
        self.limits, self.asked = limits, set[Any]()

    def map(self, questions: Any, ahead: Any = ()) -> list[Any]:
        combinations = [q.techniques if isinstance(q, Whole) else q for q in questions]
        self.asked |= set(combinations)
        return [Traced([self._plan(combination)], None) for combination in combinations]

    def _plan(self, combination: Any) -> Plan:
        facts = [self.FACTS.get(t.name, (1, 1)) for t in combination]
        seconds, size = math.prod(f[0] for f in facts), round(MIB * math.prod(f[1] for f in facts))
        estimate = Estimate({"forward": size}, {}, seconds)
        return Plan(combination, 4, 1, estimate, Footprint.of(self.limits.device, size), size, 20)

    def to_confirm(self, plan: Plan) -> list[Any]:
        return []

    def confirmed(self, plan: Plan, records: Any, ask: Any) -> Plan:
        return replace(plan, confirmed=True)


def test_an_option_that_is_slower_and_takes_more_is_left_out_of_the_rest(ladder: Job) -> None:
    budget = limits_of(Budget(device=8 * GIB))
    told: Any = _Told(budget)
    found = Search(ladder, told, budget, told)
    chosen = found.run(exhaustive=False)
    assert {chosen.techniques} < told.asked < set(found.rungs[0])
    assert {(a.name, b.name) for a, b in found.outdone.items()} == {("fp32", "bf16"), ("selective", "none")}
    pairs = {(_option(plan, "precision"), _option(plan, "checkpointing")) for plan in found.plans()}
    assert pairs == {("fp32", "none"), *(("bf16", name) for name in ("none", "block", "selective"))}
    reasons = {r.reason for r in found.rejected(chosen, None) if r.plan is None}
    outdone = "precision fp32 was slower than bf16 and took more, beside all else the same"
    assert reasons == {"not tried: changes more than is needed", f"not tried: {outdone}"}
    all_of_it = Search(ladder, told, budget, told)
    assert all_of_it.run(exhaustive=True) == chosen
    assert not all_of_it.outdone


class _Refusing(_Told):
    """AdamW takes four times as much, and bf16 is refused beside all other optimizers."""

    FACTS = {**_Told.FACTS, "adamw": (1, 4)}  # noqa: RUF012

    def map(self, questions: Any, ahead: Any = ()) -> list[Any]:
        names = [{t.name for t in combination} for combination in questions]
        plans = super().map(questions)
        return ["no" if "bf16" in some and "adamw" not in some else one for some, one in zip(names, plans, strict=True)]


def test_an_option_that_is_outdone_is_tried_where_what_outdid_it_is_refused(
    ladder: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LARGE", 0)
    adapter = {"adapter": ladder.choices["adapter"][:1]}
    job = replace(ladder, choices={**ladder.choices, **adapter})
    budget = limits_of(Budget(device=3 * MIB // 2))
    told: Any = _Refusing(budget)
    found = Search(job, told, budget, told)
    chosen = found.run(exhaustive=False)
    assert ("fp32", "bf16") in {(a.name, b.name) for a, b in found.outdone.items()}
    assert budget.why_not(chosen) is None
    assert (_option(chosen, "precision"), _option(chosen, "checkpointing")) == ("fp32", "block")


class _Ending(_Told):
    """Of what cannot fit only the beginning is known, by which fp32 seems to take less than bf16."""

    FACTS = {"fp32": (2, 1.05), "block": (2, 0.5), "adamw-8bit": (1, 0.7)}  # noqa: RUF012
    SHARE = {"fp32": 0.72, "bf16": 0.86}  # noqa: RUF012

    def map(self, questions: Any, ahead: Any = ()) -> list[Any]:
        answers = []
        for question, traced in zip(questions, super().map(questions), strict=True):
            (plan,) = traced.plans
            size = round(plan.peak_bytes * self.SHARE[_option(plan, "precision")])
            if not isinstance(question, Whole) and size > self.limits.device_bytes:
                footprint, estimate = Footprint.of(self.limits.device, size), Estimate({"forward": size}, {}, 0.1)
                plan = replace(plan, footprint=footprint, estimate=estimate, ended="forward", least=size)
            answers.append(Traced([plan], None))
        return answers


@pytest.mark.parametrize("share", [0.357, 0.3])
def test_no_rung_is_left_out_for_what_the_beginnings_of_traces_seem_to_say(
    ladder: Job, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LARGE", 0)
    only = {key: ladder.choices[key][:1] for key in ("adapter", "quantization", "offload")}
    job = replace(ladder, choices={**ladder.choices, **only})
    limits = replace(limits_of(Budget(device=MIB)), device_bytes=round(share * MIB))
    told: Any = _Ending(limits)
    found = Search(job, told, limits, told)
    chosen = found.run(exhaustive=False)
    assert any(plan.ended for answer in found.answers.values() for plan in answer if not isinstance(plan, str))
    assert [_option(chosen, key) for key in ("precision", "checkpointing", "optimizer")] == [
        "bf16",
        "block",
        "adamw-8bit",
    ]
    assert chosen.techniques == Search(job, told, limits, told).run(exhaustive=True).techniques
    assert (limits.why_not(chosen) is None) == (share > 0.35)


def test_what_is_refused_of_a_shallow_model_may_be_right_for_a_deep_one(recipes: Recipes) -> None:
    """Shallow models are traced; every third block is one that they must have, or the whole one be asked."""
    changes = {"model": "esm2_t6_8m", "checkpoint": "random", "techniques": {"checkpointing": {"block": {"every": 3}}}}
    job = recipes.job(changes)
    assert _decide(job, 8 * GIB).chosen.techniques
    six = recipes.job({**changes, "techniques": {"checkpointing": {"block": {"every": 6}}}})
    assert _decide(six, 8 * GIB).fits
    never = recipes.job({**changes, "techniques": {"checkpointing": {"block": {"every": 7}}}})
    with pytest.raises(InputError) as refused:
        _decide(never, 8 * GIB)
    assert refused.value.problems == (
        "checkpointing: block: every: 7 is more than esm2_t6_8m has, 6 block modules; nothing would be recomputed",
    ), "what every combination is refused for, and nothing else"


def test_what_a_device_cannot_multiply_by_itself_is_said(recipes: Recipes) -> None:
    job = recipes.job({"techniques": {"precision": "bf16"}})
    decision = decide(job, WORK, limits_of(Budget(gpu="t4")))
    assert any("precision: bf16, as the recipe says (NVIDIA T4 16 GB has no bf16" in r for r in decision.reasons)


def test_options_that_take_as_long_are_no_slower(ladder: Job) -> None:
    told: Any = _Told(limits_of(Budget(device=8 * GIB)))
    plan = told._plan(next(iter(rungs(ladder)[0])))
    other = replace(plan, estimate=replace(plan.estimate, seconds=plan.estimate.seconds * 1.0001))
    assert search.why_not_chosen(other, plan) == "fits, but no faster"


def test_a_budget_that_the_lowest_rung_fits_leaves_the_others_untried(ladder: Job) -> None:
    decision = _decide(ladder, 64 * GIB)
    assert not _changes(decision.chosen)
    assert not any(_changes(p) for p in decision.considered)
    untried = [r for r in decision.rejected if r.plan is None]
    assert untried
    assert all(r.reason.startswith("not tried: changes more than is needed") for r in untried)


def test_no_budget_makes_the_ladder_choose_worse_than_an_exhaustive_search(ladder: Job) -> None:
    """At every tenth of the way from nothing to everything: no farther from the model, and at most 5 % slower."""
    everything = _decide(ladder, 64 * GIB, exhaustive=True)
    needs = sorted(p.needed_bytes for p in everything.considered)
    changed = set()
    for budget in needs[:: len(needs) // 9]:
        quick, thorough = _decide(ladder, budget), _decide(ladder, budget, exhaustive=True)
        assert quick.fits == thorough.fits
        if quick.fits:
            assert departure(quick.chosen.techniques, ladder) == departure(thorough.chosen.techniques, ladder)
            assert quick.chosen.estimate.seconds <= 1.05 * thorough.chosen.estimate.seconds
            changed.add(departure(quick.chosen.techniques, ladder))
    assert len(changed) > 2, "the budgets did not ask for different rungs"


def test_what_has_no_room_for_its_weights_is_not_traced(ladder: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of many parameters, for its budget: a look at weights and states comes first, and tells the same."""
    full = ladder.choices["adapter"][:1]
    job = replace(
        ladder, choices={**ladder.choices, "quantization": ladder.choices["quantization"][:1], "adapter": full}
    )
    nothing = _decide(job, 1000, exhaustive=True)
    least = min(p.needed_bytes for p in nothing.considered)
    monkeypatch.setattr(search, "LARGE", 0)
    plain = [_decide(job, budget) for budget in (1000, 2 * MIB, 3 * least, 12 * MIB)]
    monkeypatch.setattr(search, "LARGE", 10**9)
    looked = [_decide(job, budget) for budget in (1000, 2 * MIB, 3 * least, 12 * MIB)]
    for one, other in zip(plain, looked, strict=True):
        assert one.fits == other.fits
        assert one.chosen == other.chosen
    assert any("weights and optimizer states alone take" in r.reason for r in looked[1].rejected)
    assert len(looked[1].considered) < len(plain[1].considered)


def test_several_processes_decide_the_same(ladder: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _decide(ladder, 3 * MIB)
    monkeypatch.setattr(workers, "_cores", lambda: 3)
    assert _decide(ladder, 3 * MIB).to_json() == alone.to_json()
