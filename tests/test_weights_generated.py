"""Sources that are made on this machine: read strictly, made once, never half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zoo.card import Source, SourceFile
from zoo.errors import InputError, WeightsError, ZooError
from zoo.weights import GeneratedSource, fetch, is_local, parse


class Counting:
    """Writes its parameters, and counts how often it was asked."""

    version = "1"
    calls = 0

    def __call__(self, path: Path, progress: Any, **parameters: Any) -> None:
        Counting.calls += 1
        if progress:
            progress(1, 2)
        path.write_text(str(sorted(parameters.items())))
        if parameters.get("fails"):
            raise ZooError("the sea is dry")


COUNTING = Counting()
HERE = f"{__name__}:COUNTING"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")  # nothing is downloaded to make something
    monkeypatch.setattr(Counting, "calls", 0)
    return tmp_path / "cache"


def source(query: str = "seed=0", **file: Any) -> Source:
    return Source(uri=f"generate:{HERE}?{query}", files=(SourceFile(path="world.nc", **file),))


def test_parameters_are_numbers_lists_and_words_in_one_order():
    parsed = parse("generate:a.b:C?start=2000-01-01&seed=3&levels=[500,850]&part=1.5")
    assert isinstance(parsed, GeneratedSource)
    assert parsed.ref == "a.b:C"
    assert parsed.parameters == {"levels": [500, 850], "part": 1.5, "seed": 3, "start": "2000-01-01"}
    assert str(parsed) == "generate:a.b:C?levels=[500,850]&part=1.5&seed=3&start=2000-01-01"
    assert parse(str(parsed)) == parsed
    assert parse("generate:a.b:C") == GeneratedSource("a.b:C")
    odd = parse("generate:a.b:C?word=x%26y%3D1")
    assert parse(str(odd)) == odd


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("generate:a.b", "is not of the form generate:PACKAGE.MODULE:GENERATOR"),
        ("generate:a.b:C?seed", "is not of the form generate:PACKAGE.MODULE:GENERATOR"),
        ("generate:a.b:C()", "is not of the form generate:PACKAGE.MODULE:GENERATOR"),
        ("generate:a.b:C?seed=1&seed=2", "seed is given more than once"),
    ],
)
def test_other_forms_are_refused(uri: str, message: str):
    with pytest.raises(InputError, match=message):
        parse(uri)


def test_it_is_made_once_and_again_for_other_parameters():
    assert not is_local(source())
    file = fetch(source()) / "world.nc"
    assert file.read_text() == "[('seed', 0)]"
    assert is_local(source())
    fetch(source())
    assert Counting.calls == 1
    other = fetch(source("seed=1")) / "world.nc"
    assert other.read_text() == "[('seed', 1)]"
    assert file.exists()
    assert Counting.calls == 2


def test_another_version_of_the_generator_makes_it_again(monkeypatch: pytest.MonkeyPatch):
    first = fetch(source())
    monkeypatch.setattr(Counting, "version", "2")
    assert not is_local(source())
    assert fetch(source()) != first


def test_one_that_fails_leaves_nothing(own_cache: Path):
    with pytest.raises(ZooError, match="the sea is dry"):
        fetch(source("fails=1"))
    assert not [path for path in own_cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not is_local(source("fails=1"))


def test_a_checksum_that_is_given_is_checked():
    with pytest.raises(WeightsError, match="checksum differs: expected sha256 0000"):
        fetch(source(sha256="0" * 64))


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("zoo.nowhere:GENERATOR", "there is no generator zoo.nowhere:GENERATOR"),
        ("zoo.errors:GENERATOR", "there is no generator zoo.errors:GENERATOR"),
        ("os:getcwd", "os:getcwd is not a generator: it has no version"),
    ],
)
def test_what_is_no_generator_is_not_called(ref: str, message: str):
    with pytest.raises(WeightsError, match=message):
        fetch(Source(uri=f"generate:{ref}", files=(SourceFile(path="world.nc"),)))


def test_its_one_file_must_be_named():
    with pytest.raises(InputError, match="a generator makes one file; name it in files"):
        fetch(Source(uri=f"generate:{HERE}"))
    with pytest.raises(InputError, match="here give it for each file"):
        fetch(Source(uri=f"generate:{HERE}", files=(SourceFile(path="a"),), sha256="0" * 64))


def test_progress_counts_steps(capsys: pytest.CaptureFixture[str]):
    fetch(source("seed=7"), progress=True)
    assert "world.nc" in capsys.readouterr().err
