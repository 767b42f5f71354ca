"""The trace of a deep model, put together from shallow ones, is the deep model's own, event by event."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from small_models import defaults, predicted, small, task_of

from zoo.memory.depth import deepen
from zoo.memory.ledger import Record
from zoo.memory.scaling import Irregular
from zoo.memory.trace import World
from zoo.techniques import Technique
from zoo.techniques.adapter import HeadOnly, LoRA
from zoo.techniques.checkpointing import BlockCheckpointing
from zoo.techniques.offload import Activations, Optimizer, Weights
from zoo.techniques.precision import BF16

SHALLOW = (3, 4, 5)
WIDE = {"hidden_size": 128, "intermediate_size": 512}
COMBINATIONS: dict[str, dict[str, Technique]] = {
    "plain": {},
    "bf16-block": {"precision": BF16(), "checkpointing": BlockCheckpointing()},
    "bf16-lora-block": {"precision": BF16(), "adapter": LoRA(rank=4), "checkpointing": BlockCheckpointing()},
    "head": {"adapter": HeadOnly()},
    "bf16-block-host": {
        "precision": BF16(), "checkpointing": BlockCheckpointing(offload=True), "offload": Optimizer(),
    },
    "lora-weights": {"adapter": LoRA(rank=4), "offload": Weights(smallest=1024)},
    "activations": {"offload": Activations(smallest=1)},
}  # fmt: skip
BESIDE = {"bf16-block-host": {"host", "pinned"}, "lora-weights": {"pinned"}, "activations": {"pinned"}}
"""What lies in the host's memory has the same pattern."""
KINDS = {
    "esm2_t6_8m": "sequence_regression",
    "rxnmapper_albert": "sequence_classification",
    "antiberty": "masked_language_modelling",
}


def _trace(name: str, depth: int, techniques: str, world: World = "accelerator") -> Record:
    card = small(name, dropout=0.1, num_hidden_layers=depth, **(WIDE if name != "rxnmapper_albert" else {}))
    options: dict[str, Any] = {"accumulation": 2, "steps": 2, "world": world}
    return predicted(card, task_of(KINDS[name], card), defaults(**COMBINATIONS[techniques]), 3, 24, **options)


@pytest.mark.parametrize("techniques", COMBINATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_every_event_of_a_deep_model_is_told_by_three_shallow_ones(name: str, techniques: str) -> None:
    made = deepen([_trace(name, depth, techniques) for depth in SHALLOW], SHALLOW, 8)
    whole = _trace(name, 8, techniques)
    assert made.events == whole.events
    assert made.sizes == whole.sizes
    assert made.labels == whole.labels
    assert made.devices == whole.devices
    assert set(made.devices) & {"host", "pinned"} == BESIDE.get(techniques, set())
    assert made.marks == whole.marks


def test_so_it_is_on_the_cpu() -> None:
    made = deepen([_trace("antiberty", depth, "bf16-lora-block", "fake") for depth in SHALLOW], SHALLOW, 7)
    whole = _trace("antiberty", 7, "bf16-lora-block", "fake")
    assert (made.events, made.sizes, made.labels) == (whole.events, whole.sizes, whole.labels)


def test_depths_may_be_further_apart() -> None:
    made = deepen([_trace("antiberty", depth, "plain") for depth in (3, 5, 7)], (3, 5, 7), 11)
    whole = _trace("antiberty", 11, "plain")
    assert (made.events, made.sizes, made.labels) == (whole.events, whole.sizes, whole.labels)


@pytest.mark.parametrize(
    ("depths", "depth"), [((2, 3), 6), ((2, 3, 5), 6), ((2, 3, 4), 1), ((3, 5, 7), 10), ((3, 2, 1), 4)]
)
def test_depths_that_are_not_on_an_even_way_are_refused(depths: tuple[int, ...], depth: int) -> None:
    with pytest.raises(ValueError, match=f"three depths on an even way to {depth}"):
        deepen([Record() for _ in depths], depths, depth)


def _three() -> list[Record]:
    return [copy.deepcopy(_trace("antiberty", depth, "plain")) for depth in SHALLOW]


def test_other_phases_are_irregular() -> None:
    records = _three()
    records[1].marks.append((len(records[1].events), "forward"))
    with pytest.raises(Irregular, match="other phases"):
        deepen(records, SHALLOW, 6)


def test_growth_that_is_not_even_is_irregular() -> None:
    records = _three()
    records[2].sizes.append(8)
    records[2].labels[len(records[2].sizes) - 1] = "other"
    records[2].devices.append("meta")
    records[2].events.append(len(records[2].sizes))
    with pytest.raises(Irregular, match="does not grow evenly"):
        deepen(records, SHALLOW, 6)


def test_a_block_of_another_size_is_irregular() -> None:
    records = _three()
    at = next(i for i, event in enumerate(records[2].events) if i > len(records[2].events) // 8 and event > 0)
    records[2].sizes[records[2].events[at] - 1] += 512
    with pytest.raises(Irregular, match="does not repeat itself"):
        deepen(records, SHALLOW, 6)


def test_an_emptied_cache_is_irregular() -> None:
    records = _three()
    records[0].events[5] = 0
    with pytest.raises(Irregular, match="cache is emptied"):
        deepen(records, SHALLOW, 6)


def test_what_is_freed_in_another_order_is_irregular() -> None:
    """In the deepest of the three, the first thing that the optimizer frees is another of the same size."""
    records = _three()
    record = records[2]
    start = max(position for position, phase in record.marks if phase == "optimizer")
    frees = [i for i in range(start, len(record.events)) if record.events[i] < 0]
    by_size: dict[int, list[int]] = {}
    for i in frees:
        by_size.setdefault(record.sizes[-record.events[i] - 1], []).append(i)
    first, *_, last = next(places for places in by_size.values() if len(places) > 4)
    record.events[first], record.events[last] = record.events[last], record.events[first]
    with pytest.raises(Irregular, match=r"freed around the blocks|another kind"):
        deepen(records, SHALLOW, 6)
