"""Offload: what goes to the host is not on the device, comes back as it was, and is counted where it is."""

from __future__ import annotations

import gc
import io
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Recipes
from small_models import CPU, Steps, batches, changed, defaults, measured, predicted, run_steps, small, task_of
from torch import nn

from zoo import host as host_module
from zoo import planner
from zoo.card import ModelCard
from zoo.console import show_plan
from zoo.errors import InputError, Interrupted
from zoo.host import DEVICE, HOST, LINK, PINNED, Host, place, placed
from zoo.memory.allocator import on_host
from zoo.memory.devices import find
from zoo.memory.ledger import Record
from zoo.memory.roofline import Cost, Rates
from zoo.memory.scaling import Tape
from zoo.memory.trace import without_storage
from zoo.planner import decide, limits_of, what_is_free
from zoo.plans import Limits, Workload
from zoo.recipe import Budget
from zoo.resolve import load_job
from zoo.step import PHASES, Setup, StepResult, build, train_step
from zoo.techniques import Technique
from zoo.techniques._saved_on_host import SavedOnHost
from zoo.techniques.adapter import HeadOnly, LoRA
from zoo.techniques.checkpointing import BlockCheckpointing, SelectiveCheckpointing
from zoo.techniques.offload import Activations, Optimizer, Weights
from zoo.techniques.optimizer import Adafactor, AdamW8bit, AdamWInBackward, MasterWeights
from zoo.techniques.precision import BF16, BF16Pure
from zoo.techniques.quantization import NF4
from zoo.tracer import Tracer
from zoo.training import state
from zoo.training.export import save_model
from zoo.training.recovery import RanOut, attempt
from zoo.training.run import train
from zoo.training.values import loader_of
from zoo.training.watcher import Watcher
from zoo.units import GIB, MIB

LENGTHS = (17, 9, 30, 12)
ALL = 1
LAYERS, WIDTH, INNER = 3, 256, 512
WIDE = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "intermediate_size": INNER}
ROWS, LENGTH = 16, 64
STREAM = ROWS * LENGTH * WIDTH * 4
"""Bytes of the tensor that goes from block to block."""


def _wide() -> ModelCard:
    return small("esm2_t6_8m", **WIDE)


def _traced(card: ModelCard, kind: str = "sequence_regression", **techniques: Technique) -> Record:
    """Two steps on an accelerator."""
    return predicted(card, task_of(kind, card), defaults(**techniques), ROWS, LENGTH, world="accelerator")


def _built(card: ModelCard, **techniques: Technique) -> Setup:
    return build(
        card, task_of("sequence_regression", card), defaults(**techniques), CPU, load=loader_of(card, "random", 0)
    )


# ------------------------------------------------------------------------------------------------ counted where it is


def test_inputs_of_recomputed_blocks_are_on_the_host_and_on_the_device_only_while_they_are_used() -> None:
    kinds = (BlockCheckpointing(), BlockCheckpointing(offload=True))
    without, with_ = (_traced(_wide(), checkpointing=technique) for technique in kinds)
    assert on_host(without) == {}
    assert on_host(with_) == {"activations": LAYERS * STREAM}  # whose bytes are a power of two
    assert set(with_.devices) == {"meta", "pinned"}
    saved = _alive_before_backward(without) - _alive_before_backward(with_)
    assert saved == LAYERS * STREAM


def _alive_before_backward(record: Record) -> int:
    """Bytes of activations on the device when the last backward pass begins."""
    start = next(i for i, phase in reversed(record.marks) if phase == "backward")
    before = record.events[:start]
    alive = {e - 1 for e in before if e > 0} - {-e - 1 for e in before if e < 0}
    return sum(record.sizes[i] for i in alive if record.labels[i] == "activations" and record.devices[i] == "meta")


def test_all_activations_of_blocks_leave_the_device() -> None:
    without, with_ = _traced(_wide()), _traced(_wide(), offload=Activations(smallest=ALL))
    deeper = _traced(changed(_wide(), num_hidden_layers=LAYERS + 1))
    of_a_block = _alive_before_backward(deeper) - _alive_before_backward(without)
    assert of_a_block > 8 * STREAM
    gone = _alive_before_backward(without) - _alive_before_backward(with_)
    assert gone == LAYERS * of_a_block
    taken = sum(s for s, d, e in zip(with_.sizes, with_.devices, with_.events, strict=False) if d == "pinned" and e)
    assert taken >= gone
    unrounded = Tape.of(with_).replay(0, Rates(1, 1, 1, 1))
    assert max(p.host[1].sum() for p in unrounded if p.host is not None) == gone
    assert on_host(with_)["activations"] >= gone


