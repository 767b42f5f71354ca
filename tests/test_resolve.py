"""Names in a recipe: every one that is wrong is reported at once, with file and line and what is allowed."""
# ruff: noqa: E501 - messages are quoted whole

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zoo.domain
import zoo.resolve
from zoo.card import DatasetCard, ModelCard, Source
from zoo.domain import Domain
from zoo.errors import InputError
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.resources import shared

SHIPPED = sorted((shared() / "recipes").rglob("*.yaml"))


class ToyTask:
    """As much of a task as `resolve` looks at."""

    def __init__(self, classes: tuple[str, ...] = (), smoothing: float = 0.0, rows: int | None = None) -> None:
        if smoothing >= 1:
            raise ValueError("smoothing must be below 1")
        if rows == 13:
            raise InputError(["rows must not be 13", "nor may they be unlucky otherwise"])
        self.classes, self.smoothing, self.rows = classes, smoothing, rows


class Demanding:
    def __init__(self, *, grid: int, **others: Any) -> None:
        self.grid = grid


def card(name: str, domain: str, **facts: Any) -> ModelCard:
    usual: dict[str, Any] = {
        "title": name, "parameters": 1, "licence": "MIT", "paper": "-", "config": {}, "build": "a:b", "tokenizer": "a:b",
        "source": Source(uri="file:/"), "max_length": 64, "roles": {"attention": ("*.attention",), "mlp": ("*.mlp",)},
        "tasks": ("toy_task", "demanding"),
    }  # fmt: skip
    return ModelCard(name=name, domain=domain, **{**usual, **facts})


def dataset(name: str, domain: str, *parts: str) -> DatasetCard:
    return DatasetCard(
        name=name, domain=domain, title=name, licence="CC0", source=Source(uri="file:/"), rows=1, columns={},
        files={part: f"{part}.csv" for part in parts},
    )  # fmt: skip


TOY = Domain(
    name="toy", title="Toy", models=(card("toy_small", "toy"), card("toy_bare", "toy", roles={"mlp": ("*.mlp",)})),
    tasks={"toy_task": f"{__name__}:ToyTask", "demanding": f"{__name__}:Demanding"},
    readers={".toy": "a:b"}, groups={"colour": "a:b"},
)  # fmt: skip
OTHER = Domain(name="other", title="Other", models=(card("other_large", "other"),))
DATASETS = {d.name: d for d in (dataset("bricks", "toy", "train", "test"), dataset("blocks", "toy", "all"),
                                dataset("clouds", "other", "all"))}  # fmt: skip

GOOD = """\
name: run
domain: toy
model: toy_small
task: toy_task
data:
  source: bricks
train:
  epochs: 1
"""


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo.resolve, "domains", lambda: {"toy": TOY, "other": OTHER})
    monkeypatch.setattr(zoo.resolve, "models", lambda: {m.name: m for m in (*TOY.models, *OTHER.models)})
    monkeypatch.setattr(zoo.resolve, "datasets", lambda: DATASETS)


def job(text: str = GOOD, *overrides: str) -> Job:
    Path("r.yaml").write_text(text)
    return resolve(read_recipe("r.yaml", overrides))


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        job(text, *overrides)
    return list(caught.value.problems)


def test_names_become_what_they_name() -> None:
    found = job(GOOD.replace("toy_task", "{toy_task: {classes: [a, b], smoothing: 0}}"))
    assert (found.domain, found.card, found.dataset) == (TOY, TOY.models[0], DATASETS["bricks"])
    assert isinstance(found.task, ToyTask)
    assert (found.task.classes, found.task.smoothing, found.task.rows) == (("a", "b"), 0.0, None)
    assert found.recipe is found.file.recipe


@pytest.mark.parametrize("written", ["auto", "{adapter: auto}", "{precision: auto, adapter: auto}"])
def test_what_is_not_named_stays_open(written: str) -> None:
    found = job(f"{GOOD}techniques: {written}\n")
    from zoo.techniques import registry

    assert list(found.choices) == list(registry())
    assert [option.name for option in found.choices["adapter"]] == [option.name for option in registry()["adapter"]]
    assert found.left_out == ()


def test_what_is_named_is_the_only_choice() -> None:
    found = job(f"{GOOD}techniques: {{adapter: lora, precision: {{bf16: {{}}}}}}\n")
    assert [o.describe() for o in found.choices["adapter"]] == ["lora"]
    assert [o.describe() for o in found.choices["precision"]] == ["bf16"]
    assert len(found.choices["checkpointing"]) > 1


