"""Recipes from disk: what is accepted, and that every problem is reported at once with file and line."""
# ruff: noqa: E501 - messages are quoted whole

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoo.errors import InputError
from zoo.recipe_file import RecipeFile, read_recipe
from zoo.resolve import load_job

GOOD = """\
name: toy
domain: chemistry
model: rxnmapper_albert
task: regression
data:
  source: solubility
  columns: {input: smiles, target: SOL}
budget:
  device: 8GiB
train:
  epochs: 3
  learning_rate: 1e-4
"""

TRAIN_KEYS = (
    "early_stopping, epochs, evaluate_every, global_batch_size, learning_rate, max_grad_norm, max_steps, schedule, "
    "seed, warmup, weight_decay"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder: Path, text: str, *overrides: str) -> RecipeFile:
    (folder / "r.yaml").write_text(text)
    return read_recipe("r.yaml", overrides)


def problems(folder: Path, text: str | bytes, *overrides: str) -> list[str]:
    (folder / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_recipe("r.yaml", overrides)
    assert "pydantic" not in str(caught.value)
    assert "http" not in str(caught.value)
    return list(caught.value.problems)


def test_a_good_recipe_is_read_as_written(folder: Path) -> None:
    file = read(folder, GOOD)
    assert file.recipe.train.learning_rate == 1e-4
    assert file.recipe.train.epochs == 3
    assert file.recipe.budget.device == 8 * 2**30
    assert file.recipe.data.columns == {"input": "smiles", "target": "SOL"}
    assert (file.text, file.path, file.overrides) == (GOOD, Path("r.yaml"), ())


def test_where_names_the_line_of_a_key_or_of_its_nearest_parent(folder: Path) -> None:
    file = read(folder, GOOD, "train.seed=7", "data.split.fractions=[0.5, 0.25, 0.25]")
    assert file.where("train.epochs") == "r.yaml:11 train.epochs"
    assert file.where("data.columns.target") == "r.yaml:7 data.columns.target"
    assert file.where(("data", "columns", "target")) == "r.yaml:7 data.columns.target"
    assert file.where("train.warmup") == "r.yaml:10 train.warmup"
    assert file.where("techniques.adapter") == "r.yaml:1 techniques.adapter"
    assert file.where("train.seed") == "--set train.seed"
    assert file.where(("data", "split", "fractions", 2)) == "--set data.split.fractions[2]"
    assert file.where("data.split.seed") == "--set data.split.seed"
    assert file.where() == "r.yaml:1"


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("5.", 5.0), ("1", 1.0), ("+0x10", None), ("0x10", 16.0), ("012", 12.0),
     ("1_000", None), ("1:30", None), ("yes", None), ('"0.1"', None), ("true", None), (".inf", None), (".nan", None)],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(folder: Path, written: str, value: float | None) -> None:
    text = GOOD.replace("1e-4", written)
    if value is None:
        [problem] = problems(folder, text)
        assert problem.startswith("r.yaml:12 train.learning_rate: got ")
        assert "needs a number above 0" in problem
    else:
        assert read(folder, text).recipe.train.learning_rate == value


@pytest.mark.parametrize("written", ["no", "on", "off", "y", "2024-01-01", "1:30", "0b11"])
def test_words_that_older_yaml_converts_stay_text(folder: Path, written: str) -> None:
    assert read(folder, GOOD.replace("toy", "x").replace("smiles", written)).recipe.data.columns["input"] == written


def test_anchors_aliases_and_merges_work(folder: Path) -> None:
    text = GOOD.replace("epochs: 3", "epochs: &n 3\n  early_stopping: *n")
    assert read(folder, text).recipe.train.early_stopping == 3
    merged = text.replace("{input: smiles, target: SOL}", "&c {input: smiles}\n  where: {<<: *c, input: x, part: test}")
    assert read(folder, merged).recipe.data.where == {"input": "x", "part": "test"}
    merged = text.replace("{input: smiles, target: SOL}", "&c {input: smiles}\n  where: {<<: [*c], part: test}")
    assert read(folder, merged).recipe.data.where == {"part": "test", "input": "smiles"}