def test_what_is_smaller_than_worth_a_transfer_stays() -> None:
    assert on_host(_traced(_wide(), offload=Activations(smallest=64 * MIB))) == {}
    some = sum(on_host(_traced(_wide(), offload=Activations(smallest=STREAM + 1))).values())
    assert 0 < some < sum(on_host(_traced(_wide(), offload=Activations())).values())


@pytest.mark.parametrize("precision", [None, BF16()], ids=["fp32", "bf16"])
def test_states_and_masters_are_on_the_host_and_nothing_of_them_on_the_device(precision: Technique | None) -> None:
    options = {} if precision is None else {"precision": precision}
    with_, without = _traced(_wide(), offload=Optimizer(), **options), _traced(_wide(), **options)
    setup = _built(_wide(), offload=Optimizer(), **options)
    weights = sum(p.numel() for p in setup.trainable().values())
    used = {n: p for n, p in setup.trainable().items() if "contact_head" not in n}
    states = sum(2 * p.numel() * 4 + 4 for p in used.values())
    held = on_host(with_)
    assert held["optimizer"] == 4 * weights + states
    assert "optimizer" not in with_.at_peak()
    assert not any(label == "optimizer" for i, label in with_.labels.items() if with_.devices[i] == "meta")
    assert without.at_peak()["optimizer"] == states + (4 * weights if precision else 0)
    last = len(with_.events)
    alive = {e - 1 for e in with_.events[:last] if e > 0} - {-e - 1 for e in with_.events[:last] if e < 0}
    on_device = sum(with_.sizes[i] for i in alive if with_.devices[i] == "meta" and with_.labels[i] != "workspace")
    buffers = sum(b.nbytes for b in setup.model.buffers())
    assert on_device - buffers < weights * (2 if precision else 4) + 200_000, "parameters are all that is left"


def test_frozen_weights_are_on_the_host_and_one_block_of_them_on_the_device() -> None:
    least = 64 * 1024
    record = _traced(_wide(), adapter=LoRA(rank=4), offload=Weights(smallest=least))
    plain = _traced(_wide(), adapter=LoRA(rank=4))
    block = (4 * WIDTH * WIDTH + 2 * WIDTH * INNER) * 4  # q, k, v, attention's output, mlp up and down: powers of two
    assert on_host(record) == {"parameters": LAYERS * block}
    assert plain.at_peak()["parameters"] - record.at_peak()["parameters"] == LAYERS * block
    births = [i for i, e in enumerate(record.events) if e > 0 and record.sizes[e - 1] == WIDTH * INNER * 4]
    alive = most = 0
    sizes = {WIDTH * INNER * 4, WIDTH * WIDTH * 4}
    assert births
    start = next(i for i, phase in record.marks if phase == "forward")
    for event in record.events[start:]:
        index = abs(event) - 1
        if event and record.devices[index] == "meta" and record.sizes[index] in sizes:
            alive += record.sizes[index] if event > 0 else -record.sizes[index]
            most = max(most, alive)
    assert block <= most < 2 * block


@pytest.mark.parametrize("checkpointing", [BlockCheckpointing(), SelectiveCheckpointing(), BlockCheckpointing(every=2)])
def test_weights_on_the_host_take_less_of_the_device_beside_checkpointing(checkpointing: Technique) -> None:
    chosen = {"adapter": LoRA(rank=4), "checkpointing": checkpointing}
    plain, with_ = _traced(_wide(), **chosen), _traced(_wide(), **chosen, offload=Weights())
    block = (4 * WIDTH * WIDTH + 2 * WIDTH * INNER) * 4
    gone = max(plain.peaks().values()) - max(with_.peaks().values())
    assert gone >= (LAYERS - 1) * block
    assert on_host(with_) == {"parameters": LAYERS * block}


