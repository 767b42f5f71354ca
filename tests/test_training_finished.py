"""A finished run, used: predictions for files of every kind, the same scores again, models that others can load."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import MASKED, REGRESSION, RESIDUES, Recipes, finished, peptides, write_csv
from small_models import small

import zoo
from zoo.errors import InputError, WeightsError
from zoo.training.finished import Run, predict_file, score_file
from zoo.training.run import train

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def opened(regression_run: Path) -> Run:
    return Run.open(regression_run)


@pytest.fixture(scope="module")
def chemistry_run(session_recipes: Callable[[str], Recipes]) -> Path:
    made = session_recipes("chemistry")
    smiles = ["C" * n + end for n in range(1, 8) for end in ("O", "N", "Cl")]
    rows = [{"smiles": s, "y": len(s)} for s in smiles]
    path = write_csv(made.folder / "molecules.csv", rows)
    changes = {
        "domain": "chemistry", "model": "rxnmapper_albert", "task": "sequence_regression",
        "data.columns": {"input": "smiles", "target": "y"}, "data.path": str(path), "train.max_steps": 2,
    }  # fmt: skip
    return finished(made, changes)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------- predicting


def test_tables_are_not_read_from_addresses(opened: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^s3://b/in.csv: tables are not read from an address; copy the file to this"):
        predict_file(opened, "s3://b/in.csv", tmp_path / "out.csv")
    with pytest.raises(InputError, match=r"^file:///in.csv: tables are not read from an address; say /in.csv$"):
        opened.evaluate_file("file:///in.csv")


def test_predictions_keep_rows_order_and_columns_and_name_what_cannot_be_read(opened: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('id,sequence,note\n007,KRKRAG,"a, b"\n2,A1,NA\n3,,\n4,dedeag,1e5\n4,DEDEAG,\n')
    assert predict_file(opened, source, tmp_path / "out.csv") == (5, 2)
    found = rows_of(tmp_path / "out.csv")
    assert list(found[0]) == ["id", "sequence", "note", "prediction", "error"]
    assert [[r["id"], r["sequence"], r["note"]] for r in found] == [
        ["007", "KRKRAG", "a, b"], ["2", "A1", "NA"], ["3", "", ""], ["4", "dedeag", "1e5"], ["4", "DEDEAG", ""],
    ]  # fmt: skip
    assert [r["error"] for r in found] == [
        "",
        "'1' at position 2 is not a residue (residues: letters A to Z)",
        "the sequence is empty: no residues",
        "",
        "",
    ]
    assert [r["prediction"] == "" for r in found] == [False, True, True, False, False]
    # the last digit of a product in fp32 depends on the row of the batch that it is in
    assert float(found[3]["prediction"]) == pytest.approx(float(found[4]["prediction"]), rel=1e-6)


def test_blank_and_malformed_lines_are_rows_with_an_error(opened: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('sequence\nKRKRAG\n\nDEDEAG\n""\nKRKR,1\n"KRKR\nDEDE\n')
    assert predict_file(opened, source, tmp_path / "out.csv") == (7, 4)
    found = rows_of(tmp_path / "out.csv")
    assert [r["sequence"] for r in found] == ["KRKRAG", "", "DEDEAG", "", "KRKR,1", '"KRKR', "DEDE"]
    assert [r["error"] for r in found] == [
        "", "the sequence is empty: no residues", "", "the sequence is empty: no residues",
        "line 6: 2 fields, the header has 1", "line 7: its quotes do not match (unexpected end of data)", "",
    ]  # fmt: skip
    assert [r["prediction"] == "" for r in found] == [bool(r["error"]) for r in found]


def test_columns_of_one_name_come_out_as_they_went_in(opened: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("sequence,a,a\nKRKRAG,1,2\n")
    predict_file(opened, tmp_path / "in.csv", tmp_path / "out.csv")
    header, row = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "sequence,a,a,prediction,error"
    assert row.startswith("KRKRAG,1,2,")


@pytest.mark.parametrize("name", ["regression_run", "lora_run"])
def test_prediction_columns_are_there_even_when_no_row_can_be_read(
    regression_run: Path, lora_run: Path, name: str
) -> None:
    run = Run.open({"regression_run": regression_run, "lora_run": lora_run}[name])
    good, bad = (run.predict_table(pd.DataFrame({"sequence": [text]})) for text in ("KRKRAG", "1"))
    assert list(bad) == list(good)
    assert bad.iloc[0, 1:-1].isna().all()


def test_predictions_are_written_in_the_kind_that_the_name_says(opened: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("sequence\nKRKRAG\n1\n")
    expected = opened.predict_table(pd.DataFrame({"sequence": ["KRKRAG", "1"]}))
    for name, read in (("out.parquet", pd.read_parquet), ("out.TSV", lambda path: pd.read_csv(path, sep="\t"))):
        assert predict_file(opened, tmp_path / "in.csv", tmp_path / name) == (2, 1)
        found = read(tmp_path / name)
        assert list(found) == list(expected)
        assert found["prediction"].tolist() == pytest.approx(expected["prediction"].tolist(), nan_ok=True)
    with pytest.raises(InputError) as error:
        predict_file(opened, tmp_path / "in.csv", tmp_path / "out.xlsx")
    assert str(error.value) == (
        f'{tmp_path / "out.xlsx"}: predictions cannot be written as ".xlsx" (kinds: .csv, .tsv, .parquet); '
        "give it such an ending"
    )


def test_inputs_beyond_the_model_are_errors_of_their_row(opened: Run) -> None:
    table = opened.predict_table(pd.DataFrame({"sequence": ["A" * 142, "A" * 143]}))
    assert table["error"].tolist() == ["", "145 tokens, the limit is 144 (data.too_long: error)"]


def test_predictions_of_windows_are_averaged(recipes: Recipes) -> None:
    changes = {**REGRESSION, "data.max_length": 8, "data.too_long": "window", "train.max_steps": 1}
    run = Run.open(train(recipes.job(changes), output=recipes.folder / "run").folder.path)
    table = run.predict_table(pd.DataFrame({"sequence": ["KRKRAGDEDEAG", "KRKRAG", "DEDEAG"]}))
    whole, first, second = table["prediction"]
    assert whole == pytest.approx((first + second) / 2, rel=1e-5)
    assert first != second


def test_classes_come_with_their_probabilities(lora_run: Path) -> None:
    table = Run.open(lora_run).predict_table(pd.DataFrame({"sequence": ["KRKR", "x1", "DDEE"]}))
    assert list(table) == ["sequence", "prediction", "probability_acidic", "probability_basic", "error"]
    good = table[table["error"] == ""]
    assert set(good["prediction"]) <= {"acidic", "basic"}
    assert (good["probability_acidic"] + good["probability_basic"]).tolist() == pytest.approx([1.0, 1.0])


def test_files_of_every_kind_give_the_same_predictions(opened: Run, tmp_path: Path) -> None:
    sequences = ["KRKRAG", "DEDEAG", RESIDUES]
    table = pd.DataFrame({"sequence": sequences, "n": ["1", "2", "3"]})
    table.to_csv(tmp_path / "in.csv", index=False)
    table.to_csv(tmp_path / "in.tsv", sep="\t", index=False)
    table.to_parquet(tmp_path / "in.parquet")
    (tmp_path / "in.fasta").write_text("".join(f">s{i} x\n{s}\n" for i, s in enumerate(sequences)))
    expected = opened.predict_table(table)["prediction"].tolist()
    for kind in ("csv", "tsv", "parquet", "fasta"):
        assert predict_file(opened, tmp_path / f"in.{kind}", tmp_path / f"{kind}.csv") == (3, 0)
        assert [float(r["prediction"]) for r in rows_of(tmp_path / f"{kind}.csv")] == expected


def test_molecules_of_an_sdf_are_predicted_the_broken_ones_kept(chemistry_run: Path, tmp_path: Path) -> None:
    from rdkit import Chem

    with Chem.SDWriter(str(tmp_path / "in.sdf")) as writer:
        for number, smiles in enumerate(["CCO", "c1ccccc1"]):
            molecule = Chem.MolFromSmiles(smiles)
            molecule.SetProp("number", str(number))
            writer.write(molecule)
    good = (tmp_path / "in.sdf").read_text()
    (tmp_path / "in.sdf").write_text(good + good.split("$$$$")[0].replace(" C ", " Q?", 1) + "$$$$\n")
    run = Run.open(chemistry_run)
    assert predict_file(run, tmp_path / "in.sdf", tmp_path / "out.csv") == (3, 1)
    found = rows_of(tmp_path / "out.csv")
    assert [r["smiles"] for r in found] == ["CCO", "c1ccccc1", ""]
    assert [r["number"] for r in found] == ["0", "1", "0"]
    assert [r["error"] for r in found] == ["", "", "is empty"]
    same = run.predict_table(pd.DataFrame({"smiles": ["CCO", "c1ccccc1"]}))["prediction"].tolist()
    assert [float(r["prediction"]) for r in found[:2]] == same


def test_predictions_are_written_whole_or_not_at_all(opened: Run, tmp_path: Path, monkeypatch: Any) -> None:
    from zoo.errors import TrainingError

    source, target = write_csv(tmp_path / "in.csv", peptides(4)), tmp_path / "out.csv"
    target.write_text("old")

    def full(self: pd.DataFrame, path: Path, **how: Any) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(TrainingError, match=r"out\.csv cannot be written: \[Errno 28\] No space left on device"):
        predict_file(opened, source, target)
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_the_input_is_not_overwritten(opened: Run, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", peptides(4))
    with pytest.raises(InputError) as error:
        predict_file(opened, source, tmp_path / "." / "in.csv")
    assert str(error.value) == f"{source}: is the input itself; write the predictions to another file"


def test_columns_that_predictions_would_replace_are_refused(opened: Run) -> None:
    table = pd.DataFrame({"sequence": ["KR"], "prediction": ["1"], "error": [""]})
    with pytest.raises(InputError) as error:
        opened.predict_table(table)
    assert str(error.value) == (
        "the input has columns named prediction, error already, which predictions would replace"
    )


def test_a_file_without_the_input_column_is_refused(opened: Run, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [{"Sequence": "KR"}])
    with pytest.raises(InputError) as error:
        predict_file(opened, source, tmp_path / "out.csv")
    assert str(error.value) == (
        'input file: data.columns.input: "sequence" is not a known column; did you mean "Sequence"? (known: Sequence)'
    )
    assert not (tmp_path / "out.csv").exists()


def test_predictions_that_are_not_finite_are_errors_of_their_row(regression_run: Path) -> None:
    run = Run.open(regression_run)
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    table = run.predict_table(pd.DataFrame({"sequence": ["KR", "1"]}))
    assert table["error"].tolist()[0] == "the prediction is not finite"


# ------------------------------------------------------------------------------------------- scores


def test_a_task_without_forecast_files_has_none_to_score(opened: Run, tmp_path: Path) -> None:
    message = r"--forecast: sequence_regression makes no forecast files; .* say zoo evaluate .* FILE"
    with pytest.raises(InputError, match=message):
        score_file(opened, tmp_path / "forecast.nc", tmp_path / "truth.nc")
    with pytest.raises(InputError, match=r"--set task.sequence_regression.loss: cannot .* \(can be changed: nothing\)"):
        Run.open(opened.folder.path, overrides=["task.sequence_regression.loss=mae"])
    with pytest.raises(
        InputError, match=r"overrides: the run is open already; give its folder instead, or open it with"
    ):
        zoo.predict(opened, tmp_path / "in.csv", tmp_path / "out.csv", overrides=["train.seed=1"])


@pytest.mark.parametrize("name", ["regression_run", "lora_run", "chemistry_run"])
def test_evaluating_gives_the_very_numbers_of_the_summary(name: str, request: pytest.FixtureRequest) -> None:
    """Precision and batches are those of the plan, although the planner chose them and no recipe names them."""
    folder = request.getfixturevalue(name)
    assert Run.open(folder).evaluate() == json.loads((folder / "summary.json").read_text())["metrics"]


@pytest.mark.parametrize("adapter", ["full", "head"])
def test_a_run_of_esm2_predicts_and_is_evaluated(adapter: str, recipes: Recipes, monkeypatch: Any) -> None:
    monkeypatch.setattr("zoo.resolve.models", lambda: {"esm2_t6_8m": small("esm2_t6_8m")})
    changes = {**REGRESSION, "model": "esm2_t6_8m", "checkpoint": "random", "techniques.adapter": adapter}
    path = train(recipes.job({**changes, "train.max_steps": 2}), output=recipes.folder / "run").folder.path
    run = Run.open(path)
    assert run.evaluate() == json.loads((path / "summary.json").read_text())["metrics"]
    rows = {r["input"]: float(r["prediction"]) for r in rows_of(path / "predictions.csv")}
    again = run.predict_table(pd.DataFrame({"sequence": list(rows)}))["prediction"].tolist()
    assert again == pytest.approx(list(rows.values()), rel=1e-5)


def test_a_masked_language_model_is_evaluated_with_the_same_masks(recipes: Recipes) -> None:
    done = train(recipes.job({**MASKED, "train.max_steps": 1}), output=recipes.folder / "run")
    run = Run.open(done.folder.path)
    assert run.evaluate() == done.summary["metrics"]
    (recipes.folder / "in.csv").write_text("sequence\nKRKRAG\n1\n")
    predict_file(run, recipes.folder / "in.csv", recipes.folder / "out.csv")
    assert [r["masked_tokens"] for r in rows_of(recipes.folder / "out.csv")] == ["1", ""]  # a count, not 1.0


def test_every_row_of_a_file_is_scored_once(opened: Run, tmp_path: Path) -> None:
    rows = peptides(3, seed=8)
    found, notes = opened.evaluate_file(write_csv(tmp_path / "own.csv", [*rows, rows[0]]))
    assert notes == {}
    table = opened.predict_table(pd.DataFrame([*rows, rows[0]]))
    errors = (table["prediction"] - table["charge"].astype(float)) ** 2
    assert found["rmse"] == pytest.approx(float(errors.mean()) ** 0.5)
    assert (found["rows"], found["rows_skipped"]) == (4, 0)
    assert opened.job.task.state() == json.loads((opened.folder.resolved).read_text())["task"]


# ------------------------------------------------------------------------------------------- opening


def test_what_is_no_run_or_did_not_finish_is_refused(regression_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        Run.open(tmp_path)
    assert str(error.value) == f"{tmp_path}: is not a run's folder (resolved.json is missing); make one with zoo train"
    half = tmp_path / "half"
    shutil.copytree(regression_run, half, ignore=shutil.ignore_patterns("model", "summary.json"))
    with pytest.raises(InputError) as error:
        Run.open(half)
    assert str(error.value) == f"{half}: this run did not finish; finish it with zoo train --resume --output {half}"


def test_a_run_predicts_without_the_data_that_it_was_trained_on(recipes: Recipes) -> None:
    path = recipes.csv()
    folder = train(recipes.job({"train.max_steps": 1}, path=path), output=recipes.folder / "run").folder.path
    path.unlink()
    run = Run.open(folder)
    assert run.predict_table(pd.DataFrame({"sequence": ["KR"]}))["error"].tolist() == [""]
    with pytest.raises(InputError, match=r"peptides\.csv: no such file"):
        run.evaluate()


# ------------------------------------------------------------------------------------------- models for others


def encoded(texts: list[str]) -> dict[str, torch.Tensor]:
    from zoo.biology.tokenizers import sapiens

    ids = [sapiens().encode(text) for text in texts]
    assert len({len(i) for i in ids}) == 1
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), len(ids[0]), dtype=torch.long)}


@torch.no_grad()
def test_a_fully_trained_model_loads_with_from_pretrained(opened: Run, regression_run: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    precision = json.loads((regression_run / "summary.json").read_text())["techniques"]["precision"]
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    theirs = AutoModelForSequenceClassification.from_pretrained(regression_run / "model", dtype=dtype).eval()
    texts = ["KRKRAG", "DEDEAG"]
    state = json.loads((regression_run / "resolved.json").read_text())["task"]
    logits = theirs(**encoded(texts)).logits.float().squeeze(-1).double() * state["std"] + state["mean"]
    own = opened.predict_table(pd.DataFrame({"sequence": texts}))["prediction"].tolist()
    assert logits.tolist() == pytest.approx(own, rel=1e-6)


@torch.no_grad()
def test_the_trunk_of_a_mean_pooled_model_loads_with_from_pretrained(chemistry_run: Path) -> None:
    from transformers import AutoModel

    run = Run.open(chemistry_run)
    own = run.model.albert
    theirs, report = AutoModel.from_pretrained(
        chemistry_run / "model", add_pooling_layer=False, output_loading_info=True, dtype=next(own.parameters()).dtype
    )
    assert not report["missing_keys"]
    inputs = {"input_ids": torch.tensor([[12, 20, 30, 13]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    assert torch.equal(theirs.eval()(**inputs).last_hidden_state, own(**inputs).last_hidden_state)


@torch.no_grad()
def test_whoever_may_read_a_run_may_read_its_model(regression_run: Path, lora_run: Path, chemistry_run: Path) -> None:
    for run in (regression_run, lora_run, chemistry_run):
        usual = (run / "summary.json").stat().st_mode
        assert {file.stat().st_mode for file in (run / "model").iterdir()} == {usual}


def test_a_model_of_a_run_is_a_checkpoint_and_an_adapter_is_none(
    recipes: Recipes, regression_run: Path, lora_run: Path
) -> None:
    """Sapiens' published checkpoint has a layout of its own, which what a run saves does not have."""
    job = recipes.job({**REGRESSION, "checkpoint": f"file:{regression_run / 'model'}", "train.max_steps": 1})
    notes = train(job, output=recipes.folder / "again").summary["notes"]
    assert any(re.search(r"weights: converted (\d+) of \1, skipped 0\Z", note) for note in notes), notes
    with pytest.raises(WeightsError) as error:
        train(recipes.job({"checkpoint": f"file:{lora_run / 'model'}"}), output=recipes.folder / "adapted")
    assert str(error.value).startswith(f"{lora_run / 'model'}: is an adapter, and a checkpoint must be a whole model; ")


