"""Which rows form which step."""

from __future__ import annotations

import random

import pytest

from zoo.data.batches import POOL, Batches, evaluation_batches


def lengths(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(5, 200) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 8 * POOL, 8 * POOL + 1, 8 * 2 * POOL + 5])
@pytest.mark.parametrize("micro", [1, 3, 8])
def test_an_epoch_holds_every_example_once_in_as_many_steps_as_promised(count: int, micro: int) -> None:
    batches = Batches(lengths(count), global_batch_size=8, micro_batch_size=micro, seed=1)
    for epoch in (0, 1):
        steps = batches.epoch(epoch)
        assert len(steps) == len(batches)
        assert sorted(i for step in steps for members in step for i in members) == list(range(count))
        assert all(0 < len(members) <= micro for step in steps for members in step)
        assert sum(sum(map(len, step)) < 8 for step in steps) == (count % 8 > 0)


def test_epochs_are_the_same_for_a_seed_and_differ_among_themselves() -> None:
    sizes = lengths(100)
    first = Batches(sizes, 8, 4, seed=1)
    assert first.epoch(3) == Batches(sizes, 8, 4, seed=1).epoch(3)
    assert first.epoch(3) != first.epoch(4)
    assert first.epoch(3) != Batches(sizes, 8, 4, seed=2).epoch(3)


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_example_comes_in_the_second_step_of_the_first_epoch(seed: int) -> None:
    sizes = lengths(100, seed)
    second = Batches(sizes, 8, 4, seed).epoch(0)[1]
    assert sizes[second[0][0]] == max(sizes)
    assert sum(map(len, second)) == 8  # not the odd remainder, which would hold less


def test_examples_of_a_step_are_of_like_length_longest_first() -> None:
    sizes = lengths(400)
    steps = Batches(sizes, 8, 8, seed=0).epoch(0)
    padding = sum(8 * sizes[step[0][0]] - sum(sizes[i] for i in step[0]) for step in steps)
    for step in steps:
        own = [sizes[i] for members in step for i in members]
        assert own == sorted(own, reverse=True)
    assert padding < 0.05 * sum(sizes)  # in random order it would be about as much as the data


def test_evaluation_covers_every_example_within_the_bounds() -> None:
    sizes = lengths(300)
    batches = evaluation_batches(sizes, micro_batch_size=16, longest=100)
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    for batch in batches:
        assert len(batch) <= 16
        assert len(batch) == 1 or len(batch) * max(sizes[i] for i in batch) <= 16 * 100
    assert batches == evaluation_batches(sizes, 16, 100)


def test_evaluation_of_nothing_is_no_batch() -> None:
    assert evaluation_batches([], 4, 10) == []