def test_page_locked_memory_comes_in_powers_of_two_and_is_used_again() -> None:
    record = Record(
        sizes=[600, 1000, 700, 24, 5000], devices=["pinned", "pinned", "pinned", "host", "meta"],
        events=[1, 2, 5, -1, 3, 4, -2, -3, -4, -5], marks=[(0, "forward")],
        labels={0: "a", 1: "a", 2: "b", 3: "c", 4: "a"},
    )  # fmt: skip
    assert on_host(record) == {"a": 1024, "b": 1024, "c": 24}
    record.events[4], record.events[3] = record.events[3], record.events[4]
    assert on_host(record) == {"a": 1024, "b": 1024, "c": 24, "cached": 1024}, "not yet free when it was asked for"
    record.events = [1, 2, -1, -2, 4, -4]
    assert on_host(record) == {"c": 24, "cached": 2048}
    assert record.peaks() == {"forward": 0}


def test_estimates_for_any_depth_and_rows_tell_the_host_too(recipes: Recipes) -> None:
    job = recipes.job({"techniques": {"precision": "bf16", "adapter": "full"}, "train.global_batch_size": 64})
    card = changed(_wide(), num_hidden_layers=20)
    tracer = Tracer(
        type(job)(**{**vars(job), "card": card, "task": task_of("sequence_classification", card)}),
        Workload(LENGTH, 64, "a test"), Limits(find("t4"), 64 * GIB, None, "a test"),
    )  # fmt: skip
    chosen = defaults(precision=BF16(), checkpointing=BlockCheckpointing(offload=True), offload=Optimizer())
    for plan in tracer.plans(chosen)[:2]:
        confirmed = tracer.confirm(plan)
        assert confirmed.host_bytes == sum(confirmed.estimate.host_by_category.values())
        assert plan.host_bytes == pytest.approx(confirmed.host_bytes, rel=0.05)
        states = [p.estimate.host_by_category["optimizer"] for p in (plan, confirmed)]
        assert states[0] == pytest.approx(states[1], rel=1e-4)  # the contact head, which nothing uses, has none
        told = confirmed.to_json()
        assert told["host_bytes"] == confirmed.host_bytes
        assert told["host_by_category"] == confirmed.estimate.host_by_category
        assert confirmed.estimate.seconds > 0


# ------------------------------------------------------------------------------------------------ time


def test_transfers_take_the_time_of_the_link_and_steps_on_the_host_that_of_its_memory() -> None:
    rates = Rates(fp32=1e12, half=2e12, bandwidth=1e12, launch=0, link=1e9, host=1e10)
    costs = [Cost(0, 10**6, False), Cost(0, 10**6, True), Cost(0, 10**6, False, LINK), Cost(10**9, 10**6, True, HOST)]
    record = Record(marks=[(0, "forward")], costs=costs, cost_marks=[0])
    (played,) = Tape.of(record).replay(1, rates)
    assert played.seconds == pytest.approx(1e-6 + 1e-6 + 1e-3 + 1e-4)


def test_a_step_is_slower_by_its_transfers() -> None:
    assert find("t4").rates_for().link == find("t4").host_link
    rates = replace(find("t4").rates_for(), launch=5e-6)  # launches must not hide the transfers

    def seconds(**techniques: Technique) -> float:
        card = _wide()
        task = task_of("sequence_regression", card)
        options: dict[str, Any] = {"world": "accelerator", "count_costs": True, "steps": 1}
        record = predicted(card, task, defaults(**techniques), ROWS, LENGTH, **options)
        return sum(segment.seconds for segment in Tape.of(record).replay(0, rates))

    plain, with_ = seconds(checkpointing=BlockCheckpointing()), seconds(checkpointing=BlockCheckpointing(offload=True))
    assert with_ - plain == pytest.approx(2 * LAYERS * STREAM / rates.link, rel=0.01)
    weights = sum(p.numel() for n, p in _built(_wide()).trainable().items() if "contact_head" not in n)
    least = 2 * weights * 4 / rates.link + weights * 7 * 4 / rates.host  # there and back; p, m, v and gradient
    assert least < seconds(offload=Optimizer()) - seconds() < 2 * least


# ------------------------------------------------------------------------------------------------ exactness


