"""Checkpoints from the disk: formats, shards, and pickles that would run code if they were let."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zoo.card import Source, SourceFile
from zoo.errors import WeightsError
from zoo.weights import fetch, read_pickle, read_state_dict

A, B = {"a": torch.arange(6.0).reshape(2, 3)}, {"b": torch.ones(2, dtype=torch.int64)}
BOTH = {**A, **B}


def same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    on_cpu = all(tensor.device.type == "cpu" for tensor in state.values())
    return on_cpu and state.keys() == expected.keys() and all(torch.equal(state[k], v) for k, v in expected.items())


def shards(folder: Path, ending: str, listed: dict[str, str] | None = None) -> Path:
    names = [f"model-0000{i}-of-00002.{ending}" for i in (1, 2)]
    for name, part in zip(names, (A, B), strict=True):
        (save_file if ending == "safetensors" else torch.save)(part, folder / name)
    usual = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    index = folder / f"{usual}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed or {"a": names[0], "b": names[1]}}))
    return index


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", "pytorch_model.bin", "x.pt", "x.ckpt"])
def test_the_only_checkpoint_of_a_folder_is_read(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(BOTH, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    torch.save({"lr": 1}, tmp_path / "optimizer.pt")
    assert same(read_state_dict(tmp_path), BOTH)
    assert same(read_state_dict(tmp_path / name), BOTH)
    assert same(read_state_dict(tmp_path, ["config.json", name]), BOTH)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    torch.save(B, tmp_path / "pytorch_model.bin")
    assert same(read_state_dict(tmp_path), A)
    assert same(read_state_dict(tmp_path, ["pytorch_model.bin", "model.safetensors"]), A)
    assert same(read_state_dict(tmp_path, ["pytorch_model.bin"]), B)


def test_the_usual_name_is_preferred_to_others(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    save_file(B, tmp_path / "ema.safetensors")
    assert same(read_state_dict(tmp_path), A)


def test_several_checkpoints_without_a_usual_name_are_an_error(tmp_path: Path) -> None:
    for name in ("heavy.pt", "light.pt"):
        torch.save(A, tmp_path / name)
    with pytest.raises(WeightsError, match=r"several checkpoints \(heavy\.pt, light\.pt\); say which one"):
        read_state_dict(tmp_path)
    with pytest.raises(WeightsError, match=r"light\.pt: tensors that another file has already brought: a"):
        read_state_dict(tmp_path, ["heavy.pt", "light.pt"])


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_through_their_index(tmp_path: Path, ending: str) -> None:
    index = shards(tmp_path, ending)
    assert same(read_state_dict(tmp_path), BOTH)
    assert same(read_state_dict(index), BOTH)
    files = ["config.json", index.name, *sorted(p.name for p in tmp_path.glob(f"*.{ending}"))]
    (tmp_path / "config.json").write_text("{}")
    assert same(read_state_dict(tmp_path, files), BOTH)


def test_what_is_wrong_with_shards_is_said(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = shards(tmp_path, "safetensors", {"a": one, "b": two, "c": two})
    with pytest.raises(WeightsError, match="tensors that it lists are in no shard: c"):
        read_state_dict(tmp_path)
    (tmp_path / two).unlink()
    with pytest.raises(WeightsError, match=f"1 of 2 shards are missing: {two}"):
        read_state_dict(tmp_path)
    index.write_text("{}")
    with pytest.raises(WeightsError, match="not an index of shards"):
        read_state_dict(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "/etc/passwd"}}))
    with pytest.raises(Exception, match='"/etc/passwd" is not a path inside a folder'):
        read_state_dict(tmp_path)


def test_a_folder_without_a_checkpoint_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint \(\.safetensors, .*it is empty"):
        read_state_dict(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"no checkpoint .* among config\.json"):
        read_state_dict(tmp_path)
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing"):
        read_state_dict(tmp_path, ["model.safetensors"])
    with pytest.raises(WeightsError, match="no such checkpoint"):
        read_state_dict(tmp_path / "nothing")


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_wrapped_checkpoints_are_unwrapped(tmp_path: Path, key: str) -> None:
    torch.save({key: BOTH, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "x.pt")
    assert same(read_state_dict(tmp_path / "x.pt"), BOTH)
    assert read_pickle(tmp_path / "x.pt")["epoch"] == 3


def test_values_that_are_no_tensors_are_an_error(tmp_path: Path) -> None:
    torch.save({**A, "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"holds values that are not tensors: epoch \(int\)"):
        read_state_dict(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"holds a list, expected a state dict"):
        read_state_dict(tmp_path / "x.pt")
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_state_dict(tmp_path / "x.pt")


def test_parameters_come_without_gradients(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt")
    assert not read_state_dict(tmp_path / "x.pt")["w"].requires_grad


@pytest.mark.parametrize("name", ["model.safetensors", "x.pt"])
def test_damaged_files_are_an_error(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(BOTH, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>not found</html>"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(WeightsError, match=rf"{name}: (not a readable|refused)"):
            read_state_dict(tmp_path)


class Payload:
    """Runs a command when it is unpickled, as a poisoned checkpoint does."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def poisoned(path: Path, payload: Payload, form: str) -> None:
    content = {**A, "evil": payload}
    if form == "zip":
        torch.save(content, path)
    elif form == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
