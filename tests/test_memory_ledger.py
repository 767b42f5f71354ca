"""The ledger against closed forms: what is alive, since when, in which phase, and under which name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.memory.ledger import OUTSIDE, Ledger, Record

KIB = 1024
WORLDS = ("real", "fake", "meta")


@pytest.fixture(name="device", params=WORLDS)
def _device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Tensors with values, without storage but with the kernels of the CPU, and without anything."""
    if request.param == "fake":
        with FakeTensorMode():
            yield torch.device("cpu")
    else:
        yield torch.device("meta" if request.param == "meta" else "cpu")


def _kib(device: torch.device, count: int = 1) -> torch.Tensor:
    """A tensor of `count` KiB."""
    return torch.empty(count * KIB // 4, device=device)


def test_every_new_storage_counts_with_its_bytes(device: torch.device) -> None:
    with Ledger() as ledger:
        a = torch.empty(3, 5, device=device)
        b = torch.empty(7, dtype=torch.bfloat16, device=device)
        c = torch.empty(11, dtype=torch.bool, device=device)
    assert ledger.record.sizes == [3 * 5 * 4, 7 * 2, 11]
    assert ledger.record.events == [1, 2, 3]
    assert set(ledger.record.devices) == {device.type}
    del a, b, c


def test_views_are_their_base(device: torch.device) -> None:
    with Ledger() as ledger, ledger.phase("forward"):
        a = torch.empty(8, 16, device=device)
        views = [a.t(), a.view(128), a[2:4], a.unsqueeze(0).expand(5, 8, 16), a.detach(), a.chunk(2)[1]]
        del a
        views.clear()
    assert ledger.record.sizes == [8 * 16 * 4]
    assert ledger.record.events == [1, -1], "the base dies with its last view"
    assert ledger.record.peaks()["forward"] == 8 * 16 * 4


def test_operations_in_place_allocate_nothing(device: torch.device) -> None:
    with Ledger() as ledger:
        a = _kib(device)
        a += 1
        a.mul_(2).clamp_(min=0)
        a[3:].zero_()
        torch.add(a, 1, out=a)
    assert ledger.record.sizes == [KIB]


def test_storages_are_freed_when_nothing_holds_them(device: torch.device) -> None:
    with Ledger() as ledger, ledger.phase("forward"):
        a = _kib(device)
        for _ in range(3):
            a = a + 1
        held = [_kib(device, 2)]
        del a
        held.clear()
    assert ledger.record.events == [1, 2, -1, 3, -2, 4, -3, 5, -4, -5]
    assert ledger.record.peaks() == {OUTSIDE: 0, "forward": 3 * KIB}


def test_a_chain_keeps_what_backward_needs_and_no_more(device: torch.device) -> None:
    """x (1 KiB) -> exp -> exp -> sum: each exp saves its result; backward makes a gradient a step, frees as it goes."""
    x = _kib(device).requires_grad_()
    with Ledger() as ledger:
        ledger.label("parameters", [x])
        with ledger.phase("forward"):
            loss = x.exp().exp().sum()
        with ledger.phase("backward"):
            loss.backward()
        ledger.label("gradients", [x.grad])
    peaks = ledger.record.peaks()
    assert peaks["forward"] == KIB + 2 * KIB + 4, "x, two results and the loss"
    # The seed (4 bytes) is expanded as a view. First product: 1 KiB beside all of the above, and the second result
    # goes. Then the second product beside the first and the first result: as much.
    assert peaks["backward"] == KIB + 2 * KIB + 4 + 4 + KIB
    alive = sum(ledger.record.deltas())
    assert alive == KIB + KIB + 4, "x, its gradient and the loss"


def test_a_linear_layer_in_closed_form(device: torch.device) -> None:
    """B x I -> B x O without bias: forward holds x, W, out; backward adds dW (O x I) to the output's gradient."""
    rows, inputs, outputs = 6, 32, 48
    layer = nn.Linear(inputs, outputs, bias=False, device=device)
    x = torch.empty(rows, inputs, device=device)
    with Ledger() as ledger:
        ledger.label("parameters", layer.parameters())
        ledger.label("batch", [x])
        with ledger.phase("forward"):
            out = layer(x)
        with ledger.phase("backward"):
            out.backward(torch.empty(rows, outputs, device=device))
        ledger.label("gradients", [layer.weight.grad])
    weight, batch, result = 4 * inputs * outputs, 4 * rows * inputs, 4 * rows * outputs
    assert ledger.record.peaks() == {
        OUTSIDE: 2 * weight + batch + result,  # after the last phase: W, dW, x, out
        "forward": weight + batch + result,
        "backward": 2 * weight + batch + 2 * result,
    }
    assert ledger.record.at_peak() == {
        "parameters": weight, "batch": batch, "activations": result, "temporaries": result, "gradients": weight,
    }  # fmt: skip


def test_a_phase_begins_with_what_is_alive(device: torch.device) -> None:
    with Ledger() as ledger:
        a = _kib(device, 5)
        with ledger.phase("forward"):
            pass
        with ledger.phase("backward"):
            b = _kib(device)
            del a
        with ledger.phase("forward"):
            c = _kib(device, 2)
    assert ledger.record.peaks() == {OUTSIDE: 5 * KIB, "forward": 5 * KIB, "backward": 6 * KIB}
    del b, c


def test_phases_can_be_nested_and_end_with_an_error(device: torch.device) -> None:
    with Ledger() as ledger:
        with ledger.phase("forward"):
            a = _kib(device)
            with ledger.phase("backward"):
                b = _kib(device, 3)
            del b
            c = _kib(device)
        with pytest.raises(ZeroDivisionError), ledger.phase("optimizer"):
            raise ZeroDivisionError
        d = _kib(device, 9)
    assert [phase for _, phase in ledger.record.marks] == [
        OUTSIDE, "forward", "backward", "forward", OUTSIDE, "optimizer", OUTSIDE
    ]  # fmt: skip
    assert ledger.record.peaks() == {OUTSIDE: 11 * KIB, "forward": 4 * KIB, "backward": 4 * KIB, "optimizer": 2 * KIB}
    del a, c, d


def test_categories_sum_to_the_peak_exactly(device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(33, 17, device=device), nn.Tanh(), nn.Linear(17, 5, device=device))
    with Ledger() as ledger:
        ledger.label("parameters", model.parameters())
        for _ in range(3):
            x = torch.empty(7, 33, device=device)
            ledger.label("batch", [x])
            with ledger.phase("forward"):
                loss = model(x).square().sum()
            with ledger.phase("backward"):
                loss.backward()
            ledger.label("gradients", (p.grad for p in model.parameters() if p.grad is not None))
    record = ledger.record
    inside = {phase: peak for phase, peak in record.peaks().items() if phase != OUTSIDE}
    assert sum(record.at_peak().values()) == max(inside.values())
    assert record.at_peak()["parameters"] == 4 * (33 * 17 + 17 + 17 * 5 + 5)
    assert record.at_peak()["gradients"] == record.at_peak()["parameters"]
    assert record.at_peak()["batch"] == 4 * 7 * 33


def test_the_peak_of_building_is_none_of_the_step(device: torch.device) -> None:
    with Ledger() as ledger:
        big = _kib(device, 100)
        del big
        small = _kib(device)
        ledger.label("parameters", [small])
        with ledger.phase("forward"):
            a = _kib(device)
    assert ledger.record.at_peak() == {"parameters": KIB, "activations": KIB}
    del a


def test_labels_count_what_was_not_seen_and_relabelling_touches_the_living_only(device: torch.device) -> None:
    before = _kib(device)
    with Ledger() as ledger:
        ledger.label("parameters", [before, before])
        with ledger.phase("optimizer"):
            state, passing = _kib(device), _kib(device)
            del passing
        ledger.relabel_alive("temporaries", "optimizer")
    assert ledger.record.sizes == [KIB] * 3
    assert ledger.record.labels == {0: "parameters", 1: "optimizer", 2: "temporaries"}
    del state


def test_nothing_is_recorded_after_closing(device: torch.device) -> None:
    with Ledger() as ledger:
        a = _kib(device)
        ledger.close()
    del a
    assert ledger.record.events == [1]


def test_other_sizes_can_be_replayed() -> None:
    import numpy as np

    record = Record(
        sizes=[10, 20], devices=["cpu", "cpu"], events=[1, 2, -1], marks=[(0, OUTSIDE), (0, "forward")],
        labels={0: "activations", 1: "batch"}, cost_marks=[0, 0],
    )  # fmt: skip
    assert record.peaks() == {OUTSIDE: 0, "forward": 30}
    assert record.peaks(np.array([1, 5])) == {OUTSIDE: 0, "forward": 6}
    assert record.at_peak(np.array([1, 5])) == {"activations": 1, "batch": 5}
    assert Record().peaks() == {OUTSIDE: 0}
    assert Record().at_peak() == {}


def test_questions_to_values_that_do_not_exist_are_answered_with_zero() -> None:
    with Ledger():
        assert torch.empty((), device="meta").item() == 0.0
        assert torch.empty((), dtype=torch.int64, device="meta").item() == 0
        assert not bool(torch.empty((), dtype=torch.bool, device="meta"))