def _three_steps(**techniques: Technique) -> Steps:
    card = small("antiberty", dropout=0.1, num_hidden_layers=3)
    task = task_of("masked_language_modelling", card)
    return run_steps(card, task, defaults(**techniques), [batches(task, LENGTHS, 3, 1, seed=s) for s in range(3)])


def _same(first: Steps, second: Steps) -> bool:
    ours, theirs = [*first.gradients, *first.weights], [*second.gradients, *second.weights]
    return all(torch.equal(a, b) for a, b in zip(first.losses, second.losses, strict=True)) and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(ours, theirs, strict=True)
    )


TOGETHER: dict[str, tuple[dict[str, Technique], dict[str, Technique]]] = {
    "block-inputs-and-optimizer": (
        {"precision": BF16()}, {"checkpointing": BlockCheckpointing(offload=True), "offload": Optimizer()},
    ),
    "block-inputs-and-weights": (
        {"adapter": LoRA(rank=2, dropout=0.1)},
        {"checkpointing": BlockCheckpointing(offload=True), "offload": Weights(smallest=ALL)},
    ),
    "every-second-block-and-weights": (
        {"adapter": LoRA(rank=2, dora=True)},
        {"checkpointing": BlockCheckpointing(every=2), "offload": Weights(smallest=ALL)},
    ),
    "selective-and-weights": (
        {"adapter": HeadOnly()}, {"checkpointing": SelectiveCheckpointing(), "offload": Weights(smallest=ALL)},
    ),
    "selective-and-activations": (
        {}, {"checkpointing": SelectiveCheckpointing(), "offload": Activations(smallest=ALL)},
    ),
    "every-second-block-and-activations": (
        {}, {"checkpointing": BlockCheckpointing(every=2, offload=True), "offload": Activations(smallest=ALL)},
    ),
    "in-backward-and-optimizer": ({"precision": BF16(), "optimizer": AdamWInBackward()}, {"offload": Optimizer()}),
    "nf4-and-activations": (
        {"adapter": LoRA(rank=2), "quantization": NF4()}, {"offload": Activations(smallest=ALL)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("others", "changes"), TOGETHER.values(), ids=list(TOGETHER))
def test_the_same_bits_together(others: dict[str, Technique], changes: dict[str, Technique]) -> None:
    assert _same(_three_steps(**others), _three_steps(**others, **changes))


@pytest.mark.parametrize(("others", "changes"), TOGETHER.values(), ids=list(TOGETHER))
def test_predicted_peaks_are_measured_together(others: dict[str, Technique], changes: dict[str, Technique]) -> None:
    """On a CPU what is on the host is memory of the device."""
    card = small("antiberty", dropout=0.1, num_hidden_layers=3, hidden_size=WIDTH, intermediate_size=INNER)
    given = (card, task_of("masked_language_modelling", card), defaults(**others, **changes), 16, 64)
    fake, meta, real = predicted(*given).peaks(), predicted(*given, world="meta").peaks(), measured(*given)
    for phase in PHASES:
        assert fake[phase] == pytest.approx(real[phase], rel=0.01), phase
        assert meta[phase] == pytest.approx(fake[phase], rel=0.002), phase


# ------------------------------------------------------------------------------------------------ what is moved


@pytest.fixture(name="moves")
def _moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.Size]]:
    """What crosses the link, in order."""
    seen: list[tuple[str, torch.Size]] = []
    for name in ("take", "bring", "send"):
        plain = getattr(Host, name)

        def watched(self: Host, t: torch.Tensor, *args: Any, name: str = name, plain: Any = plain, **kw: Any) -> Any:
            seen.append((name, t.shape))
            return plain(self, t, *args, **kw)

        monkeypatch.setattr(Host, name, watched)
    return seen


def test_a_storage_goes_once_and_comes_once_however_often_it_is_saved(moves: list[Any]) -> None:
    keeper = SavedOnHost(Host(CPU), 1)
    weight = nn.Parameter(torch.randn(8, 8))
    x = torch.randn(4, 8, requires_grad=True)
    mask = torch.rand(4, 8)
    with keeper.keeping([mask], [weight]):
        h = x * 2
        y = (h @ weight.t()) * mask + h.t().sin().t() + h[1:].sin().sum()
    assert [name for name, _ in moves] == ["take"]
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, _ in moves] == ["take", "bring"]
    assert moves[0][1] == moves[1][1] == (32,)
    ours, x.grad = x.grad, None
    h = x * 2
    ((h @ weight.t()) * mask + h.t().sin().t() + h[1:].sin().sum()).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert ours is not None
    assert torch.equal(ours, x.grad)