def test_several_named_options_stay_open_with_their_parameters() -> None:
    found = job(f"{GOOD}techniques: {{adapter: {{lora: {{rank: 4, targets: [mlp]}}, full: {{}}}}}}\n")
    assert [o.name for o in found.choices["adapter"]] == ["lora", "full"]
    assert found.choices["adapter"][0].rank == 4  # type: ignore[attr-defined]
    assert found.choices["adapter"][0].targets == ("mlp",)  # type: ignore[attr-defined]


def test_columns_that_a_dataset_does_not_have_are_named_with_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"shape": "form", "colour": "paint"}
    monkeypatch.setitem(DATASETS, "bricks", DATASETS["bricks"].model_copy(update={"columns": columns}))
    data = "  columns: {input: shap}\n  where: {tint: red}\n  split: {method: column, column: part}\n"
    assert problems(GOOD.replace("train:\n", f"{data}train:\n")) == [
        'r.yaml:7 data.columns.input: "shap" is not a known column of bricks; did you mean "shape"? (known: colour, shape)',
        'r.yaml:8 data.where.tint: "tint" is not a known column of bricks (known: colour, shape)',
        'r.yaml:9 data.split.column: "part" is not a known column of bricks (known: colour, shape)',
    ]
    assert job(GOOD.replace("train:\n", "  columns: {input: shape}\ntrain:\n")).dataset is DATASETS["bricks"]


def test_more_than_one_device_is_refused_as_long_as_nothing_shards() -> None:
    wrong = "got 4; training is on one device so far, set count: 1"
    assert problems(f"{GOOD}budget:\n  count: 4\n") == [f"r.yaml:10 budget.count: {wrong}"]
    assert problems(GOOD, "budget.count=4") == [f"--set budget.count: {wrong}"]


def test_an_open_option_that_the_model_cannot_have_is_left_out_with_the_reason() -> None:
    found = job(GOOD.replace("toy_small", "toy_bare"))
    assert "lora" not in [option.name for option in found.choices["adapter"]]
    [(option, reason)] = found.left_out
    assert option.name == "lora"
    assert reason == '"attention" is not a role of toy_bare (roles: mlp)'


def test_all_wrong_names_come_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: run
domain: toi
model: toy_smal
checkpoint: pretraned
task: toy_tusk
data:
  source: brick
  split:
    method: rundom
budget:
  gpu: no such gpu
techniques:
  adaptor: lora
  adapter: {lora: {rnak: 8, rank: 0, alpha: "16", dropout: 1.0, targets: attention}, qlora: {}}
  precision: fp8
train:
  epochs: 1
