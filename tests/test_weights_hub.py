"""The hub and its mirrors, against a local server: revisions, resumed downloads, checksums, and what can go wrong."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, serving

from zoo.card import Source, SourceFile
from zoo.errors import InputError, WeightsError
from zoo.weights import fetch, hub, is_local

OLD, NEW = "a" * 40, "b" * 40
WEIGHTS = random.Random(0).randbytes(3 << 20)
CONFIG = b'{"model_type": "esm"}'


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "sub/vocab.txt": b"A\nC\n", "README.md": b"hello"}
    repository = Hub("lab/model", {OLD: {**files, "config.json": b"old"}, NEW: files}, {"main": NEW})
    for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "WAIT_SECONDS", 0.0)
    with serving(repository):
        monkeypatch.setenv("HF_ENDPOINT", repository.address)
        yield repository


def source(*files: str, revision: str = NEW, repository: str = "lab/model", **sums: str) -> Source:
    named = tuple(SourceFile(path=f, sha256=sums.get(f.partition(".")[0])) for f in files)
    return Source(uri=f"hf:{repository}@{revision}", files=named)


def left_over(root: Path) -> list[str]:
    """Data in the cache: neither records nor locks."""
    files = (p for p in root.rglob("*") if p.is_file())
    return sorted(str(p.relative_to(root)) for p in files if p.suffix != ".lock" and not p.name.endswith(f"{NEW}.json"))


def test_files_land_at_their_paths_and_a_second_fetch_asks_nobody(server: Hub) -> None:
    wanted = source("config.json", "model.safetensors", "sub/vocab.txt", model=sha(WEIGHTS))
    assert not is_local(wanted)
    folder = fetch(wanted)
    assert (folder / "config.json").read_bytes() == CONFIG
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "sub/vocab.txt").read_bytes() == b"A\nC\n"
    assert not list(folder.parent.glob("*.part"))
    asked = len(server.requests)
    assert is_local(wanted)
    assert fetch(wanted, offline=True) == fetch(wanted) == folder
    assert len(server.requests) == asked


def test_a_commit_is_what_it_was_whatever_main_is_now(server: Hub) -> None:
    assert (fetch(source("config.json", revision=OLD)) / "config.json").read_bytes() == b"old"
    assert (fetch(source("config.json", revision="main")) / "config.json").read_bytes() == CONFIG


def test_all_files_of_a_branch_come_from_one_commit_even_when_it_moves(server: Hub) -> None:
    fetch(source("sub/vocab.txt", revision="main"))
    server.refs["main"] = OLD
    folder = fetch(source("sub/vocab.txt", "config.json", revision="main"))
    assert (folder / "config.json").read_bytes() == CONFIG
    assert json.loads(folder.with_name(folder.name + ".json").read_text())["commit"] == NEW


def test_a_cut_download_goes_on_with_a_range_request(server: Hub) -> None:
    server.cut_after, server.cuts = 1 << 20, 2
    folder = fetch(source("model.safetensors", model=sha(WEIGHTS)))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [r.range for r in server.of("GET", "model.safetensors")]
    assert ranges == [None, f"bytes={1 << 20}-", f"bytes={2 << 20}-"]


def test_a_download_given_up_goes_on_in_another_process(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    server.cut_after, server.cuts = 1 << 20, 1
    with pytest.raises(WeightsError, match=r"connection failed.*1\.00 MiB are kept, fetching again goes on"):
        fetch(source("model.safetensors"))
    assert not is_local(source("model.safetensors"))
    code = (
        "from zoo.card import *; from zoo.weights import fetch; "
        f"print(fetch(Source(uri='hf:lab/model@{NEW}', files=[SourceFile(path='model.safetensors')])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in server.of("GET", "model.safetensors")] == [None, f"bytes={1 << 20}-"]


def test_a_server_that_ignores_ranges_sends_all_again_and_the_file_is_right(server: Hub) -> None:
    server.cut_after, server.cuts, server.ranges = 1 << 20, 1, False
    folder = fetch(source("model.safetensors"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_unfinished_download_of_other_content_is_not_continued(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    server.cut_after, server.cuts = 1 << 20, 1
    with pytest.raises(WeightsError, match="kept"):
        fetch(source("model.safetensors", revision="main"))
    changed = WEIGHTS[::-1]
    server.commits[OLD]["model.safetensors"] = changed
    server.refs["main"] = OLD
    folder = fetch(source("model.safetensors", revision="main"))
    assert (folder / "model.safetensors").read_bytes() == changed
    assert server.of("GET", "model.safetensors")[-1].range is None


def test_without_a_list_it_brings_what_from_pretrained_reads(server: Hub) -> None:
    server.commits[NEW] |= {"pytorch_model.bin": b"pickle", "tf_model.h5": b"tf", "pytorch_model.bin.index.json": b"{}"}
    folder = fetch(source())
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["config.json", "model.safetensors"]
    asked = len(server.requests)
    assert fetch(source(), offline=True) == folder
    assert len(server.requests) == asked


def test_without_safetensors_it_brings_pickles_and_their_index(server: Hub) -> None:
    shards = {"pytorch_model-00001-of-00001.bin": b"pickle", "pytorch_model.bin.index.json": b"{}"}
    server.commits[NEW] = {"config.json": CONFIG, "vocab.txt": b"A", **shards, "tf_model.h5": b"tf"}
    folder = fetch(source())
    assert sorted(p.name for p in folder.iterdir()) == sorted(["config.json", "vocab.txt", *shards])


def test_a_repository_without_weights_says_what_it_has(server: Hub) -> None:
    server.commits[NEW] = {"README.md": b"hello"}
    with pytest.raises(WeightsError, match=r"no model\*\.safetensors and no pytorch_model\*\.bin.*README\.md"):
        fetch(source())


def test_a_wrong_checksum_names_file_and_both_sums_and_leaves_nothing(server: Hub, tmp_path: Path) -> None:
    expected = "0" * 64
    with pytest.raises(
        WeightsError, match=f"model.safetensors differs: expected sha256 {expected}, got {sha(WEIGHTS)}"
    ):
        fetch(source("model.safetensors", model=expected))
    assert left_over(tmp_path / "cache") == []


def test_content_that_is_not_what_the_hub_announced_is_refused(server: Hub, tmp_path: Path) -> None:
    damaged = WEIGHTS[:-1] + b"\0"
    server.wrong["model.safetensors"] = damaged
    with pytest.raises(WeightsError, match=f"expected sha256 {sha(WEIGHTS)}, got {sha(damaged)}"):
        fetch(source("model.safetensors"))
    assert left_over(tmp_path / "cache") == []


def test_busy_servers_are_asked_again(server: Hub) -> None:
    server.statuses = [503, 429]
    assert (fetch(source("config.json")) / "config.json").read_bytes() == CONFIG


def test_a_server_that_stays_busy_is_an_error_with_its_status(server: Hub) -> None:
    server.statuses = [503] * 50
    with pytest.raises(WeightsError, match=r"config\.json from http://127.*answered 503; try again later"):
        fetch(source("config.json"))
    assert len(server.requests) == hub.ATTEMPTS


def test_a_missing_file_lists_near_names(server: Hub) -> None:
    with pytest.raises(WeightsError, match=r"modle\.safetensors from .*no such file.*near names: model\.safetensors"):
        fetch(source("modle.safetensors"))


def test_a_missing_revision_is_named(server: Hub) -> None:
    with pytest.raises(WeightsError, match='no revision "v9" in lab/model'):
        fetch(source("config.json", revision="v9"))


def test_a_missing_or_private_repository_says_how_to_get_in(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        WeightsError, match=r"status 401; there is no repository lab/nothing, or it is private.*HF_TOKEN"
    ):
        fetch(source("config.json", repository="lab/nothing"))
    server.token = "hf_secret"
    with pytest.raises(WeightsError, match="status 401"):
        fetch(source("config.json"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (fetch(source("config.json")) / "config.json").read_bytes() == CONFIG


def test_gated_repositories_say_where_to_accept_the_terms(server: Hub) -> None:
    server.gated = True
    with pytest.raises(WeightsError, match=r"gated; accept the terms at http://127.*/lab/model and set HF_TOKEN"):
        fetch(source("config.json"))


def test_a_server_that_does_not_answer_is_a_timeout(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ATTEMPTS", 2)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.2")
    server.delay = 1.0
    with pytest.raises(WeightsError, match=r"the connection timed out \(ReadTimeout.*file:PATH"):
        fetch(source("config.json"))


def test_nobody_listening_is_a_connection_error(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"from http://127\.0\.0\.1:9: the connection failed \(ConnectError"):
        fetch(source("config.json"))


def test_an_endpoint_that_is_not_a_hub_is_told_apart(server: Hub) -> None:
    server.bare = True
    with pytest.raises(WeightsError, match=r"without X-Repo-Commit or ETag, so it is not a hub.*HF_ENDPOINT"):
        fetch(source("config.json"))


def test_a_mirror_that_serves_another_commit_is_refused(server: Hub) -> None:
    server.commit_header = OLD
    with pytest.raises(WeightsError, match=f"of commit {OLD}, asked for {NEW}"):
        fetch(source("config.json"))


def test_an_endpoint_that_is_not_an_address_is_an_input_error(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror")
    with pytest.raises(InputError, match='HF_ENDPOINT: "hf-mirror" is not an address'):
        fetch(source("config.json"))


@pytest.mark.parametrize("variable", ["ZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_what_is_missing_and_how_to_get_it(
    server: Hub, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    fetch(source("config.json"))
    asked = len(server.requests)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(
        WeightsError, match=r"model\.safetensors not in the cache .*run `zoo fetch esm2_t6_8m`"
    ) as error:
        fetch(source("config.json", "model.safetensors"), name="esm2_t6_8m")
    assert "config.json" not in str(error.value)
    assert len(server.requests) == asked


def test_too_little_space_is_said_before_a_byte_is_fetched(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = hub.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match=r"3\.00 MiB are still to come and .* has 1000 B free"):
        fetch(source("model.safetensors"))
    assert not server.of("GET", "model.safetensors")


def test_a_sum_for_the_whole_repository_is_an_input_error(server: Hub) -> None:
    with pytest.raises(InputError, match="here give it for each file"):
        fetch(Source(uri=f"hf:lab/model@{NEW}", sha256="0" * 64))


def test_two_processes_that_want_the_same_file_fetch_it_once(server: Hub) -> None:
    code = (
        "from zoo.card import *; from zoo.weights import fetch; "
        f"fetch(Source(uri='hf:lab/model@{NEW}', files=[SourceFile(path='model.safetensors')]))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(server.of("GET", "model.safetensors")) == 1


def test_a_process_started_offline_is_told_to_start_again(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE was set when huggingface_hub was imported"):
        fetch(source("config.json"), offline=False)