def test_a_storage_that_changed_since_it_was_saved_is_moved_again(moves: list[Any]) -> None:
    keeper = SavedOnHost(Host(CPU), 1)
    x, h = torch.ones(4, requires_grad=True), torch.full((4,), 2.0)
    with keeper.keeping():
        first = x * h
        h.add_(1)
        second = x * h
    (first + second).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, _ in moves] == ["take", "take", "bring", "bring"]
    assert x.grad is not None
    assert x.grad.tolist() == [5.0] * 4, "each operation has the values that it computed with"


def test_what_is_on_the_host_goes_with_the_graph() -> None:
    keeper = SavedOnHost(Host(CPU), 1)
    made: list[weakref.ref[torch.Tensor]] = []
    plain = Host.take

    def take(self: Host, tensor: torch.Tensor, **kw: Any) -> torch.Tensor:
        copy = plain(self, tensor, **kw)
        made.append(weakref.ref(copy))
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "take", take)
        with keeper.keeping():
            y = torch.ones(4, requires_grad=True).exp().sin().sum()
    gc.disable()
    try:
        assert [ref() is not None for ref in made] == [True, True][: len(made)]
        assert made
        del y
        assert [ref() for ref in made] == [None] * len(made)
        assert not keeper._moved
    finally:
        gc.enable()


def test_weights_come_once_for_each_pass_and_never_where_nothing_is_trained_below(moves: list[Any]) -> None:
    card = _wide()
    setup = _built(card, adapter=LoRA(rank=2), offload=Weights())
    step = batches(setup.task, LENGTHS)  # type: ignore[arg-type]
    train_step(setup, step)
    six = LAYERS * 6
    # Of the first block, query, key and value have an input that nothing trained has a part in.
    assert [name for name, _ in moves] == ["bring"] * (six + six - 3)
    moves.clear()
    train_step(_built(card, adapter=HeadOnly(), offload=Weights()), step)
    assert len(moves) == six
    moves.clear()
    with torch.no_grad():
        setup.model(**step[0].inputs)
    assert len(moves) == six


def test_a_block_that_fails_leaves_nothing_switched_on() -> None:
    card = small("esm2_t6_8m")
    for technique in (Activations(smallest=ALL), Weights(smallest=ALL)):
        setup = _built(card, adapter=LoRA(rank=2), offload=technique)
        step = batches(setup.task, LENGTHS)  # type: ignore[arg-type]
        inner = next(m for m in next(iter(setup.modules_of("block").values())).modules() if isinstance(m, nn.Linear))
        homes = {n: p for n, p in setup.model.named_parameters()}
        handle = inner.register_forward_hook(_fails)
        with pytest.raises(RuntimeError, match="made to fail"):
            train_step(setup, step)
        handle.remove()
        assert all(p is homes[n] for n, p in setup.model.named_parameters())
        x = torch.ones(3, requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Host, "take", _fails)
            patch.setattr(Host, "bring", _fails)
            x.exp().sum().backward()  # type: ignore[no-untyped-call]


