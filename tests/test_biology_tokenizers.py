"""Residue tokenizers: ids of the published vocabularies, and what happens to residues that they lack."""

from __future__ import annotations

import pytest

from zoo.biology import tokenizers


def test_esm_ids_are_those_of_the_published_alphabet():
    tokenizer = tokenizers.esm(None)
    # fair-esm and transformers' EsmTokenizer: <cls> 0, <pad> 1, <eos> 2, <unk> 3, then L A G V S E R T I D P K ...
    assert tokenizer.encode("MKTAYIAK") == [0, 20, 15, 11, 5, 19, 12, 5, 15, 2]
    assert tokenizer.encode("LAGVSERTIDPKQNFYMHWCXBUZO.-")[1:-1] == list(range(4, 31))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id, tokenizer.vocabulary_size) == (1, 3, 32, 33)
    assert tokenizer.special_ids == {0, 1, 2, 3, 31, 32}


def test_antiberty_ids_are_line_numbers_of_its_vocabulary():
    tokenizer = tokenizers.antiberty(None)
    assert tokenizer.encode("ACY") == [2, 5, 6, 24, 3]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id, tokenizer.vocabulary_size) == (0, 1, 4, 25)


def test_sapiens_ids_are_those_of_a_fairseq_dictionary():
    tokenizer = tokenizers.sapiens(None)
    assert tokenizer.encode("ACY") == [0, 4, 5, 23, 2]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id, tokenizer.vocabulary_size) == (1, 3, 24, 25)


@pytest.mark.parametrize("make", [tokenizers.antiberty, tokenizers.sapiens])
@pytest.mark.parametrize("residue", "BJOUZ")
def test_models_of_twenty_letters_read_other_residues_as_unknown(make, residue):
    tokenizer = make(None)
    assert tokenizer.encode(f"A{residue}C")[2] == tokenizer.unk_id


def test_x_is_unknown_to_antiberty_any_residue_to_sapiens_and_a_token_of_esm():
    assert tokenizers.antiberty(None).encode("X")[1] == 1
    assert tokenizers.sapiens(None).encode("X")[1] == tokenizers.sapiens(None).mask_id
    assert tokenizers.esm(None).encode("X")[1] == 24


def test_esm_reads_the_one_letter_that_it_lacks_as_unknown():
    assert tokenizers.esm(None).encode("J")[1] == 3
