"""Stochastic rounding: right in expectation, the same every time, and no more memory than it says."""

from __future__ import annotations

import io
import math

import pytest
import torch
from small_models import CPU, batches, changed, defaults, predicted, run_steps, small, task_of
from torch import nn

from zoo.domain import find_model
from zoo.memory.trace import without_storage
from zoo.step import build, train_step
from zoo.techniques._stochastic import StochasticAdamW, round_into
from zoo.techniques.optimizer import AdamW, AdamWInBackward
from zoo.techniques.precision import BF16, BF16Pure
from zoo.training.values import loader_of

LENGTHS = (17, 9, 30, 12)
DRAWS = 40_000


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rounded(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    target = torch.empty_like(values, dtype=torch.bfloat16)
    round_into(target, values, _generator(seed))
    return target


# ------------------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "value", [1 + 2**-7 * 0.25, 1 + 2**-7 * 0.5, 1 + 2**-7 * 0.999, 1.9999, 3.14159, 1e-3, 6e-39, 1e-41, 1e30]
)
def test_rounding_is_unbiased(value: float, sign: int) -> None:
    """The mean of many draws of a variable with two values lies within five standard errors of what it should be."""
    values = torch.full((DRAWS,), sign * value, dtype=torch.float32)
    exact = float(values[0])
    bits = values[:1].view(torch.int32)
    lower = bits & -65536
    low, high = (float(b.view(torch.float32)) for b in (lower, lower + 65536))
    up = (exact - low) / (high - low)
    found = _rounded(values).double()
    assert set(found.tolist()) == {low, high}, "only the two neighbours"
    error = float(found.mean()) - exact
    assert abs(error) <= 5 * abs(high - low) * math.sqrt(up * (1 - up) / DRAWS)


def test_rounding_to_nearest_or_towards_zero_would_fail_the_same_comparison() -> None:
    values = torch.full((DRAWS,), 1 + 2**-7 * 0.25)
    allowed = 5 * 2**-7 * math.sqrt(0.25 * 0.75 / DRAWS)
    assert abs(float(values.bfloat16().double().mean()) - float(values[0])) > allowed


def test_numbers_that_bf16_has_stay_as_they_are() -> None:
    values = torch.randn(10_000, generator=_generator()).bfloat16()
    assert torch.equal(_rounded(values.float()), values)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf])
    assert torch.equal(_rounded(special), special.bfloat16())
    assert torch.equal(torch.signbit(_rounded(special)), torch.signbit(special))


def test_what_is_not_a_number_stays_so() -> None:
    """With all bits set, as accelerators write it, a number added to the bits would carry into the sign."""
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, -(2**22)], dtype=torch.int32)
    values = bits.view(torch.float32).repeat(1000)
    assert bool(values.isnan().all())
    assert bool(_rounded(values).isnan().all())


def test_fp32_is_not_rounded() -> None:
    values = torch.randn(100, generator=_generator())
    target = torch.empty(100)
    round_into(target, values, _generator())
    assert torch.equal(target, values)


# ------------------------------------------------------------------------------------------------ updates


def _adamw(p: nn.Parameter, *, stream: int = 0, seed: int = 0, lr: float = 1e-3) -> StochasticAdamW:
    return StochasticAdamW([{"params": [p], "weight_decay": 0.01}], {p: stream}, lr=lr, seed=seed)


def test_in_fp32_it_is_adamw_to_the_bit() -> None:
    ours, theirs = (nn.Parameter(torch.randn(37, 11, generator=_generator())) for _ in range(2))
    optimizer = _adamw(ours)
    plain = torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.01, foreach=False)
    for seed in range(5):
        ours.grad = torch.randn(37, 11, generator=_generator(seed))
        theirs.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
        assert torch.equal(ours, theirs)