def _fails(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("made to fail")


def test_saved_models_are_the_same(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    card = small("esm2_t6_8m")
    task = task_of("sequence_regression", card)
    for adapter in (LoRA(rank=2), HeadOnly()):
        found = []
        for name, offload in (("plain", {}), ("with", {"offload": Weights(smallest=ALL)})):
            techniques = defaults(adapter=adapter, **offload)
            setup = run_steps(card, task, techniques, [batches(task, LENGTHS)]).setup
            save_model(setup, tmp_path / name)
            (file,) = (tmp_path / name).glob("*.safetensors")
            found.append(load_file(file))
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


# ------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("optimizer", [None, AdamWInBackward()], ids=["adamw", "in-backward"])
@pytest.mark.parametrize("precision", [None, BF16()], ids=["fp32", "bf16"])
def test_an_optimizer_on_the_host_goes_on_to_the_bit(
    precision: Technique | None, optimizer: Technique | None, tmp_path: Path
) -> None:
    card = small("esm2_t6_8m", dropout=0.1)
    techniques: dict[str, Technique] = {"offload": Optimizer()}
    techniques |= {} if precision is None else {"precision": precision}
    techniques |= {} if optimizer is None else {"optimizer": optimizer}
    task = task_of("sequence_regression", card)
    whole, killed, resumed = (_built(card, **techniques) for _ in range(3))

    def steps(setup: Setup, *seeds: int) -> None:
        for seed in seeds:
            train_step(setup, batches(task, LENGTHS, 3, 1, seed=seed))

    torch.manual_seed(5)
    steps(whole, 0, 1)
    torch.manual_seed(5)
    steps(killed, 0, 1)
    state.save(tmp_path / "last.pt", killed, state.Progress(step=2))
    steps(whole, 2, 3)
    steps(resumed, 7)  # another past
    assert state.restore(tmp_path / "last.pt", resumed).step == 2
    steps(resumed, 2, 3)
    for (name, p), q in zip(whole.trainable().items(), resumed.trainable().values(), strict=True):
        assert torch.equal(p, q), name
    ours, theirs = io.BytesIO(), io.BytesIO()
    assert whole.optimizer is not None
    assert resumed.optimizer is not None
    torch.save(whole.optimizer.state_dict(), ours)
    torch.save(resumed.optimizer.state_dict(), theirs)
    assert len(ours.getvalue()) == len(theirs.getvalue())
    assert repr(whole.optimizer.state_dict()) == repr(resumed.optimizer.state_dict())


def test_masters_of_fp32_parameters_are_the_parameters() -> None:
    card = small("esm2_t6_8m")
    setup = _built(card, offload=Optimizer())
    assert isinstance(setup.optimizer, MasterWeights)
    train_step(setup, batches(setup.task, LENGTHS))  # type: ignore[arg-type]
    for p, master in zip(setup.optimizer.params, setup.optimizer.masters, strict=True):
        assert torch.equal(p, master)
        assert p.untyped_storage()._cdata != master.untyped_storage()._cdata


class _Interrupts(Watcher):
    """Presses Ctrl-C in the fourth step."""

    def stepped(self, step: int, loss: float, rows: int) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)


def test_a_run_resumes_with_its_optimizer_on_the_host(recipes: Recipes) -> None:
    recipe = recipes.write({"techniques.offload": "optimizer", "techniques.precision": "bf16"}, path=recipes.csv())
    whole = train(load_job(recipe), output=recipes.folder / "whole")
    plain = train(load_job(recipe, ["techniques.offload=none"]), output=recipes.folder / "plain")
    with pytest.raises(Interrupted, match="stopped after step 4"):
        train(load_job(recipe), output=recipes.folder / "again", watcher=_Interrupts())
    again = train(load_job(recipe), output=recipes.folder / "again", resume=True)
    assert whole.summary["techniques"]["offload"] == "optimizer"
    weights = [(run.folder.model / "model.safetensors").read_bytes() for run in (whole, plain, again)]
    assert weights[0] == weights[1], "trained as without"
    assert weights[0] == weights[2], "resumed to the bit"


@pytest.mark.parametrize("technique", [Activations(), Optimizer(), Weights()], ids=lambda t: t.name)
def test_a_step_that_runs_out_of_memory_leaves_nothing_and_is_taken_again(technique: Technique) -> None:
    card = small("antiberty", dropout=0.1, hidden_size=WIDTH, intermediate_size=INNER)
    task = task_of("sequence_regression", card)
    adapter = LoRA(rank=2) if technique.name == "weights" else next(t for t in defaults() if t.key == "adapter")
    given, batch = {"offload": technique, adapter.key: adapter}, [task.blank_batch(card, 16, 64)]
    peaks = predicted(card, task, defaults(**given), 16, 64).peaks()
    setup, untouched = (_built(card, **given) for _ in range(2))
    for one in (setup, untouched):
        _seeded_step(one, batch)  # which makes the states
    ran_out = attempt(setup, batch, int(0.9 * max(peaks["forward"], peaks["backward"])))
    assert isinstance(ran_out, RanOut)
    assert (ran_out.phase in ("forward", "backward"), ran_out.weights_changed) == (True, False)
    assert torch.equal(_seeded_step(setup, batch).loss, _seeded_step(untouched, batch).loss)
    for p, q in zip(setup.model.parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(p, q)


def _seeded_step(setup: Setup, batch: Any) -> StepResult:
    torch.manual_seed(3)
    return train_step(setup, batch)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("techniques", "said"),
    [
        ({"offload": Weights()}, "offload: weights: adapter: full trains the weights that would be on the host; write"),
        (
            {"offload": Weights(), "adapter": LoRA(), "quantization": NF4()},
            "offload: weights: quantization: nf4 holds the weights in codes, which stay on the device; choose one",
        ),
        (
            {"offload": Optimizer(), "optimizer": Adafactor()},
            "offload: optimizer: optimizer adafactor cannot step on the host; choose optimizer adamw or adamw-in-backw",
        ),
        ({"offload": Optimizer(), "optimizer": AdamW8bit()}, "optimizer adamw-8bit cannot step on the host; choose"),
        (
            {"offload": Optimizer(), "precision": BF16Pure()},
            "precision bf16-pure has no fp32 masters to keep on the host; choose precision bf16 or fp32",
        ),
        (
            {"offload": Weights(smallest=GIB), "adapter": LoRA()},
            "offload: weights: no block of esm2_t6_8m has a weight of 1073741824 bytes or more; make smallest lower",
        ),
    ],
    ids=["trained", "codes", "adafactor", "8bit", "pure", "small"],
)
def test_what_makes_no_sense_is_refused(techniques: dict[str, Technique], said: str) -> None:
    with pytest.raises(InputError) as caught:
        _built(small("esm2_t6_8m"), **techniques)
    assert said in str(caught.value)


@pytest.mark.parametrize("technique", [Activations(), Weights()], ids=lambda t: t.name)
def test_blocks_must_be_known(technique: Technique) -> None:
    card = small("esm2_t6_8m")
    blockless = card.model_copy(update={"roles": {k: v for k, v in card.roles.items() if k != "block"}})
    with pytest.raises(InputError, match=f"offload: {technique.name}: esm2_t6_8m has no role block"):
        _built(blockless, adapter=LoRA(), offload=technique)


def test_a_recipe_is_told_its_line(recipes: Recipes) -> None:
    with pytest.raises(
        InputError, match=r"tiny.yaml:\d+ techniques.offload: weights: adapter: full trains the weights"
    ):
        recipes.job({"techniques.offload": "weights"})


# ------------------------------------------------------------------------------------------------ planning


def _decided(recipes: Recipes, device: str, host: int | None, **techniques: Any) -> Any:
    job = recipes.job({"techniques": {"precision": "fp32", "adapter": "full", "optimizer": "adamw", **techniques}})
    return decide(job, Workload(20, 16, "a test"), Limits(find(device), 8 * GIB, host, "a test"))


def test_on_a_cpu_the_planner_never_chooses_it_and_says_why(recipes: Recipes) -> None:
    either = {"none": {}, "activations": {}, "optimizer": {}}
    decision = _decided(recipes, "cpu", None, checkpointing="none", offload=either)
    assert {t.key: t.name for t in decision.chosen.techniques}["offload"] == "none"
    reasons = [r.reason for r in decision.rejected if not r.reason.startswith("not tried")]
    assert reasons == ["offload gains nothing: on a CPU, host and device are the same memory"] * 2


def test_by_hand_it_is_planned_on_a_cpu_with_all_its_bytes(recipes: Recipes) -> None:
    with_, without = (_decided(recipes, "cpu", None, checkpointing="none", offload=o) for o in ("optimizer", "none"))
    assert with_.fits
    # A second copy of the weights, in fp32.
    copies = with_.chosen.peak_bytes - without.chosen.peak_bytes
    assert copies == pytest.approx(without.chosen.estimate.peak_by_category["parameters"], rel=0.1)
    assert with_.chosen.host_bytes == with_.chosen.peak_bytes, "host and device are one"


def test_the_host_is_a_budget(recipes: Recipes) -> None:
    plenty = _decided(recipes, "t4", 8 * GIB, offload="optimizer")
    assert plenty.fits
    needed = plenty.chosen.host_bytes
    assert needed > 0
    assert _decided(recipes, "t4", needed, offload="optimizer").fits
    short = _decided(recipes, "t4", needed - 1, offload="optimizer")
    assert not short.fits
    assert "nothing fits the host; the smallest plan does not fit the host: " in short.reasons[0]
    either = _decided(recipes, "t4", 0, checkpointing="none", offload={"optimizer": {}, "none": {}})
    assert {t.key: t.name for t in either.chosen.techniques}["offload"] == "none"
    assert any(r.reason.startswith("does not fit the host: ") for r in either.rejected)
    assert either.chosen.host_bytes == 0


def test_beside_a_gpu_of_this_machine_the_host_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = find("cpu").memory_bytes
    monkeypatch.setattr(planner, "detect", lambda: find("t4"))
    found = limits_of(Budget()).host_bytes
    assert found is not None
    assert found == pytest.approx(here, rel=0.2)
    assert limits_of(Budget(host=7)).host_bytes == 7
    assert limits_of(Budget(gpu="t4")).host_bytes is None, "that of another machine is not known"
    monkeypatch.setattr(planner, "detect", lambda: find("cpu"))
    assert limits_of(Budget()).host_bytes is None, "host and device are one"


def test_what_the_host_has_free_is_looked_at_before_training_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 16 * GIB))
    gpu = torch.device("cuda")
    free = what_is_free(Limits(find("t4"), 16 * GIB, None, "a test"), gpu).host_bytes
    assert free == pytest.approx(find("cpu").memory_bytes, rel=0.2)
    assert what_is_free(Limits(find("t4"), 16 * GIB, 5, "a test"), gpu).host_bytes == 5
    assert what_is_free(Limits(find("t4"), 16 * GIB, 2**60, "a test"), gpu).host_bytes == pytest.approx(free, rel=0.2)
    assert what_is_free(Limits(find("cpu"), GIB, None, "a test"), CPU).host_bytes is None