@pytest.mark.parametrize(
    ("function", "names"),
    [(os.system, f"{os.name}.system"), (exec, "exec"), (eval, "eval")],
    ids=["os", "exec", "eval"],
)
def test_a_poisoned_pickle_is_refused_by_name_and_does_not_run(
    tmp_path: Path, form: str, function: Any, names: str
) -> None:
    trap = tmp_path / "it_ran"
    command = f"touch {trap}" if function is os.system else f"open({str(trap)!r}, 'w')"
    poisoned(tmp_path / "x.pt", Payload(function, command), form)
    with pytest.raises(WeightsError, match=rf"x\.pt: refused, the pickle asks for [^;]*{names}, and"):
        read_state_dict(tmp_path)
    assert not trap.exists()
    if form == "plain":
        pickle.loads((tmp_path / "x.pt").read_bytes())
    else:
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert trap.exists()  # the trap works: it was the reader that kept it shut


def test_allowing_one_class_lets_no_other_in(tmp_path: Path) -> None:
    trap = tmp_path / "it_ran"
    options = argparse.Namespace(layers=2)
    torch.save({"model": BOTH, "args": options}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"asks for argparse\.Namespace, .* \(allowed beside tensors: nothing\)"):
        read_state_dict(tmp_path / "x.pt")
    assert same(read_state_dict(tmp_path / "x.pt", allow=(argparse.Namespace,)), BOTH)
    assert read_pickle(tmp_path / "x.pt", allow=(argparse.Namespace,))["args"] == options
    with pytest.raises(WeightsError, match="asks for argparse"):  # allowed for that one call only
        read_state_dict(tmp_path / "x.pt")
    torch.save({"model": BOTH, "args": options, "evil": Payload(os.system, f"touch {trap}")}, tmp_path / "y.pt")
    with pytest.raises(WeightsError, match=r"\.system, .* \(allowed beside tensors: argparse\.Namespace\)"):
        read_state_dict(tmp_path / "y.pt", allow=(argparse.Namespace,))
    assert not trap.exists()


def test_a_published_fairseq_checkpoint_is_read_with_its_options_allowed() -> None:
    files = (SourceFile(path="checkpoint_vh.pt"), SourceFile(path="dict.txt"))
    folder = fetch(Source(uri="pypi:sapiens==1.0.5/sapiens/models/v1", files=files))
    names = [file.path for file in files]
    with pytest.raises(WeightsError, match=r"asks for argparse\.Namespace"):
        read_state_dict(folder, names)
    state = read_state_dict(folder, names, allow=(argparse.Namespace,))
    assert state["decoder.sentence_encoder.embed_tokens.weight"].shape[0] == state["decoder.lm_head.bias"].shape[0]


def test_a_pickle_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"]q")
    with pytest.raises(
        WeightsError, match=r"x\.pt: (refused, it is not a pickle of tensors only \(.+\)|not a readable)"
    ):
        read_state_dict(tmp_path)
    with pytest.raises(WeightsError, match=r"cannot be read \(Is a directory\)"):
        read_pickle(tmp_path)
