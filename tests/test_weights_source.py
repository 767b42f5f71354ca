"""URIs of sources: what each form means, and that nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.errors import InputError
from zoo.weights import FileSource, HubSource, PypiSource, parse

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        (f"hf:facebook/esm2_t6_8M_UR50D@{COMMIT}", HubSource("facebook/esm2_t6_8M_UR50D", COMMIT)),
        ("hf:lab/model.v2@refs/pr/1", HubSource("lab/model.v2", "refs/pr/1")),
        ("pypi:antiberty==0.1.3/antiberty/models/", PypiSource("antiberty", "0.1.3", "antiberty/models")),
        ("pypi:Riot_NA==5.2.0", PypiSource("riot-na", "5.2.0")),
        ("pypi:torch==2.13.0+cpu/torch/version.py", PypiSource("torch", "2.13.0+cpu", "torch/version.py")),
        ("file:/data/checkpoint", FileSource(Path("/data/checkpoint"))),
    ],
)
def test_each_form_is_read(uri: str, source: object) -> None:
    assert parse(uri) == source


def test_a_source_prints_as_its_uri() -> None:
    for uri in (f"hf:lab/model@{COMMIT}", "pypi:antiberty==0.1.3/antiberty", "file:/data/checkpoint"):
        assert str(parse(uri)) == uri


def test_only_a_commit_is_pinned() -> None:
    pinned, branch = parse(f"hf:lab/model@{COMMIT}"), parse("hf:lab/model@main")
    assert isinstance(pinned, HubSource)
    assert isinstance(branch, HubSource)
    assert pinned.pinned
    assert not branch.pinned


def test_a_bare_path_that_exists_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert parse("here") == parse("file:here") == FileSource(tmp_path / "here")
    with pytest.raises(InputError, match=r'source "there" is neither an existing path nor one of hf:OWNER/NAME@REV'):
        parse("there")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "neither an existing path nor one of"),
        ("http://example.org/model.bin", "neither an existing path nor one of"),
        ("HF:lab/model@main", "neither an existing path nor one of"),
        ("hf:lab/model", r"has no revision; write hf:lab/model@COMMIT"),
        ("hf:model@main", "is not of the form hf:OWNER/NAME@REVISION"),
        ("hf:lab/model@", "is not of the form hf:OWNER/NAME@REVISION"),
        ("hf:lab/../model@main", "is not of the form hf:OWNER/NAME@REVISION"),
        ("hf:lab/model@a/../b", "is not of the form hf:OWNER/NAME@REVISION"),
        ("hf:lab/model@main ", "is not of the form hf:OWNER/NAME@REVISION"),
        ("pypi:antiberty", "is not of the form pypi:NAME==VERSION/.*; the version must be exact"),
        ("pypi:antiberty>=0.1/x", "; the version must be exact"),
        ("pypi:antiberty==0.1.*/x", "; the version must be exact"),
        ("pypi:antiberty==/x", "is not of the form pypi:NAME==VERSION"),
        ("pypi:--index-url==1/x", "is not of the form pypi:NAME==VERSION"),
        ("pypi:antiberty==0.1.3/../x", '"../x" is not a path inside a folder'),
        ("pypi:antiberty==0.1.3//etc/passwd", '"/etc/passwd" is not a path inside a folder'),
        ("pypi:antiberty==0.1.3/a\\b", "is not a path inside a folder"),
        ("file:", "no path after file:"),
        ("file: ", "no path after file:"),
    ],
)
def test_anything_else_is_an_error_that_says_what_to_write(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(uri)