"""
    found = problems(text)
    assert [problem.partition(": ")[0] for problem in found] == [
        "r.yaml:2 domain", "r.yaml:3 model", "r.yaml:4 checkpoint", "r.yaml:5 task", "r.yaml:7 data.source",
        "r.yaml:11 budget.gpu", "r.yaml:13 techniques.adaptor",
        *[f"r.yaml:14 techniques.adapter.{at}" for at in ("lora.rank", "lora.alpha", "lora.dropout", "lora.targets", "lora.rnak", "qlora")],
        "r.yaml:15 techniques.precision",
    ]  # fmt: skip
    assert found[0] == 'r.yaml:2 domain: "toi" is not a known domain; did you mean "toy"? (known: other, toy)'
    assert found[1] == (
        'r.yaml:3 model: "toy_smal" is not a known model; did you mean "toy_small"? (known: other_large, toy_bare, toy_small)'
    )
    assert found[2] == (
        'r.yaml:4 checkpoint: "pretraned" is not a known checkpoint; did you mean "pretrained"? (known: pretrained, random)'
    )
    assert (
        found[4]
        == 'r.yaml:7 data.source: "brick" is not a known dataset; did you mean "bricks"? (known: blocks, bricks, clouds)'
    )
    assert "no such gpu" in found[5]
    assert found[6].startswith(
        'r.yaml:13 techniques.adaptor: "adaptor" is not a known technique; did you mean "adapter"? (known: '
    )


PARAMETERS = "(known: alpha, dora, dropout, rank, rslora, targets)"


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("lorra", 'techniques.adapter: "lorra" is not a known adapter; did you mean "lora"? (known: auto, full, head, lora)'),
        ("{lorra: {}}", 'techniques.adapter.lorra: "lorra" is not a known adapter; did you mean "lora"? (known: full, head, lora)'),
        ("{lora: {rnak: 8}}", f'techniques.adapter.lora.rnak: "rnak" is not a known parameter of lora; did you mean "rank"? {PARAMETERS}'),
        ("{lora: {rank: 0}}", "techniques.adapter.lora.rank: got 0; needs a whole number above 0"),
        ("{lora: {rank: 2.5}}", "techniques.adapter.lora.rank: got 2.5; needs a whole number above 0"),
        ("{lora: {rank: '8'}}", 'techniques.adapter.lora.rank: got the text "8"; needs a whole number above 0; take the quotes away'),
        ("{lora: {dropout: 1}}", "techniques.adapter.lora.dropout: got 1; needs a number of at least 0 and below 1"),
        ("{lora: {targets: mlp}}", 'techniques.adapter.lora.targets: got the text "mlp"; needs a list of text; write [mlp]'),
        ("{lora: {targets: [3]}}", "techniques.adapter.lora.targets[0]: got 3; needs text; write it in quotes"),
        ("{lora: {targets: [atention]}}", 'techniques.adapter.lora.targets: "atention" is not a role of toy_small; did you mean "attention"? (roles: attention, mlp)'),
        ("{lora: {targets: [a, zz]}}", 'techniques.adapter.lora.targets: "a", "zz" are not roles of toy_small (roles: attention, mlp)'),
        ("{full: {rank: 8}}", 'techniques.adapter.full.rank: "rank" is not a known parameter of full (known: none)'),
    ],
)  # fmt: skip
def test_a_wrong_technique_says_what_is_allowed(adapter: str, expected: str) -> None:
    assert problems(f"{GOOD}techniques:\n  adapter: {adapter}\n") == [f"r.yaml:10 {expected}"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "quantization: nf4\n  adapter: full",
            "r.yaml:10 techniques.quantization: nf4: adapter: full trains the weights",
        ),
        (
            "precision: bf16-pure\n  optimizer: adafactor",
            "r.yaml:11 techniques.optimizer: adafactor: rounds to nearest",
        ),
        ("optimizer: adamw-in-backward", "r.yaml:10 techniques.optimizer: adamw-in-backward: max_grad_norm is 1"),
    ],
)
def test_techniques_that_exclude_each_other_are_errors_with_their_line(written: str, expected: str) -> None:
    (found,) = problems(f"{GOOD}techniques:\n  {written}\n", "train.max_grad_norm=1.0")
    assert found.startswith(expected)


def test_what_the_planner_can_still_avoid_is_no_error() -> None:
    found = job(f"{GOOD}techniques:\n  quantization: nf4\n")
    assert [option.name for option in found.choices["quantization"]] == ["nf4"]
    assert "full" in [option.name for option in found.choices["adapter"]]


def test_default_targets_are_checked_where_the_option_is_named() -> None:
    text = GOOD.replace("toy_small", "toy_bare")
    reason = '"attention" is not a role of toy_bare (roles: mlp)'
    assert problems(text + "techniques: {adapter: lora}\n") == [f"r.yaml:9 techniques.adapter: {reason}"]
    assert problems(text + "techniques: {adapter: {lora: {rank: 2}}}\n") == [
        f"r.yaml:9 techniques.adapter.lora.targets: {reason}"
    ]
    assert problems(text, "techniques.adapter=lora") == [f"--set techniques.adapter: {reason}"]


OPTIONS = "(known: classes, rows, smoothing)"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("toy_tusk", 'task: "toy_tusk" is not a known task; did you mean "toy_task"? (known: demanding, toy_task)'),
        ("token_classification", "task: toy_small cannot do token_classification (its tasks: demanding, toy_task)"),
        ("{toy_task: {smothing: 1}}", f'task.toy_task.smothing: "smothing" is not a known option of toy_task; did you mean "smoothing"? {OPTIONS}'),
        ("{toy_task: {classes: a}}", 'task.toy_task.classes: got the text "a"; needs a list of text; write [a]'),
        ("{toy_task: {rows: 1.5}}", "task.toy_task.rows: got 1.5; needs a whole number"),
        ("{toy_task: {smoothing: 2}}", "task.toy_task: smoothing must be below 1"),
        ("demanding", "task.demanding.grid: missing; needs a whole number"),
        ("{demanding: {grid: 1, other: 2}}", 'task.demanding.other: "other" is not a known option of demanding (known: grid)'),
    ],
)  # fmt: skip
def test_a_wrong_task_says_what_is_allowed(task: str, expected: str) -> None:
    assert problems(GOOD.replace("toy_task", task)) == [f"r.yaml:4 {expected}"]


def test_a_task_may_find_several_problems() -> None:
    assert problems(GOOD.replace("toy_task", "{toy_task: {rows: 13}}")) == [
        "r.yaml:4 task.toy_task: rows must not be 13",
        "r.yaml:4 task.toy_task: nor may they be unlucky otherwise",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model=other_large", "model: other_large is a model of other, not of toy (its own: toy_bare, toy_small)"),
        ("data.source=clouds", "data.source: clouds is a dataset of other, not of toy"),
        ("data.source=rain", 'data.source: "rain" is not a known dataset (known: blocks, bricks)'),
        ("data.split.method=scaffold", 'data.split.method: "scaffold" is not a known split method (known: colour, column, given, random)'),
        ("data.max_length=65", "data.max_length: got 65; toy_small takes 3 to 64 tokens, special tokens included"),
        ("data.max_length=2", "data.max_length: got 2; toy_small takes 3 to 64 tokens, special tokens included"),
        ("checkpoint=randm", 'checkpoint: "randm" is not a known checkpoint; did you mean "random"? (known: pretrained, random)'),
        ("checkpoint=file:/no/such/folder", "checkpoint: /no/such/folder: no such file or folder"),
        ("checkpoint=generate:a.b:C?seed=0", "checkpoint: generate:a.b:C?seed=0 makes data, not weights; write pretrained or random"),
        ("checkpoint=pypi:antiberty", 'checkpoint: neither pretrained nor random, and source "pypi:antiberty" is not of the form '
         "pypi:NAME==VERSION/FOLDER/INSIDE/THE/WHEEL; the version must be exact"),
    ],
)  # fmt: skip
def test_a_wrong_name_says_what_is_allowed(override: str, expected: str) -> None:
    assert problems(GOOD, override) == [f"--set {expected}"]


def test_a_given_split_needs_a_test_part() -> None:
    assert job(GOOD, "data.split.method=given").dataset == DATASETS["bricks"]
    assert problems(GOOD, "data.split.method=given", "data.source=blocks") == [
        "--set data.split.method: blocks has no test part of its publisher (parts: all); choose another"
    ]
    Path("mine.csv").write_text("a,b\n")
    assert problems(GOOD, "data.split.method=given", "data.path=mine.csv") == [
        "--set data.split.method: given is the publisher's own split of a dataset; for a file of yours write method: "
        "column with the column of the words train, valid, test"
    ]


@pytest.mark.parametrize("method", ["random", "colour"])
def test_split_methods_of_the_domain_are_known(method: str) -> None:
    assert job(GOOD, f"data.split.method={method}").recipe.data.split.method == method


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet", "x.toy", "x.CSV"])
def test_a_data_file_of_a_readable_type_is_fine(name: str) -> None:
    Path(name).write_text("a,b\n")
    assert job(GOOD, f"data.path={name}").dataset is None


def test_a_wrong_data_file_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(path: object) -> str:
        [problem] = problems(GOOD, f"data.path='{path}'")
        assert problem.startswith("--set data.path: ")
        return problem.removeprefix("--set data.path: ")

    (tmp_path / "folder").mkdir()
    for name, content in (("toys.csv", "a"), ("empty.csv", ""), ("toys.xlsx", "a"), ("toys", "a")):
        (tmp_path / name).write_text(content)
    assert why("folder") == "folder is a folder; name a file"
    assert why("toy.csv") == f'toy.csv: no such file (looked in {tmp_path}); did you mean "toys.csv"?'
    assert why(tmp_path / "q" / "z.csv") == f"{tmp_path}/q/z.csv: no such file"
    assert why("empty.csv") == "empty.csv is empty"
    assert why("toys.xlsx") == 'toys.xlsx: files of type ".xlsx" cannot be read (readable: .csv, .parquet, .toy, .tsv)'
    assert why("toys") == 'toys: files of type "" cannot be read (readable: .csv, .parquet, .toy, .tsv)'

    def refuse(file: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "rb" and file.name == "toys.csv":
            raise PermissionError(13, "Permission denied")
        return open(file, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert why("toys.csv") == "toys.csv cannot be read: Permission denied"


def test_a_checkpoint_may_be_a_source(tmp_path: Path) -> None:
    for checkpoint in ("random", "pypi:antiberty==0.1.3/antiberty", f"file:{tmp_path}", "hf:facebook/esm2@main"):
        assert job(GOOD, f"checkpoint='{checkpoint}'").recipe.checkpoint == checkpoint


def test_every_task_of_every_card_exists() -> None:
    from zoo.tasks import STANDARD

    for model in zoo.domain.models().values():
        assert set(model.tasks) <= {*STANDARD, *zoo.domain.domains()[model.domain].tasks}, model.name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_recipe_resolves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("domains", "models", "datasets"):
        monkeypatch.setattr(zoo.resolve, name, getattr(zoo.domain, name))
    found = resolve(read_recipe(path))
    assert found.card.name == found.recipe.model
    assert all(found.choices.values())
