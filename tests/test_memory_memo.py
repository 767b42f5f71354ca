"""Looking operations up instead of running them again changes nothing that is recorded."""

from __future__ import annotations

import functools
import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from small_models import NAMES, applies, defaults, predicted, small, task_of

from zoo.memory import memo, trace
from zoo.memory.ledger import Record
from zoo.techniques import Technique, registry
from zoo.techniques.adapter import LoRA

aten: Any = torch.ops.aten


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without memories, and leaves none."""
    monkeypatch.setattr(memo, "_operations", {})


def _remembered() -> int:
    """Results that are remembered of all operations."""
    return sum(len(known.made or ()) for known in memo._operations.values())


TOGETHER = ("precision", "adapter", "checkpointing")
FROZEN = ("quantization", "offload")
"""Keys with options that ask for a frozen trunk."""
TRIED = [[o for o in registry()[key] if o.automatic] for key in TOGETHER]
"""What the planner tries of these runs in every combination, all other options alone."""


def _made(option: type[Technique]) -> Technique:
    """An option that has something to do in a small model."""
    return option(smallest=1) if "smallest" in option.model_fields else option()


@functools.cache
def _combinations() -> list[dict[str, Technique]]:
    tried = {option for options in TRIED for option in options}
    alone = [_made(option) for options in registry().values() for option in options[1:] if option not in tried]
    return [
        *({o.key: o() for o in options} for options in itertools.product(*TRIED)),
        *({"adapter": LoRA(), o.key: o} if o.key in FROZEN else {o.key: o} for o in alone),
    ]


def _without_memo(*args: Any, **options: Any) -> Record:
    plain = trace._MetaHostLedger
    with mock.patch.object(trace, "_MetaHostLedger", lambda **given: plain(**{**given, "memoise": False})):
        return predicted(*args, **options)


@pytest.fixture(scope="module", autouse=True)
def _adapters_are_imported() -> None:
    """Importing their libraries logs an exception, whose frames pytest keeps, and with them the tensors in them."""
    card = small(NAMES[0])
    predicted(card, task_of("sequence_regression", card), defaults(adapter=LoRA()), 2, 8, world="meta")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("esm2_t6_8m", "sequence_regression"),
        ("antiberty", "masked_language_modelling"),
    ],
)
def test_records_are_the_same_with_and_without_memory(name: str, kind: str) -> None:
    card = small(name, dropout=0.1)
    task = task_of(kind, card)
    fitting = (c for c in _combinations() if all(applies(type(t), card, kind) for t in c.values()))
    for techniques in fitting:  # what one remembers, the next ones look up
        given = (card, task, defaults(**techniques), 3, 20)
        known = _remembered()
        plain = _without_memo(*given, world="meta", accumulation=2, count_costs=True)
        assert _remembered() == known, "this one was to run without memory"
        found = predicted(*given, world="meta", accumulation=2, count_costs=True)
        assert _remembered() > 0
        for fact in ("sizes", "events", "marks", "labels", "costs", "cost_marks"):
            assert getattr(found, fact) == getattr(plain, fact), (fact, techniques)


INTEGERS = torch.empty(3, 4, dtype=torch.int64, device="meta")
BOOLEANS = torch.empty(3, 4, dtype=torch.bool, device="meta")
FLOATS = torch.empty(3, 4, device="meta")
HALVES = torch.empty(3, 4, dtype=torch.bfloat16, device="meta")
SQUARE = torch.empty(4, 4, device="meta")
FEW = torch.empty(4, device="meta")

CALLS: dict[str, list[tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {
    "int and float scalars": [(aten.mul.Scalar, (INTEGERS, n), {}) for n in (2, 2.0, 1, 1.0, True)],
    "bool and int scalars": [(aten.mul.Scalar, (BOOLEANS, n), {}) for n in (True, 1, 1.0, False, 0, 0.0)],
    "None and 0": [(aten.argmax.default, (FLOATS, d), {}) for d in (None, 0, 1, -1)],
    "no, empty and given axes": [(aten.sum.dim_IntList, (FLOATS, d), {}) for d in (None, [], [0], [1], [0, 1])],
    "keepdim": [(aten.sum.dim_IntList, (FLOATS, [0], k), {}) for k in (True, False)],
    "keywords": [(aten.sum.default, (INTEGERS,), {"dtype": t}) for t in (None, torch.float32, torch.int64)],
    "keyword absent": [(aten.sum.default, (INTEGERS,), kw) for kw in ({}, {"dtype": torch.float64}, {})],
    "dtypes": [(aten.add.Tensor, pair, {}) for pair in ((FLOATS, FLOATS), (FLOATS, HALVES), (HALVES, HALVES))],
    "zero-dimensional": [
        (aten.add.Tensor, (HALVES, torch.empty(shape, device="meta")), {}) for shape in ((), (1,), (1, 1))
    ],
    "strides": [(aten.mul.Tensor, (t, t), {}) for t in (SQUARE, SQUARE.t(), SQUARE.expand(2, 4, 4))],
    "expanded": [(aten.mul.Tensor, (t, t), {}) for t in (FEW.expand(4, 4), SQUARE)],
    "splits": [(aten.cat.default, (list(FLOATS.split(n)), 0), {}) for n in (1, 2, 3)],
    "several results": [(aten.max.dim, (FLOATS, d), {}) for d in (0, 1)],
    "overloads": [(aten.add.Tensor, (FLOATS, FLOATS), {}), (aten.add.Scalar, (FLOATS, 1), {})],
    "masks": [(aten.native_dropout.default, (FLOATS, p, t), {}) for p in (0.5, 0.0) for t in (True, False, None)],
}


def _facts(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return (out.shape, out.stride(), out.dtype, out.device, out.untyped_storage().nbytes())
    if isinstance(out, (tuple, list)):
        return [_facts(o) for o in out]
    return out


@pytest.mark.parametrize("case", CALLS)
def test_arguments_that_differ_are_not_confused(case: str) -> None:
    for _ in range(3):  # the first round remembers, the others look up
        for func, args, kwargs in CALLS[case]:
            assert _facts(memo.run(memo.operation(func), args, kwargs)[0]) == _facts(func(*args, **kwargs)), (
                case,
                args[1:],
                kwargs,
            )


def test_looking_up_does_not_run_the_operation_again() -> None:
    class Counted:
        _schema = aten.exp.default._schema
        is_view = False
        tags = ()
        overloadpacket = aten.exp
        runs = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            return aten.exp.default(*args, **kwargs)

    func = Counted()
    results = [memo.run(memo.operation(func), (FLOATS,), {}) for _ in range(3)]
    assert func.runs == 1
    assert len({id(out.untyped_storage()) for out, _ in results}) == 3, "every result has a storage of its own"
    assert len({cost for _, cost in results}) == 1
    memo.run(memo.operation(func), (HALVES,), {})
    assert func.runs == 2


@pytest.mark.parametrize(
    ("func", "args"),
    [
        pytest.param(aten.add_.Scalar, (torch.empty(3), 1), id="in-place-with-values"),
        pytest.param(aten.as_strided_.default, (torch.empty(4, device="meta"), [2], [1], 2), id="other-place"),
        pytest.param(aten.t.default, (SQUARE,), id="view"),
        pytest.param(aten.expand.default, (FEW, [4, 4]), id="expand"),
        pytest.param(aten.add.Tensor, (torch.empty(3), torch.empty(3)), id="with-values"),
    ],
)
def test_results_that_are_not_fresh_or_have_values_are_never_remembered(func: Any, args: tuple[Any, ...]) -> None:
    for _ in range(2):
        out, _ = memo.run(memo.operation(func), args, {})
        assert _facts(out) == _facts(func(*args))
    assert _remembered() == 0


def test_what_changes_values_alone_is_not_run_again() -> None:
    given = torch.empty(3, device="meta")
    for _ in range(2):
        assert memo.run(memo.operation(aten.add_.Scalar), (given, 1), {})[0] is given
        assert memo.run(memo.operation(aten._foreach_add_.Scalar), ([given], 1), {})[0] is None
    assert _remembered() == 2


def test_what_changes_a_shape_or_a_place_is_run_every_time() -> None:
    for _ in range(2):
        turned = torch.empty(2, 3, device="meta")
        assert memo.run(memo.operation(aten.t_.default), (turned,), {})[0].shape == (3, 2)
        grown = torch.empty(0, device="meta")
        assert memo.run(memo.operation(aten.resize_.default), (grown, [8]), {})[0].untyped_storage().nbytes() == 32
        whole, other = torch.empty(3, device="meta"), torch.empty(3, device="meta")
        for _ in range(2):
            memo.run(memo.operation(aten.set_.source_Tensor), (whole, other), {})
            assert whole.untyped_storage()._cdata == other.untyped_storage()._cdata
    assert _remembered() == 0


def test_a_result_that_turns_out_to_be_the_input_is_not_remembered() -> None:
    """As ``contiguous`` does for what is contiguous already."""
    out, _ = memo.run(memo.operation(aten.contiguous.default), (FLOATS,), {})
    again, _ = memo.run(memo.operation(aten.contiguous.default), (FLOATS,), {})
    assert out.untyped_storage()._cdata == again.untyped_storage()._cdata == FLOATS.untyped_storage()._cdata