def test_updates_below_the_resolution_of_bf16_count() -> None:
    """A gradient of 1 moves every weight by the learning rate a step: 200 steps of 1e-5 make 0.002, half a digit."""
    p = nn.Parameter(torch.ones(DRAWS, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([{"params": [p]}], {p: 0}, lr=1e-5)
    for _ in range(200):
        p.grad = torch.ones_like(p)
        optimizer.step()
    moved = 1 - float(p.double().mean())
    # Below 1 numbers are 2^-8 apart; a walk of 200 roundings has less variance than 200 * 2^-8 * 1e-5.
    assert moved == pytest.approx(0.002, abs=5 * math.sqrt(200 * 2**-8 * 1e-5 / DRAWS) + 2e-5)
    nearest = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    plain = torch.optim.AdamW([nearest], lr=1e-5, weight_decay=0.0)
    for _ in range(200):
        nearest.grad = torch.ones_like(nearest)
        plain.step()
    assert torch.equal(nearest, torch.ones_like(nearest)), "rounded to nearest, nothing ever moves"


def test_second_moments_decay() -> None:
    p = nn.Parameter(torch.ones(DRAWS, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([{"params": [p]}], {p: 0}, lr=0.0)
    for step in range(101):
        p.grad = torch.full_like(p, float(step == 0))
        optimizer.step()
    state = optimizer.state[p]
    assert state["exp_avg_sq"].dtype == torch.bfloat16
    assert float(state["exp_avg_sq"].double().mean()) == pytest.approx(1e-3 * 0.999**100, rel=0.01)
    assert float((state["exp_avg_sq"].double() ** 0.5).mean()) > 0


def test_it_learns_as_fp32_does() -> None:
    """The mean of many weights follows fp32, where rounding to nearest stands still."""
    start = torch.full((DRAWS,), 2.0)
    pure = nn.Parameter(start.bfloat16())
    exact = nn.Parameter(start.clone())
    optimizer, plain = _adamw(pure, lr=1e-4), torch.optim.AdamW([exact], lr=1e-4, weight_decay=0.01)
    for _ in range(50):
        for p in (pure, exact):
            p.grad = p.detach().clone()
        optimizer.step()
        plain.step()
    moved, wanted = (float((p.detach().double() - 2).mean()) for p in (pure, exact))
    assert wanted < -0.004
    assert moved == pytest.approx(wanted, rel=0.03)


# ------------------------------------------------------------------------------------------------ reproducible


def test_random_numbers_follow_from_seed_parameter_and_step() -> None:
    def stepped(*, seed: int = 0, stream: int = 0, before: int = 0, steps: int = 3) -> torch.Tensor:
        torch.manual_seed(before)  # of no importance
        p = nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
        optimizer = _adamw(p, seed=seed, stream=stream)
        for _ in range(steps):
            p.grad = torch.full_like(p, 0.3)
            optimizer.step()
        return p.detach()

    assert torch.equal(stepped(), stepped(before=1))
    assert not torch.equal(stepped(), stepped(seed=1))
    assert not torch.equal(stepped(), stepped(stream=1))


def test_steps_draw_differently() -> None:
    p = nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
    optimizer = _adamw(p)
    seen = []
    for _ in range(3):
        p.grad = torch.full_like(p, 0.3)
        before = p.detach().clone()
        optimizer.step()
        seen.append((p.detach() != before).nonzero().flatten().tolist())
    assert seen[0] != seen[1] != seen[2]


def test_drawing_does_not_touch_the_random_state_of_training() -> None:
    p = nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    before = torch.get_rng_state()
    _adamw(p).step()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_state_is_part_of_the_optimizers() -> None:
    def fresh(seed: int, stream: int) -> tuple[nn.Parameter, StochasticAdamW]:
        p = nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
        return p, _adamw(p, seed=seed, stream=stream)

    def step(p: nn.Parameter, optimizer: StochasticAdamW) -> None:
        p.grad = torch.full_like(p, 0.3)
        optimizer.step()

    p, optimizer = fresh(5, 3)
    step(p, optimizer)
    file = io.BytesIO()
    torch.save((p.detach(), optimizer.state_dict()), file)
    file.seek(0)
    value, state = torch.load(file, weights_only=True)
    step(p, optimizer)
    q, other = fresh(0, 0)  # what it draws comes from the checkpoint
    with torch.no_grad():
        q.copy_(value)
    other.load_state_dict(state)
    step(q, other)
    assert torch.equal(p, q)
    assert other.state[q]["step"] == 2


# ------------------------------------------------------------------------------------------------ in a model


@pytest.mark.parametrize("optimizer", [AdamW(), AdamWInBackward()], ids=lambda o: o.name)
def test_everything_is_in_bf16_but_what_the_card_keeps(optimizer: AdamW) -> None:
    card = small("esm2_t6_8m").model_copy(update={"fp32_modules": ("**.LayerNorm",)})
    task = task_of("sequence_regression", card)
    setup = build(
        card, task, defaults(precision=BF16Pure(), optimizer=optimizer), CPU, load=loader_of(card, "random", 0)
    )
    islands = {n for n in setup.trainable() if ".LayerNorm." in n}
    assert islands
    seen: dict[str, torch.dtype] = {}
    for name, p in setup.trainable().items():
        p.register_hook(lambda g, name=name: seen.__setitem__(name, g.dtype))
    train_step(setup, batches(task, LENGTHS))
    states = [s for o in getattr(setup.optimizer, "optimizers", [setup.optimizer]) for s in o.state.items()]
    assert len(states) == len(seen) > 20
    for name, p in setup.trainable().items():
        wanted = torch.float32 if name in islands else torch.bfloat16
        assert p.dtype == wanted
        assert seen.get(name, wanted) == wanted
    for p, state in states:
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == p.dtype
    assert not setup.reference


def test_training_differs_from_master_weights_by_rounding_only() -> None:
    card = small("esm2_t6_8m")
    task = task_of("sequence_regression", card)
    steps = [batches(task, LENGTHS, seed=seed) for seed in range(3)]
    pure, masters = (
        run_steps(card, task, defaults(precision=p), steps, learning_rate=1e-3) for p in (BF16Pure(), BF16())
    )
    apart = total = 0.0
    for name, weight in masters.weights[-1].items():
        apart += float((pure.weights[-1][name].double() - weight.double()).square().sum())
        total += float(weight.double().square().sum())
    assert 0 < (apart / total) ** 0.5 < 2**-7


def test_a_parameter_takes_8_bytes_where_master_weights_take_16() -> None:
    card = changed(find_model("esm2_t6_8m"), num_hidden_layers=2)
    task = task_of("sequence_regression", card)
    count = sum(p.numel() for p in build(card, task, defaults(), torch.device("meta")).model.parameters())
    held = {p.name: predicted(card, task, defaults(precision=p), 8, 64).at_peak() for p in (BF16(), BF16Pure())}
    assert held["bf16-pure"]["parameters"] == 2 * count
    assert held["bf16-pure"]["optimizer"] == pytest.approx(4 * count, rel=0.01)
    assert held["bf16"]["optimizer"] == pytest.approx(12 * count, rel=0.01)


def test_temporaries_are_those_of_the_largest_parameter() -> None:
    """Three fp32 numbers an element (or two, random bits and a mask), of one parameter at a time."""
    with without_storage("fake") as (device, ledger):
        params = [nn.Parameter(torch.empty(n, dtype=torch.bfloat16, device=device)) for n in (1000, 30_000, 20_000)]
        optimizer = StochasticAdamW([{"params": params}], {p: i for i, p in enumerate(params)}, lr=1e-3)
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
        held = int(ledger.record.deltas().sum())
        with ledger.phase("optimizer"):
            optimizer.step()
        ledger.close()
    assert ledger.record.peaks()["optimizer"] - held == 13 * 30_000