def test_every_problem_of_a_file_comes_at_once_in_its_order(folder: Path) -> None:
    text = """\
name: so lubility
domain: chemistry
modle: rxnmapper_albert
task: regression
data:
  source: solubility
  path: x.csv
  columns: {target: 3}
  split:
    method: column
    fractions: [0.5, 0.1]
    seed: -1
budget:
  device: 8 gigs
  gpu: t4
  count: "2"
techniques:
  adapter: 3
  lora: {x: 1, y: }
train:
  epoch: 3
  warmup: 2
  schedule: linea
  seed: yes
  seed: 2
  weight_decay: true
  max_steps: 2.5
learning_rate: 3
output:
  - 3
"""
    top = "budget, checkpoint, data, domain, model, name, output, task, techniques, train"
    assert problems(folder, text, "budget.host=1.5", "trian.seed=1") == [
        'r.yaml:1 name: got the text "so lubility"; needs text (names the run folder: letters, digits, and _ . - inside)',
        f'r.yaml:3 modle: "modle" is not a known key here; did you mean "model"? (known: {top})',
        "r.yaml:7 data.path: cannot stand beside source; give one of the two",
        "r.yaml:8 data.columns.target: got 3; needs text; write it in quotes",
        "r.yaml:10 data.split.method: method: column needs the key column beside it, which names the column of the words "
        "train, valid, test",
        "r.yaml:11 data.split.fractions: got a list of 2; needs a list of 3 numbers (of train, valid and test; they sum "
        "to 1)",
        "r.yaml:12 data.split.seed: got -1; needs a whole number of at least 0 and below 4294967296",
        'r.yaml:14 budget.device: "8 gigs" is not an amount of memory; write for example 8GiB, 24GB or 512MiB',
        "r.yaml:15 budget.gpu: cannot stand beside device; give one of the two",
        'r.yaml:16 budget.count: got the text "2"; needs a whole number above 0; take the quotes away',
        "r.yaml:18 techniques.adapter: got 3; needs auto, an option's name, or a section {NAME: {option: value}}",
        "r.yaml:19 techniques.lora.x: got 1; needs a section of its options, {} for none",
        "r.yaml:19 techniques.lora.y: got nothing; needs a section of its options, {} for none",
        f'r.yaml:21 train.epoch: "epoch" is not a known key here; did you mean "epochs"? (known: {TRAIN_KEYS})',
        "r.yaml:22 train.warmup: got 2; needs a number of at least 0 and below 1",
        'r.yaml:23 train.schedule: got the text "linea"; needs one of constant, linear, cosine',
        'r.yaml:24 train.seed: "seed" is written again on line 25; remove one of the two',
        'r.yaml:24 train.seed: got the text "yes"; needs a whole number of at least 0 and below 4294967296',
        "r.yaml:26 train.weight_decay: got true; needs a number of at least 0",
        "r.yaml:27 train.max_steps: got 2.5; needs a whole number above 0",
        f'r.yaml:28 learning_rate: "learning_rate" is not a known key here (known: {top}); it belongs to train',
        "r.yaml:29 output: got a list of 1; needs text (run folder; default: runs/NAME)",
        "--set budget.host: got 1.5; needs an amount of memory such as 8GiB, 24GB or 512MiB",
        f'--set trian: "trian" is not a known key here; did you mean "train"? (known: {top})',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  epochs: 3\n", "", "r.yaml:10 train: needs either epochs or max_steps"),
        ("epochs: 3", "epochs: 3\n  max_steps: 5", "r.yaml:12 train.max_steps: cannot stand beside epochs; give one of the two"),
        ("epochs: 3", "epochs: null", "r.yaml:10 train: needs either epochs or max_steps"),
        ("  source: solubility\n", "", "r.yaml:5 data: needs either source or path"),
        ("name: toy\n", "", "r.yaml:1 name: missing; needs text (names the run folder: letters, digits, and _ . - inside)"),
        ("model: rxnmapper_albert", "model:", "r.yaml:3 model: got nothing; needs text (name of a model card; see `zoo models`)"),
        ("  device: 8GiB\n", "", "r.yaml:8 budget: got nothing; needs a section with the keys device, gpu, host, count"),
        ("device: 8GiB", "device: 0", 'r.yaml:9 budget.device: "0" is not an amount of memory; write for example 8GiB, 24GB or 512MiB'),
        ("device: 8GiB", "device: true", "r.yaml:9 budget.device: got true; needs an amount of memory such as 8GiB, 24GB or 512MiB"),
        ("device: 8GiB", f"device: {'9' * 400}", f'r.yaml:9 budget.device: "{"9" * 400}" is not an amount of memory; write for example 8GiB, 24GB or 512MiB'),
        ("device: 8GiB", "device: null\n  count: 0", "r.yaml:10 budget.count: got 0; needs a whole number above 0"),
        ("{input: smiles, target: SOL}", "smiles", 'r.yaml:7 data.columns: got the text "smiles"; needs a section of NAME: text (what the task needs -> name of the column)'),
        ("epochs: 3", "epochs: '3'", 'r.yaml:11 train.epochs: got the text "3"; needs a whole number above 0; take the quotes away'),
        ("task: regression", "task: [regression]", "r.yaml:4 task: got a list of 1; needs a task's name, or a section {NAME: {option: value}}"),
        ("task: regression", "task: {a: {}, b: {}}", "r.yaml:4 task: got 2 tasks; name one: `NAME`, or `{NAME: {option: value}}`"),
        ("task: regression", "task: {a: 3}", "r.yaml:4 task.a: got 3; needs a section of its options, {} for none"),
        ("task: regression", "task: null", "r.yaml:4 task: got nothing; needs a task's name, or a section {NAME: {option: value}}"),
        ("task: regression\n", "", "r.yaml:1 task: missing; needs `NAME`, or `{NAME: {option: value}}`"),
        ("budget:", "techniques: none\nbudget:", 'r.yaml:8 techniques: got the text "none"; needs auto, or a section such as {adapter: lora}'),
        ("budget:", "techniques: {adapter: {}}\nbudget:", "r.yaml:8 techniques.adapter: names no option; name one, or write auto to leave it open"),
        ("columns:", "split: {fractions: [0.5, 0.6, -0.1]}\n  columns:", "r.yaml:7 data.split.fractions: must lie between 0 and 1 and sum to 1; they sum to 1"),
        ("columns:", "split: {fractions: [0.5, 0.1, 0.1]}\n  columns:", "r.yaml:7 data.split.fractions: must lie between 0 and 1 and sum to 1; they sum to 0.7"),
        ("columns:", "split: {fractions: [0.5, a, 0.1]}\n  columns:", 'r.yaml:7 data.split.fractions[1]: got the text "a"; needs a number'),
        ("columns:", "split: {column: part}\n  columns:", "r.yaml:7 data.split.column: is for method: column only; the method is random"),
        ("task: regression", "task: regression\n3: x", "r.yaml:1: the key 3 on line 5 is not text; write it in quotes"),
        ("task: regression", "task: regression\n[a]: x", "r.yaml:1: the key of several values on line 5 is not text; write it in quotes"),
        ("task: regression", "task: regression\nname: b", 'r.yaml:1 name: "name" is written again on line 5; remove one of the two'),
        ("toy", "!!python/object/apply:os.getcwd []", "r.yaml:1 name: the tag !!python/object/apply:os.getcwd is not allowed; write a plain value"),
        ("toy", "!mine x", "r.yaml:1 name: the tag !mine is not allowed; write a plain value"),
        ("epochs: 3", "epochs: !!int three", 'r.yaml:11 train.epochs: "three" cannot be read as !!int'),
        ("toy", '"\\ud800"', 'r.yaml:1 name: "\\ud800" cannot be read as !!str'),
        ("{input: smiles, target: SOL}", "{<<: smiles}", "r.yaml:7 data.columns: << on line 7 takes an alias of a section"),
    ],
)  # fmt: skip
def test_each_problem_says_where_what_was_got_and_what_is_allowed(
    folder: Path, old: str, new: str, expected: str
) -> None:
    assert GOOD.count(old) == 1
    assert problems(folder, GOOD.replace(old, new)) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml:1: the file is empty; a recipe is a mapping with the keys name, domain, model"),
        ("# only a comment\n", "r.yaml:1: the file is empty; a recipe is a mapping"),
        ("\n- a\n- b\n", "r.yaml:2: got a list of 2; a recipe is a mapping"),
        ("text", 'r.yaml:1: got the text "text"; a recipe is a mapping'),
        ("name: [1, 2\ntask: x\n", "r.yaml:2:5: not valid YAML: "),
        ("name: x\ntrain:\n\tepochs: 3\n", "r.yaml:3:1: not valid YAML: a tab stands where YAML needs spaces"),
        ("a: b: c\n", "r.yaml:1:5: not valid YAML: mapping values are not allowed here"),
        ("a: *b\n", "r.yaml:1:4: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: not valid YAML: but found another document"),
        ("name: x\na: \0\n", "r.yaml:2: not valid YAML: the character U+0000 is not allowed"),
        ("a: " + "[" * 3000, "r.yaml: not valid YAML: nested too deep, or an alias contains itself"),
        ("a: &a [*a]", "r.yaml:1: more than 40 levels; does an alias contain itself?"),
        ("a: &a {<<: *a}", "r.yaml: not valid YAML: nested too deep, or an alias contains itself"),
        ("a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        ), "r.yaml:1: more than 10000 values; does an alias contain itself?"),
        (b"name: \xff\n", "r.yaml: not UTF-8 text (byte 7); save the recipe as UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_at_all(folder: Path, text: str | bytes, expected: str) -> None:
    [problem] = problems(folder, text)
    assert problem.startswith(expected)


def test_a_byte_order_mark_is_no_problem(folder: Path) -> None:
    assert read(folder, "\ufeff" + GOOD).recipe.name == "toy"


def test_a_missing_file_names_the_nearest_shipped_recipe_and_how_to_list_them(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe("recipes/chemistry/solubilty.yaml")
    message = str(caught.value)
    assert message.startswith(
        "recipes/chemistry/solubilty.yaml: no such file; nearest shipped recipes: recipes/chemistry/solubility.yaml"
    )
    assert "; list all with: ls " in message
    with pytest.raises(InputError, match=r"^qqq: no such file; list all with: ls .*recipes"):
        read_recipe("qqq")
    with pytest.raises(InputError, match=r": is a folder; name a recipe file inside it$"):
        read_recipe(folder)


def test_an_unreadable_file_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"^r\.yaml: cannot be read: Permission denied$"):
        read(folder, GOOD)


def test_shipped_recipes_are_found_from_any_directory(folder: Path) -> None:
    assert read_recipe("recipes/chemistry/solubility.yaml").recipe.domain == "chemistry"


# -------------------------------------------------------------------------------------------------- overrides


def test_overrides_set_create_replace_and_remove(folder: Path) -> None:
    file = read(
        folder, GOOD, "train.learning_rate=3e-5", "data.split.method=scaffold", "budget.device=null",
        "data.columns={input: a, target: b}", "data.columns.target=c", "output= runs/x=y", "train.seed=1", "train.seed=2",
    )  # fmt: skip
    assert file.recipe.train.learning_rate == 3e-5
    assert file.recipe.data.split.method == "scaffold"
    assert file.recipe.budget.device is None
    assert file.recipe.data.columns == {"input": "a", "target": "c"}
    assert file.recipe.output == "runs/x=y"
    assert file.recipe.train.seed == 2
    assert file.overrides[0] == "train.learning_rate=3e-5"
    assert file.text == GOOD


@pytest.mark.parametrize(
    ("override", "section", "gone"),
    [("train.max_steps=5", "train", "epochs"), ("budget.gpu=t4", "budget", "device"), ("data.path=x.csv", "data", "source")],
)  # fmt: skip
def test_an_override_replaces_the_other_one_of_an_exclusive_pair(
    folder: Path, override: str, section: str, gone: str
) -> None:
    file = read(folder, GOOD, override)
    assert getattr(getattr(file.recipe, section), gone) is None
    assert file.where(override.partition("=")[0]).startswith("--set ")


def test_two_overrides_may_not_contradict_each_other(folder: Path) -> None:
    assert problems(folder, GOOD, "train.max_steps=5", "train.epochs=2") == [
        "--set train.max_steps: cannot stand beside epochs; give one of the two"
    ]
    assert read(folder, GOOD, "train.max_steps=5", "train.epochs=null").recipe.train.max_steps == 5


def test_an_override_of_a_choice_takes_the_place_of_the_written_one(folder: Path) -> None:
    def techniques(written: str, override: str) -> object:
        return read(folder, GOOD + f"techniques: {written}\n", override).recipe.techniques

    assert techniques("auto", "techniques.adapter=lora") == {"adapter": "lora"}
    assert techniques("{adapter: lora}", "techniques.adapter.lora.rank=4") == {"adapter": {"lora": {"rank": 4}}}
    assert techniques("{adapter: full}", "techniques.adapter.lora.rank=4") == {"adapter": {"lora": {"rank": 4}}}
    assert techniques("{adapter: {lora: {rank: 8, alpha: 2}}}", "techniques.adapter.lora.rank=4") == {
        "adapter": {"lora": {"rank": 4, "alpha": 2}}
    }
    assert techniques("{adapter: full}", "techniques=null") == "auto"
    assert read(folder, GOOD, "task.classification.classes=3").recipe.task == {"classification": {"classes": 3}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "--set train.epochs: not of the form KEY=VALUE, for example train.epochs=3"),
        ("=3", "--set =3: not of the form KEY=VALUE, for example train.epochs=3"),
        ("train..epochs=3", "--set train..epochs=3: not of the form KEY=VALUE, for example train.epochs=3"),
        ("train.epochs=", "--set train.epochs=: has no value; write train.epochs=null to remove the key"),
        ("data.columns={a: 1", "--set data.columns (value):1:6: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("data.columns={a: b, a: c}", '--set data.columns (value):1 a: "a" is written again on line 1; remove one of the two'),
        ("train.epochs=three", '--set train.epochs: got the text "three"; needs a whole number above 0'),
        ("train.epoch=3", f'--set train.epoch: "epoch" is not a known key here; did you mean "epochs"? (known: {TRAIN_KEYS})'),
        ("train.epoch=null", f'--set train.epoch: "epoch" is not a known key here; did you mean "epochs"? (known: {TRAIN_KEYS})'),
        ("name.x=1", '--set name.x: name is the text "toy" and not a section'),
        ("train={}", "--set train: needs either epochs or max_steps"),
        ("train.epochs=null", "r.yaml:10 train: needs either epochs or max_steps"),
        ("data.split.method=column", "--set data.split.method: method: column needs the key column beside it, which names the "
         "column of the words train, valid, test"),
    ],
)  # fmt: skip
def test_bad_overrides_are_reported_like_bad_keys(folder: Path, override: str, expected: str) -> None:
    assert problems(folder, GOOD, override) == [expected]


def test_an_address_is_no_place_for_a_run(folder: Path) -> None:
    assert problems(folder, GOOD, "output=s3://bucket/run") == [
        "--set output: nothing is written to an address; name a folder of this machine"
    ]


def test_all_malformed_overrides_are_reported_together(folder: Path) -> None:
    assert len(problems(folder, GOOD, "a", "b=", "c=[")) == 3
    others, last = problems(folder, GOOD, "train", "train.epocs=3")
    assert others.startswith('--set train.epocs: "epocs" is not a known key here; did you mean "epochs"?')
    assert last == "--set train: not of the form KEY=VALUE, for example train.epochs=3"


def test_removing_what_is_not_there_is_fine_if_the_key_exists(folder: Path) -> None:
    read(folder, GOOD, "data.split.seed=null", "train.max_grad_norm=null", "techniques.adapter=null")


def test_a_recipe_file_can_be_compared_and_shown(folder: Path) -> None:
    assert read(folder, GOOD) == read(folder, GOOD)
    assert "Places" not in repr(read(folder, GOOD))
    json.dumps(read(folder, GOOD).recipe.model_dump(mode="json"))


def test_wrong_keys_and_wrong_names_are_reported_together_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: x\n"
        "domain: chemistry\n"
        "model: rxnmaper_albert\n"
        "task: sequence_regression\n"
        "data: {source: freesolv, columns: {input: smiles, target: expt}, splt: {method: random}}\n"
        "train: {epocs: 3}\n"
    )
    with pytest.raises(InputError) as error:
        load_job(path)
    lines = [int(problem.removeprefix(f"{path}:").split()[0]) for problem in error.value.problems]
    assert lines == [3, 5, 6]
    assert 'did you mean "rxnmapper_albert"?' in error.value.problems[0]
    assert 'did you mean "split"?' in error.value.problems[1]
    assert 'did you mean "epochs"?' in error.value.problems[2]
