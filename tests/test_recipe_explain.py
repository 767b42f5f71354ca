"""Wrong values in words, for whatever types the parameters of techniques and tasks will have."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, field_validator

from zoo.card import Frozen
from zoo.explain import validate


class Inner(Frozen):
    size: int


class Model(Frozen):
    flag: bool = False
    word: Literal["a", "b"] = "a"
    only: Literal["x"] = "x"
    share: float = Field(default=0.5, ge=0, le=1)
    either: float | str = 0.0
    maybe: int | None = None
    pair: tuple[int, int] = (1, 2)
    many: tuple[int, ...] = Field(default=(), description="any number of them")
    inner: Inner = Inner(size=1)
    named: dict[str, int] = Field(default_factory=dict)
    even: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} is not even")
        return value


def test_what_is_right_comes_back_as_the_model() -> None:
    found, problems = validate(Model, {"many": [1, 2], "share": 1, "inner": {"size": 3}, "maybe": None, "either": "x"})
    assert problems == []
    assert found == Model(many=(1, 2), share=1.0, inner=Inner(size=3), either="x")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"flag": 1}, "flag: got 1; needs true or false"),
        ({"flag": "true"}, 'flag: got the text "true"; needs true or false; take the quotes away'),
        ({"flag": "yes"}, 'flag: got the text "yes"; needs true or false'),
        ({"word": "c"}, 'word: got the text "c"; needs one of a, b'),
        ({"only": 3}, "only: got 3; needs x"),
        ({"share": 1.5}, "share: got 1.5; needs a number of at least 0 and of at most 1"),
        ({"share": "[" * 70}, f'share: got the text "{"[" * 57}..."; needs a number of at least 0 and of at most 1'),
        ({"share": None}, "share: got nothing; needs a number of at least 0 and of at most 1"),
        ({"either": []}, "either: got a list of 0; needs a number or text"),
        ({"maybe": 1.5}, "maybe: got 1.5; needs a whole number"),
        ({"pair": [1]}, "pair: got a list of 1; needs a list of 2 numbers"),
        ({"pair": [1, 2, 3]}, "pair: got a list of 3; needs a list of 2 numbers"),
        ({"pair": [1, "b"]}, 'pair.1: got the text "b"; needs a whole number'),
        ({"many": 3}, "many: got 3; needs a list of a whole number (any number of them); write [3]"),
        ({"many": [1, True]}, "many.1: got true; needs a whole number"),
        ({"inner": {}}, "inner.size: missing; needs a whole number"),
        ({"inner": {"sise": 1}}, 'inner.sise: "sise" is not a known thing; did you mean "size"? (known: size)'),
        ({"inner": 3}, "inner: got 3; needs a section with the keys size"),
        ({"named": {"a": "b"}}, 'named.a: got the text "b"; needs a whole number'),
        ({"even": 3}, "even: 3 is not even"),
    ],
)
def test_what_is_wrong_is_said_in_words(data: dict[str, Any], expected: str) -> None:
    found, problems = validate(Model, data, "thing")
    assert found is None
    assert [f"{'.'.join(map(str, problem.key))}: {problem.sentence}" for problem in problems] == [expected]


def test_all_problems_come_together() -> None:
    assert len(validate(Model, {"flag": 1, "word": 2, "inner": {"size": "x", "y": 1}, "z": 0})[1]) == 5
