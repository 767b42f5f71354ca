"""Optimizers: the library's own update to the bit, in the memory that was predicted, from every checkpoint on."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import (
    CPU,
    Steps,
    batches,
    changed,
    clipping,
    defaults,
    measured,
    predicted,
    run_steps,
    small,
    task_of,
)
from torch import nn

from zoo.domain import find_model
from zoo.errors import InputError
from zoo.memory.roofline import Rates
from zoo.memory.scaling import Family, Tape
from zoo.memory.trace import World, without_storage
from zoo.step import PHASES, Setup, build, train_step
from zoo.techniques import Technique, registry
from zoo.techniques._masters import InBackward
from zoo.techniques.adapter import LoRA
from zoo.techniques.checkpointing import BlockCheckpointing
from zoo.techniques.optimizer import Adafactor, AdamW, AdamW8bit, AdamWInBackward, MasterWeights
from zoo.techniques.precision import BF16, FP32, BF16Pure
from zoo.training.meter import CpuMeter
from zoo.training.values import loader_of

OPTIONS: tuple[type[Technique], ...] = (AdamW, AdamWInBackward, AdamW8bit, Adafactor)
PRECISIONS: tuple[type[Technique], ...] = (FP32, BF16, BF16Pure)
ALLOWED = [
    pytest.param(option, precision, id=f"{option.name}-{precision.name}")
    for option in OPTIONS
    for precision in PRECISIONS
    if precision is not BF16Pure or option in (AdamW, AdamWInBackward)
]
LENGTHS = (17, 9, 30, 12)


def _steps(name: str, kind: str, count: int, dropout: float = 0.1, **options: Technique) -> Steps:
    card = small(name, dropout=dropout)
    task = task_of(kind, card)
    return run_steps(card, task, defaults(**options), [batches(task, LENGTHS, 3, 1, seed=i) for i in range(count)])


def _built(name: str = "esm2_t6_8m", **options: Technique) -> Setup:
    card = small(name)
    task = task_of("sequence_regression", card)
    return build(card, task, defaults(**options), CPU, weight_decay=0.1, load=loader_of(card, "random", 0))


# ------------------------------------------------------------------------------------------------ in the backward pass


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("antiberty", "masked_language_modelling", id="output-tied-to-input"),
        pytest.param("rxnmapper_albert", "sequence_regression", id="layers-tied"),
    ],
)
def test_a_step_in_the_backward_pass_is_the_same_step(
    name: str, kind: str, recomputed: bool, precision: type[Technique]
) -> None:
    """Dropout, two micro-batches a step, parameters that several modules share."""
    options: dict[str, Technique] = {"precision": precision()}
    if recomputed:
        options["checkpointing"] = BlockCheckpointing()
    after = _steps(name, kind, 3, **options, optimizer=AdamW())
    inside = _steps(name, kind, 3, **options, optimizer=AdamWInBackward())
    for ours, theirs in zip(inside.weights, after.weights, strict=True):
        assert [n for n in theirs if not torch.equal(ours[n], theirs[n])] == []
    assert all(torch.equal(a, b) for a, b in zip(inside.losses, after.losses, strict=True))
    assert not torch.equal(after.losses[0], after.losses[1])
    assert any(not torch.equal(after.weights[0][n], after.weights[2][n]) for n in after.weights[0])


def test_gradients_never_coexist_in_the_last_backward_pass_and_wait_in_the_others() -> None:
    setup = _built(optimizer=AdamWInBackward())
    task = setup.task
    params = list(setup.trainable().values())
    before = [p.detach().clone() for p in params]
    alive: list[tuple[bool, int]] = []
    for p in params:
        p.register_hook(  # called before a gradient is accumulated
            lambda _: alive.append((setup.last_micro_batch, sum(q.grad is not None for q in params)))
        )
    train_step(setup, batches(task, LENGTHS))
    assert max(held for _, held in alive) == 0
    stepped = sum(not torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert stepped == len(alive) > 20
    alive.clear()
    now = [p.detach().clone() for p in params]
    moved_early: list[int] = []
    forward = setup.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        moved_early.append(sum(not torch.equal(p, b) for p, b in zip(params, now, strict=True)))
        return forward(*args, **kwargs)

    setup.model.forward = watched  # type: ignore[method-assign]
    train_step(setup, batches(task, LENGTHS, 1, 2, 1))
    assert moved_early == [0, 0, 0], "a parameter was stepped before its gradient was complete"
    held = [[n for last, n in alive if last is which] for which in (False, True)]
    assert max(held[0]) == stepped
    assert held[1] == sorted(held[1], reverse=True)
    assert held[1][-1] <= 1, "gradients are dropped one after the other"
    assert all(p.grad is None for p in params)


def test_a_parameter_without_a_part_in_the_last_micro_batch_is_stepped_too() -> None:
    def parameters() -> tuple[nn.Parameter, nn.Parameter]:
        return nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))

    early, late = parameters()
    last = False
    optimizer = InBackward((early, late), [torch.optim.AdamW([p], lr=0.1) for p in (early, late)], lambda: last)
    (early * 2 + late).sum().backward()
    assert torch.equal(early, torch.ones(3, 3))
    last = True
    (late * 3).sum().backward()
    assert late.grad is None
    assert early.grad is not None
    optimizer.step()
    one, other = parameters()
    plain = torch.optim.AdamW([one, other], lr=0.1)
    (one * 2 + other).sum().backward()
    (other * 3).sum().backward()
    plain.step()
    assert torch.equal(early, one)
    assert torch.equal(late, other)
    assert early.grad is None


def test_a_value_that_is_needed_after_its_step_is_an_error_and_no_wrong_gradient() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = InBackward((first,), [torch.optim.AdamW([first], lr=0.1)], lambda: True)
    loss = (second * first.detach()).sum() + first.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert optimizer.param_groups


def test_hooks_do_not_keep_a_setup_alive() -> None:
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        p = nn.Parameter(torch.ones(3))
        optimizer = InBackward((p,), [torch.optim.AdamW([p], lr=0.1)], lambda: True)
        here = weakref.ref(optimizer)
        del optimizer
        assert here() is None
        p.sum().backward()
        assert torch.equal(p, torch.ones(3)), "nobody is left to step it"
    finally:
        gc.enable()


def test_clipping_is_refused_where_gradients_never_coexist() -> None:
    card = small("esm2_t6_8m")
    task = task_of("sequence_regression", card)
    with pytest.raises(InputError) as caught:
        build(card, task, defaults(optimizer=AdamWInBackward()), CPU, max_grad_norm=0.5)
    assert str(caught.value) == (
        "optimizer: adamw-in-backward: max_grad_norm is 0.5, and the norm needs all gradients before the first step; "
        "leave max_grad_norm out or choose optimizer adamw"
    )


# ------------------------------------------------------------------------------------------------ the libraries' own


def _library(name: str) -> Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]:
    bitsandbytes = importlib.import_module("bitsandbytes")
    return {
        "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
        "adamw-in-backward": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
        "adamw-8bit": lambda groups, lr: bitsandbytes.optim.AdamW8bit(groups, lr=lr),
        "adafactor": lambda groups, lr: torch.optim.Adafactor(groups, lr=lr),
    }[name]


@pytest.mark.parametrize("precision", [FP32, BF16], ids=lambda p: p.name)
@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.name)
def test_updates_are_those_of_the_library_run_by_hand(option: type[Technique], precision: type[Technique]) -> None:
    card = small("esm2_t6_8m")
    task = task_of("sequence_regression", card)
    steps = [batches(task, LENGTHS, seed=seed) for seed in range(4)]
    found = run_steps(card, task, defaults(optimizer=option(), precision=precision()), steps, learning_rate=0.01)
    start = build(card, task, defaults(precision=precision()), CPU, load=loader_of(card, "random", 0)).trainable()
    copies = {n: nn.Parameter(p.detach().float().clone()) for n, p in start.items()}
    wide = [p for p in copies.values() if p.ndim > 1]
    narrow = [p for p in copies.values() if p.ndim < 2]
    assert max(p.numel() for p in wide) > 4096 > min(p.numel() for p in wide), "both kinds of 8-bit states"
    groups = [{"params": wide, "weight_decay": 0.01}, {"params": narrow, "weight_decay": 0.0}]
    library = _library(option.name)(groups, 0.01)
    for gradients, weights in zip(found.gradients, found.weights, strict=True):
        for name, p in copies.items():
            p.grad = gradients[name].float() if name in gradients else None
        library.step()
        for name, p in copies.items():
            assert torch.equal(weights[name], p.detach().to(weights[name].dtype)), name
    assert any(not torch.equal(found.weights[-1][n].float(), p.float()) for n, p in start.items())


@pytest.mark.parametrize(("option", "precision"), ALLOWED)
def test_matrices_are_decayed_and_vectors_are_not(option: type[Technique], precision: type[Technique]) -> None:
    setup = _built(optimizer=option(), precision=precision())
    assert setup.optimizer is not None
    seen = 0
    for group in setup.optimizer.param_groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.1 if p.ndim > 1 else 0.0)
            seen += 1
    assert seen == len(setup.trainable())


@pytest.mark.parametrize(("option", "precision"), ALLOWED)
def test_the_rate_of_the_groups_is_the_rate_of_the_step(option: type[Technique], precision: type[Technique]) -> None:
    setup = _built(optimizer=option(), precision=precision())
    assert setup.optimizer is not None
    before = {n: p.detach().clone() for n, p in setup.trainable().items()}
    for rate, moves in ((0.0, False), (0.01, True)):
        for group in setup.optimizer.param_groups:
            group["lr"] = rate
        train_step(setup, batches(setup.task, LENGTHS))  # type: ignore[arg-type]
        moved = [n for n, p in setup.trainable().items() if not torch.equal(p, before[n])]
        assert bool(moved) is moves


def test_parameters_of_adafactor_reach_it() -> None:
    given = Adafactor(beta2_decay=-0.5, epsilon1=1e-9, epsilon2=0.01, clipping_threshold=2.0)
    setup = _built(optimizer=given)
    assert setup.optimizer is not None
    for group in setup.optimizer.param_groups:
        assert (group["beta2_decay"], group["eps"], group["d"]) == (-0.5, (1e-9, 0.01), 2.0)
    assert given.describe() == "adafactor(beta2_decay=-0.5, epsilon1=1e-09, epsilon2=0.01, clipping_threshold=2.0)"


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("option", [AdamW8bit, Adafactor], ids=lambda o: o.name)
def test_optimizers_that_cannot_round_at_random_are_refused_without_masters(option: type[Technique]) -> None:
    card = small("esm2_t6_8m")
    with pytest.raises(InputError) as caught:
        build(card, task_of("sequence_regression", card), defaults(precision=BF16Pure(), optimizer=option()), CPU)
    assert str(caught.value) == (
        f"optimizer: {option.name}: rounds to nearest, which loses small updates of bf16 parameters; with precision "
        "bf16-pure choose optimizer adamw or adamw-in-backward, or with this optimizer precision bf16 or fp32"
    )


def test_a_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(InputError, match=r'adamw-8bit: bitsandbytes is not installed; run pip install "science-zoo\['):
        _built(optimizer=AdamW8bit())


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.name)
def test_nothing_to_train_is_an_error(option: type[Technique]) -> None:
    setup = _built()
    setup.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        option().apply(setup)


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(("option", "precision"), ALLOWED)
def test_a_resumed_optimizer_goes_on_to_the_bit(option: type[Technique], precision: type[Technique]) -> None:
    def built() -> Setup:
        return _built(optimizer=option(), precision=precision())

    def steps(setup: Setup, *seeds: int) -> None:
        for seed in seeds:
            train_step(setup, batches(setup.task, LENGTHS, 3, 1, seed=seed))  # type: ignore[arg-type]

    whole, first, second = built(), built(), built()
    steps(whole, 0, 1, 2, 3)
    steps(first, 0, 1)
    file = io.BytesIO()
    assert first.optimizer is not None
    torch.save({"optimizer": first.optimizer.state_dict(), "model": first.model.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    steps(second, 7)  # another past
    second.model.load_state_dict(content["model"])
    assert second.optimizer is not None
    second.optimizer.load_state_dict(content["optimizer"])
    steps(second, 2, 3)
    for (name, p), q in zip(whole.trainable().items(), second.trainable().values(), strict=True):
        assert torch.equal(p, q), name
    assert _flat(second.optimizer.state_dict()) == _flat(whole.optimizer.state_dict())  # type: ignore[union-attr]
    assert _flat(first.optimizer.state_dict()) != _flat(whole.optimizer.state_dict())  # type: ignore[union-attr]


def _flat(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: _flat(member) for key, member in value.items()}
    return [_flat(member) for member in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------------------------ memory


MEASURED = [
    pytest.param(*allowed.values, accumulation, id=f"{allowed.id}-{accumulation}")
    for allowed in ALLOWED
    for accumulation in ((1, 3) if allowed.values[0] is AdamWInBackward else (1,))
]


@pytest.mark.parametrize("adapter", [registry()["adapter"][0](), LoRA()], ids=lambda a: a.name)
@pytest.mark.parametrize(("option", "precision", "accumulation"), MEASURED)
def test_predicted_peaks_equal_measured_ones(
    option: type[Technique], precision: type[Technique], accumulation: int, adapter: Technique
) -> None:
    card = changed(find_model("esm2_t6_8m"), num_hidden_layers=2)
    task = task_of("sequence_regression", card)
    techniques = defaults(optimizer=option(), precision=precision(), adapter=adapter)
    worlds: tuple[World, ...] = ("fake", "meta")
    fake, meta = (
        predicted(card, task, techniques, 8, 64, accumulation=accumulation, world=world).peaks() for world in worlds
    )
    real = measured(card, task, techniques, 8, 64, accumulation=accumulation)
    for phase in PHASES:
        assert fake[phase] == pytest.approx(real[phase], rel=0.001), phase
        assert meta[phase] == pytest.approx(real[phase], rel=0.001), phase


SHAPES = ((4096,), (4095,), (33, 257), (3, 50, 70), (7,), (70001,))
"""Below and above 4096 elements, and no multiples of 256."""


NUMBER = 12
"""Bytes that PyTorch takes for the Python number in ``tensor * 0.9`` while it multiplies."""


def _parameters(device: torch.device) -> list[nn.Parameter]:
    return [nn.Parameter(torch.empty(shape, device=device).fill_(1.0)) for shape in SHAPES]


class _Alone:
    """As much of a setup as an optimizer looks at."""

    def __init__(self, params: list[nn.Parameter], dtype: torch.dtype) -> None:
        self.params = [nn.Parameter(p.detach().to(dtype)) for p in params]
        self.learning_rate, self.weight_decay, self.seed = 0.01, 0.1, 0
        self.master_weights = dtype != torch.float32
        self.stochastic_rounding = self.steps_on_host = False
        self.reference: dict[nn.Parameter, torch.Tensor] = {}
        self.optimizer: Any = None

    def trainable(self) -> dict[str, nn.Parameter]:
        return {str(i): p for i, p in enumerate(self.params)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("option", [AdamW8bit, Adafactor], ids=lambda o: o.name)
def test_a_step_without_storage_allocates_what_a_real_one_does_to_the_byte(
    option: type[Technique], dtype: torch.dtype
) -> None:
    def step(setup: _Alone) -> None:
        for p in setup.params:
            p.grad = torch.ones_like(p)
        setup.optimizer.step()
        setup.optimizer.zero_grad()

    def made(device: torch.device) -> _Alone:
        setup = _Alone(_parameters(device), dtype)
        option().apply(setup)  # type: ignore[arg-type]
        return setup

    real = made(CPU)
    meter = CpuMeter()
    for name in ("first", "second"):
        with meter.phase(name):
            step(real)
    peaks = meter.stop()
    for world in ("fake", "meta"):
        with without_storage(world) as (device, ledger):  # type: ignore[arg-type]
            setup = made(device)
            held = int(ledger.record.deltas().sum())
            for name in ("first", "second"):
                with ledger.phase(name):
                    step(setup)
            ledger.close()
        tables = 2 * 256 * 4 if option is AdamW8bit and world == "meta" else 0  # values are on the CPU already
        for name, peak in peaks.items():
            found = ledger.record.peaks()[name] - held - tables
            assert found in (peak, peak - NUMBER), (world, name)


def test_a_step_of_8_bits_takes_nothing_but_its_states_from_an_accelerator() -> None:
    with without_storage("accelerator") as (device, ledger):
        setup = _Alone(_parameters(device), torch.float32)
        AdamW8bit().apply(setup)  # type: ignore[arg-type]
        for p in setup.params:
            p.grad = torch.empty_like(p)
        before = sum(s for s, e in zip(ledger.record.sizes, ledger.record.devices, strict=True) if e == "meta")
        with ledger.phase("optimizer"):
            setup.optimizer.step()
        ledger.close()
    numbers = [p.numel() for p in setup.params]
    states = sum(2 * n + 2 * 4 * -(-n // 256) if n >= 4096 else 2 * 4 * n for n in numbers)
    made = sum(s for s, e in zip(ledger.record.sizes, ledger.record.devices, strict=True) if e == "meta") - before
    assert made == states + 2 * 256 * 4


def test_no_gradients_are_left_for_the_optimizer_of_a_step_in_the_backward_pass() -> None:
    card = changed(find_model("esm2_t6_8m"), num_hidden_layers=2)
    task = task_of("sequence_regression", card)
    plain, inside = (predicted(card, task, defaults(optimizer=o()), 2, 16).peaks() for o in (AdamW, AdamWInBackward))
    setup = build(card, task, defaults(), CPU)
    used = sum(p.numel() * 4 for n, p in setup.trainable().items() if "contact_head" not in n)
    assert plain["optimizer"] - inside["optimizer"] == pytest.approx(used, rel=0.02)
    assert plain["backward"] - inside["backward"] > 0.6 * used, "what is left are those of a layer"


def test_three_micro_batches_show_what_five_of_a_step_in_the_backward_pass_take() -> None:
    """The first makes gradients, those in the middle add to them, and the last takes them away."""
    card = changed(find_model("esm2_t6_8m"), num_hidden_layers=2)
    task = task_of("sequence_regression", card)
    techniques = defaults(optimizer=AdamWInBackward(), checkpointing=BlockCheckpointing())
    records = {
        n: predicted(card, task, techniques, 4, 64, accumulation=n, steps=1, count_costs=True) for n in (2, 3, 5)
    }
    rates = Rates(fp32=1e12, half=2e12, bandwidth=1e11, launch=1e-6)
    told = {n: Family(Tape.of(records[n]), None, 0).estimate(0, 4, 5, rates) for n in (2, 3)}
    whole = records[5].peaks()
    for phase in PHASES:
        assert told[AdamWInBackward.passes].peak_by_phase[phase] == pytest.approx(whole[phase], rel=0.001)
    assert told[2].peak_by_phase["backward"] < 0.99 * whole["backward"], "two would not do"
    seconds = Family(Tape.of(records[5]), None, 0).estimate(0, 4, 5, rates).seconds
    assert told[3].seconds == pytest.approx(seconds, rel=0.001)


def test_eight_bits_and_adafactor_hold_less_than_adamw() -> None:
    card = changed(find_model("esm2_t6_8m"), num_hidden_layers=2)
    task = task_of("sequence_regression", card)
    held = {
        option.name: predicted(card, task, defaults(optimizer=option()), 8, 64).at_peak()["optimizer"]
        for option in (AdamW, AdamW8bit, Adafactor)
    }
    assert held["adamw-8bit"] < 0.27 * held["adamw"]
    assert held["adafactor"] < 0.02 * held["adamw"]


def test_only_the_step_in_the_backward_pass_does_without_clipping() -> None:
    assert clipping(defaults()) == 1.0
    assert clipping(defaults(optimizer=AdamWInBackward())) is None


def test_masters_are_driven_by_every_optimizer() -> None:
    for option in (AdamW, AdamW8bit, Adafactor):
        assert isinstance(_built(precision=BF16(), optimizer=option()).optimizer, MasterWeights)
    inside = _built(precision=BF16(), optimizer=AdamWInBackward()).optimizer
    assert isinstance(inside, InBackward)
    assert all(isinstance(o, MasterWeights) for o in inside.optimizers)