def test_people_see_what_is_on_the_host(recipes: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    job = recipes.job({"techniques.offload": "optimizer"})
    for device, shown in (("t4", True), ("cpu", False)):
        show_plan(job, decide(job, Workload(20, 16, "a test"), Limits(find(device), 8 * GIB, None, "a test")))
        out = capsys.readouterr().out
        assert ("on the host: " in out) == shown
        assert not shown or "(optimizer " in out


# ------------------------------------------------------------------------------------------------ places


def test_places_end_where_their_statement_ends() -> None:
    assert place() == DEVICE
    with placed(HOST):
        with placed(LINK):
            assert place() == LINK
        assert place() == HOST
    with pytest.raises(RuntimeError, match="made to fail"), placed(LINK):
        _fails()
    assert place() == DEVICE


def test_what_is_made_at_a_place_is_counted_there_and_the_rest_on_the_device() -> None:
    with without_storage("accelerator") as (device, ledger):
        host = Host(device)
        a = torch.empty(256, device=device)
        b = host.take(a)
        with host.working():
            c = b + 1
        d = host.bring(b)
        e = d + 1
        assert ledger.record.devices == ["meta", PINNED, HOST, "meta", "meta"]
        assert ledger.record.alive() == 3 * 1024
        host.send(c, e)
        ledger.close()
    assert ledger.record.devices[5:] == [PINNED]
    assert on_host(ledger.record) == {"other": 3 * 1024}


def test_transfers_and_new_memory_are_as_asked_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be run here: a CUDA device gets page-locked memory, filled by the transfer alone."""
    asked: list[dict[str, Any]] = []
    plain = torch.empty

    def empty(shape: Any, **options: Any) -> torch.Tensor:
        asked.append(dict(options))
        return plain(shape, dtype=options["dtype"])

    monkeypatch.setattr(host_module.torch, "empty", empty)
    host = Host(torch.device("cuda"))
    host.take(torch.ones(3))
    host.empty((3,), torch.float32, pinned=False)
    host.bring(torch.ones(3))
    assert [(str(a["device"]), a.get("pin_memory")) for a in asked] == [("cpu", True), ("cpu", False), ("cuda", None)]