def test_weights_of_another_configuration_are_refused(recipes: Recipes, regression_run: Path, tmp_path: Path) -> None:
    """Their tensors have the same shapes: with another number of heads they would train, as another model."""
    folder = shutil.copytree(regression_run / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    job = recipes.job({**REGRESSION, "checkpoint": f"file:{folder}", "train.max_steps": 1})
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.3, "use_cache": False}))
    train(job, output=recipes.folder / "same")
    heads = config["num_attention_heads"] // 2
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": heads}))
    with pytest.raises(WeightsError, match=rf"config.json: these weights are not of .*num_attention_heads is {heads}"):
        train(job, output=recipes.folder / "other")


def test_a_saved_model_says_what_its_outputs_mean(
    recipes: Recipes, regression_run: Path, lora_run: Path, chemistry_run: Path
) -> None:
    classes_run = train(recipes.job({"train.max_steps": 1}), output=recipes.folder / "run").folder.path
    learned = json.loads((regression_run / "resolved.json").read_text())["task"]
    said = (regression_run / "model" / "README.md").read_text()
    assert f"the value is output * {learned['std']!r} + {learned['mean']!r}" in said
    assert "`transformers.RobertaForSequenceClassification.from_pretrained(THIS_FOLDER)`" in said
    assert "`transformers` has no class with this head" in (chemistry_run / "model" / "README.md").read_text()
    config = json.loads((classes_run / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "acidic", "1": "basic"}
    assert "0 is acidic, 1 is basic" in (classes_run / "model" / "README.md").read_text()
    adapter = json.loads((lora_run / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"].startswith(("pypi:", "random"))
    assert "peft.PeftModel.from_pretrained(BASE, THIS_FOLDER)" in (lora_run / "model" / "README.md").read_text()


def test_a_name_of_a_model_is_that_model_beside_a_folder_of_that_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sapiens_vh").mkdir()
    assert zoo.load("sapiens_vh").card.name == "sapiens_vh"  # type: ignore[union-attr]
    with pytest.raises(InputError, match="is not a run's folder"):
        zoo.load(Path("sapiens_vh"))


def test_an_adapter_loads_with_peft(lora_run: Path) -> None:
    import peft

    from zoo.domain import Head

    base = zoo.load("sapiens_vh", head=Head("sequence", 2)).model.to(torch.bfloat16)
    theirs = peft.PeftModel.from_pretrained(base, str(lora_run / "model"), autocast_adapter_dtype=False).eval()
    texts = ["KRKRAG", "DEDEAG"]
    chances = theirs(**encoded(texts)).logits.float().softmax(-1)
    own = Run.open(lora_run).predict_table(pd.DataFrame({"sequence": texts}))
    assert chances[:, 1].tolist() == own["probability_basic"].tolist()


# ------------------------------------------------------------------------------------------- from Python


def test_the_same_from_python(recipes: Recipes) -> None:
    recipe = recipes.write({"train.max_steps": 4})
    decision = zoo.plan(recipe, "1GiB")
    assert decision.fits
    assert decision.limits.device_bytes == 2**30
    folder = recipes.folder / "py"
    summary = zoo.train(recipe, "1GiB", output=folder, max_steps=2)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["memory"]["budget_bytes"]) == (2, 2**30)
    run = zoo.load(folder)
    assert isinstance(run, Run)
    source = write_csv(recipes.folder / "in.csv", peptides(3))
    assert zoo.predict(run, source, recipes.folder / "a.csv") == (3, 0)
    assert zoo.predict(folder, source, recipes.folder / "b.csv") == (3, 0)
    assert (recipes.folder / "a.csv").read_bytes() == (recipes.folder / "b.csv").read_bytes()
    assert zoo.evaluate(folder) == zoo.evaluate(run) == summary["metrics"]


def test_a_model_by_name_comes_with_its_tokenizer_and_knows_its_trade() -> None:
    loaded = zoo.load("sapiens_vh")
    heavy = "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMS"
    ids = torch.tensor([loaded.tokenizer.encode(heavy)])
    with torch.no_grad():
        guessed = loaded.model(input_ids=ids).logits.argmax(-1)
    assert (guessed == ids)[0, 1:-1].float().mean() > 0.8  # by chance 0.05
    with pytest.raises(InputError, match=r'zoo\.load: "antibert" is not a known model; did you mean "antiberty"'):
        zoo.load("antibert")
