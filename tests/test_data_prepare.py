"""From rows to examples: every row is used, or refused with its reason, or skipped and listed."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pandas as pd
import pytest
from conftest import MASKED, REGRESSION, Recipes, peptides, write_csv

from zoo.biology.tokenizers import sapiens
from zoo.data.prepare import Data, Example, fit
from zoo.data.tables import write_table
from zoo.data.vocabulary import RegexTokenizer
from zoo.domain import Cleaned
from zoo.errors import InputError
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.resources import shared
from zoo.weights import fetch

ALL_TRAIN = {"data.split.fractions": [1.0, 0.0, 0.0]}


def prepare(job: Job) -> Data:
    data: Data = job.task.prepare(job, fetch)
    return data


def everything(data: Data) -> list[Example]:
    return sorted((*data.train, *data.valid, *data.test), key=lambda e: (e.row, e.start))


def refused(job: Job) -> list[str]:
    with pytest.raises(InputError) as error:
        prepare(job)
    return list(error.value.problems)


def molecules(recipes: Recipes, rows: list[tuple[str, str]], **data: Any) -> Job:
    """A job of chemistry on SMILES and a number each."""
    path = write_csv(recipes.folder / "molecules.csv", [{"smiles": s, "y": y} for s, y in rows])
    changes = {
        "domain": "chemistry", "model": "rxnmapper_albert", "task": "sequence_regression",
        "data": {
            "path": str(path), "columns": {"input": "smiles", "target": "y"},
            "split": {"method": "random", "fractions": [1.0, 0.0, 0.0]}, **data,
        },
    }  # fmt: skip
    return recipes.job(changes, path=path)


# ------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_columns_that_a_file_does_not_have_are_named_with_their_line(recipes: Recipes, name: str) -> None:
    path = recipes.folder / name
    write_table(pd.DataFrame({"sequence": ["ACD"], "y": ["1"], "part": ["train"]}), path, path.suffix)
    wrong = {"data.columns": {"input": "Sequence", "target": "y"}, "data.where": {"kind": "a"}}
    with pytest.raises(InputError) as refused:
        resolve(read_recipe(recipes.write({**wrong, "data.path": str(path)})))
    told = [re.sub(r"^.*?:\d+ ", "", problem) for problem in refused.value.problems]
    known = f"column of {path}"
    assert told == [
        f'data.columns.input: "Sequence" is not a known {known}; did you mean "sequence"? (known: part, sequence, y)',
        f'data.where.kind: "kind" is not a known {known} (known: part, sequence, y)',
    ]
    path.write_bytes(b"PAR1" if name.endswith("parquet") else b'"a\n')
    resolve(read_recipe(recipes.write({**wrong, "data.path": str(path)})))  # reading the table says what is wrong


# ------------------------------------------------------------------------------------------- accounting


def test_every_row_is_used_or_listed_with_its_reason_and_counted(recipes: Recipes) -> None:
    rows = peptides(20)
    kinds = [{**row, "kind": "peptide"} for row in rows]
    nasty = [
        {"sequence": "ACD3F", "label": "basic", "kind": "peptide"},
        {"sequence": "", "label": "basic", "kind": "peptide"},
        {"sequence": "ACDEF", "label": "", "kind": "peptide"},
        {**kinds[0], "kind": "protein"},
        {**kinds[1]},
        {**kinds[2], "label": "acidic"},
        {**kinds[3], "sequence": kinds[3]["sequence"].lower()},
    ]
    every = [{k: row[k] for k in ("sequence", "label", "kind")} for row in [*kinds, *nasty]]
    changes = {"data.where": {"kind": "peptide"}, "data.unreadable": "skip", "data.duplicates": "remove"}
    data = prepare(recipes.job(changes, path=recipes.csv(every)))

    used = {e.row for e in everything(data)}
    listed = [s.row for s in data.skipped]
    assert sorted([*used, *listed]) == list(range(27))
    assert {s.row: s.reason for s in data.skipped} == {
        2: "the same input has another label elsewhere",
        20: "'3' at position 4 is not a residue (residues: letters A to Z)",
        21: "the sequence is empty: no residues",
        22: "the label is missing",
        23: "data.where: kind is protein",
        24: "repeats row 2",
        25: "the same input has another label elsewhere",
        26: "repeats row 4",
    }
    assert data.notes == {
        "rows that data.where leaves out": 1,
        "rows that cannot be read": 3,
        "lower-case residues upper-cased": 1,
        "repeated rows, removed": 3,
        "inputs with contradictory labels, removed": 1,
    }
    # what is removed adds up: 3 repeated rows and the first of the contradictory ones
    assert len(listed) == 1 + 3 + 3 + 1


def test_antimicrobial_peptides_have_558_repeated_rows_and_22_contradictory_inputs() -> None:
    """Counted by the definition of datasets/antimicrobial_peptides/card.yaml; 4642 inputs less 22 are left."""
    job = resolve(read_recipe(shared() / "recipes/biology/antimicrobial_peptides.yaml", ["data.split.method=random"]))
    data = prepare(job)
    assert data.notes["repeated rows, removed"] == 558
    assert data.notes["inputs with contradictory labels, removed"] == 22
    assert len(everything(data)) == 4620
    assert len(data.skipped) == 558 + 22
    labels = [e.target for e in everything(data)]
    assert (labels.count("AMP"), labels.count("UniProt")) == (2540, 2080)


def test_repeated_rows_are_kept_where_nothing_else_is_said(recipes: Recipes) -> None:
    rows = peptides(12)
    data = prepare(recipes.job(ALL_TRAIN, path=recipes.csv([*rows, *rows])))
    assert len(data.train) == 24
    assert data.skipped == ()


# ------------------------------------------------------------------------------------------- unreadable rows


def test_smiles_that_do_not_parse_stop_with_their_rows_and_reasons(recipes: Recipes) -> None:
    job = molecules(recipes, [("CCO", "1"), ("C1CC", "2"), ("CC(C)C", "3"), ("c1ccccc1(C)(C)(C)", "4")])
    name = recipes.folder / "molecules.csv"
    first, second, last = refused(job)
    assert first == f"{name} row 2: unclosed ring for input: 'C1CC'"
    assert second.startswith(f"{name} row 4: Explicit valence for atom # 5 C")
    assert last == "2 of 4 rows cannot be used; mend them, or say data.unreadable: skip"


def test_smiles_that_do_not_parse_can_be_skipped(recipes: Recipes) -> None:
    job = molecules(recipes, [("CCO", "1"), ("C1CC", "2"), ("OCC", "3"), ("CCN", "")], unreadable="skip")
    data = prepare(job)
    assert [(e.row, e.text, e.target) for e in everything(data)] == [(0, "CCO", 1.0), (2, "CCO", 3.0)]
    assert [(s.row, s.reason) for s in data.skipped] == [
        (1, "unclosed ring for input: 'C1CC'"),
        (3, "the target is missing"),
    ]
    assert data.notes == {"rows that cannot be read": 2, "canonicalised": 1}


def test_lines_that_are_no_record_are_told_with_all_others_and_can_be_skipped(recipes: Recipes) -> None:
    job = molecules(recipes, [("CCO", "1"), ("C1CC", "2")], where={"y": "1"})
    path = recipes.folder / "molecules.csv"
    path.write_text('smiles,y\nCCO,1\nC1CC,1\nCC,1,3\nCCN,2\n"CCC,1\n')
    assert refused(job)[1:] == [
        f"{path} row 3: line 4: 3 fields, the header has 2",
        f"{path} row 5: line 6: its quotes do not match (unexpected end of data)",
        "3 of 4 rows cannot be used; mend them, or say data.unreadable: skip",
    ]
    changed = job.recipe.data.model_copy(update={"unreadable": "skip"})
    data = prepare(dataclasses.replace(job, recipe=job.recipe.model_copy(update={"data": changed})))
    assert [e.row for e in everything(data)] == [0]
    assert [s.row for s in data.skipped] == [1, 2, 3, 4]
    assert data.notes == {"rows that data.where leaves out": 1, "rows that cannot be read": 3}


def test_only_ten_of_many_unreadable_rows_are_shown(recipes: Recipes) -> None:
    problems = refused(molecules(recipes, [("C1CC", "2")] * 15))
    assert len(problems) == 11
    assert problems[-1] == "15 of 15 rows cannot be used; mend them, or say data.unreadable: skip"


def whole(text: str) -> Cleaned:
    return Cleaned(text)


def test_text_that_the_tokenizer_cannot_read_is_a_row_like_any_other_that_cannot(recipes: Recipes) -> None:
    """Such as SMILES with more than 99 rings open at once, which RDKit reads and the vocabulary does not."""
    job = molecules(recipes, [("CCO", "1"), ("C€O", "2")], unreadable="skip")
    job = dataclasses.replace(job, domain=dataclasses.replace(job.domain, clean=f"{__name__}:whole"))
    data = prepare(job)
    assert [(s.row, s.reason) for s in data.skipped] == [(1, "cannot be split into tokens without loss: 'C€O'")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "the target is missing"),
        ("high", 'the target "high" is not a number'),
        ("nan", 'the target "nan" is not finite'),
        ("-inf", 'the target "-inf" is not finite'),
    ],
)
def test_targets_that_are_no_numbers_are_refused(recipes: Recipes, value: str, reason: str) -> None:
    rows = [*peptides(8), {"sequence": "ACD", "label": "basic", "charge": value}]
    path = recipes.csv(rows)
    assert refused(recipes.job(REGRESSION, path=path)) == [
        f"{path} row 9: {reason}",
        "1 of 9 rows cannot be used; mend them, or say data.unreadable: skip",
    ]


def test_missing_labels_are_refused(recipes: Recipes) -> None:
    path = recipes.csv([*peptides(8), {"sequence": "ACD", "label": " ", "charge": 0}])
    assert refused(recipes.job(path=path))[0] == f"{path} row 9: the label is missing"


# ------------------------------------------------------------------------------------------- what is done to inputs


def test_lower_case_and_non_standard_residues_are_read_and_noted(recipes: Recipes) -> None:
    rows = [
        {**row, "sequence": text} for row, text in zip(peptides(5), ["acd", "ACB", "AXC", "A-C.D", "ACD*"], strict=True)
    ]
    data = prepare(recipes.job({**ALL_TRAIN, "data.duplicates": "keep"}, path=recipes.csv(rows)))
    assert [e.text for e in everything(data)] == ["ACD", "ACB", "AXC", "ACD", "ACD"]
    assert data.notes == {
        "lower-case residues upper-cased": 1,
        "non-standard residues: B": 1,
        "non-standard residues: X": 1,
        "alignment gaps removed": 1,
        "stop codon at the end removed": 1,
        "inputs with tokens that the model does not know": 1,  # Sapiens reads X as any residue, B not at all
    }


def long(recipes: Recipes, policy: str | None, **changes: Any) -> Job:
    rows = [*peptides(8), {"sequence": "ACDEFGHIKLMNPQRSTVWY", "label": "basic", "charge": 0}]
    changes = {**ALL_TRAIN, "data.max_length": 18, "data.too_long": policy, **changes}
    return recipes.job(changes, path=recipes.csv(rows))


def test_inputs_that_are_too_long_stop_unless_the_recipe_says_what_to_do(recipes: Recipes) -> None:
    assert refused(long(recipes, None)) == [
        f"{recipes.folder / 'peptides.csv'} row 9: 22 tokens, the limit is 18",
        "1 inputs are too long; set data.too_long to truncate or window, or data.max_length",
    ]


def test_inputs_that_are_too_long_are_truncated_with_a_count(recipes: Recipes) -> None:
    data = prepare(long(recipes, "truncate"))
    cut = next(e for e in data.train if e.row == 8)
    assert len(cut.ids) == 18
    assert data.notes == {"inputs beyond 18 tokens, truncated": 1}
    assert list(cut.ids) == sapiens().encode(
        "ACDEFGHIKLMNPQRS"
    )  # special tokens at both ends, the first 16 residues between them


def test_inputs_that_are_too_long_are_cut_into_windows_that_hold_every_token_once(recipes: Recipes) -> None:
    data = prepare(long(recipes, "window"))
    windows = [e for e in everything(data) if e.row == 8]
    encode = sapiens().encode
    assert [(e.start, list(e.ids)) for e in windows] == [
        (0, encode("ACDEFGHIKLMNPQRS")),
        (16, encode("TVWY")),
    ]
    assert {e.target for e in windows} == {"basic"}
    assert data.notes == {"inputs beyond 18 tokens, cut into windows": 1}


def test_windows_are_as_many_as_needed_and_no_more() -> None:
    tokenizer = RegexTokenizer(["p", "c", "s", *"ab"], ".", pad="p", cls="c", sep="s")
    for size in range(1, 30):
        ids = tokenizer.encode("ab" * size)
        cuts = fit(ids, 10, "window", tokenizer)
        assert len(cuts) == -(-2 * size // 8)
        assert [token for _, window in cuts for token in window[1:-1]] == ids[1:-1]
        assert all(len(window) <= 10 and window[0] == 1 and window[-1] == 2 for _, window in cuts)


# ------------------------------------------------------------------------------------------- columns, where, files


def test_a_wrong_column_of_a_domains_own_kind_of_file_is_named_too(recipes: Recipes) -> None:
    path = recipes.folder / "some.fasta"
    path.write_text(">a\nACD\n")
    job = recipes.job({"data.columns": {"input": "sequense", "target": "name"}}, path=path)
    assert refused(job)[0].startswith(
        f'{path}: data.columns.input: "sequense" is not a known column; did you mean "sequence"? (known: '
    )


def test_columns_that_a_task_needs_or_does_not_know_are_all_named(recipes: Recipes) -> None:
    with pytest.raises(InputError) as error:
        recipes.job({"data.columns": {"inputs": "sequence"}})
    place = f"{recipes.folder / 'tiny.yaml'}:"
    assert [problem.removeprefix(place) for problem in error.value.problems] == [
        "7 data.columns: sequence_classification needs input: NAME OF A COLUMN",
        "7 data.columns: sequence_classification needs target: NAME OF A COLUMN",
        '8 data.columns.inputs: "inputs" is not a known column of sequence_classification; did you mean "input"? '
        "(known: input, target)",
    ]
    with pytest.raises(InputError) as error:
        recipes.job({**MASKED, "data.columns.target": "label"})
    assert [problem.removeprefix(place) for problem in error.value.problems] == [
        '9 data.columns.target: "target" is not a known column of masked_language_modelling (known: input)'
    ]


def test_a_filter_that_leaves_nothing_is_an_error(recipes: Recipes) -> None:
    path = recipes.csv()
    assert refused(recipes.job({"data.where": {"label": "neutral"}}, path=path)) == [
        f"{path}: data.where (label: neutral) leaves none of 24 rows"
    ]


def test_a_file_without_rows_is_an_error(recipes: Recipes) -> None:
    path = recipes.folder / "bare.csv"
    path.write_text("sequence,label\n")
    assert refused(recipes.job(path=path)) == [f"{path}: has no rows"]


def test_a_source_without_a_card_is_an_error(recipes: Recipes) -> None:
    job = recipes.job()
    data = job.recipe.data.model_copy(update={"source": "elsewhere", "path": None})
    bare = Job(
        job.file, job.recipe.model_copy(update={"data": data}), job.domain, job.card, job.task, None, job.choices
    )
    assert refused(bare) == ['data.source: "elsewhere" has no card']


def test_a_domain_without_a_cleaner_strips_white_space(recipes: Recipes) -> None:
    rows = [{"sequence": s, "label": y} for s, y in ((" ACD ", "basic"), ("DDE", "acidic"), ("  ", "basic"))]
    job = recipes.job({**ALL_TRAIN, "data.unreadable": "skip"}, path=recipes.csv(rows))
    data = prepare(dataclasses.replace(job, domain=dataclasses.replace(job.domain, clean=None)))
    assert [e.text for e in data.train] == ["ACD", "DDE"]
    assert [s.reason for s in data.skipped] == ["the input is empty"]
