"""Clusters of similar sequences, so that a test set is not a copy of the training set with a few residues changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.biology.residues import STANDARD

IDENTITY = 0.8
_WORD = 2  # residues in a word; at 80 % identity longer words would leave no bound to filter by
_BAND = 10  # how far an alignment may stray from the diagonal that the ends allow, in residues


def cluster(inputs: Sequence[str]) -> list[int]:
    """Cluster number of each sequence: two that are at least 80 % identical are always in the same cluster.

    Clusters are the connected components of "at least 80 % identical" (single linkage), so that no sequence outside
    a cluster is that close to any inside it. This is stricter than CD-HIT's greedy clusters (Li and Godzik 2006,
    Bioinformatics 22, 1658), which compare with representatives only and leave close pairs in different clusters.
    Identity and filter are CD-HIT's: identical residues in a global alignment over the shorter length, and a pair is
    aligned only if it shares as many words of two residues as that identity needs (each difference spoils at most
    two). Alignments stray at most 10 residues from the diagonals that join both ends; sequences of which one is
    more than 1/0.8 times as long as the other are aligned too, so that a fragment joins its whole.
    """
    from biotite.sequence import ProteinSequence

    unique = sorted(set(inputs), key=lambda text: (-len(text), text))
    codes = [ProteinSequence("".join(r if r in STANDARD else "X" for r in text)) for text in unique]
    words = _words(unique)
    texts_by_word = words.T.tocsr()
    parent = list(range(len(unique)))
    for i, text in enumerate(unique):
        for j in _candidates(words, texts_by_word, i, len(text)):
            if _root(parent, i) != _root(parent, j) and identity(codes[i], codes[j]) >= IDENTITY:
                parent[_root(parent, i)] = _root(parent, j)
    number: dict[int, int] = {}
    place = {text: i for i, text in enumerate(unique)}
    return [number.setdefault(_root(parent, place[text]), len(number)) for text in inputs]


def identity(one: Any, other: Any) -> float:
    """Identical residues of the best global alignment over the shorter length, 0 to 1 (two `ProteinSequence`)."""
    from biotite.sequence.align import SubstitutionMatrix, align_banded

    longer = len(one) - len(other)
    band = (min(0, -longer) - _BAND, max(0, -longer) + _BAND)
    matrix = SubstitutionMatrix.std_protein_matrix()
    trace = align_banded(one, other, matrix, band, gap_penalty=(-10, -1), local=False, max_number=1)[0].trace
    both = trace[(trace >= 0).all(axis=1)]
    same = int((one.code[both[:, 0]] == other.code[both[:, 1]]).sum())
    return same / min(len(one), len(other))


def _words(texts: Sequence[str]) -> Any:
    """Words of each text (sparse, texts x words); a further copy of a word counts as a word of its own."""
    from sklearn.feature_extraction import DictVectorizer

    found: list[dict[str, int]] = []
    for text in texts:
        copies: dict[str, int] = {}
        present: dict[str, int] = {}
        for start in range(len(text) - _WORD + 1):
            word = text[start : start + _WORD]
            copies[word] = copies.get(word, 0) + 1
            present[f"{word}{copies[word]}"] = 1
        found.append(present)
    return DictVectorizer(dtype=np.int32).fit_transform(found)


def _candidates(words: Any, texts_by_word: Any, i: int, length: int) -> NDArray[np.intp]:
    """Earlier (longer or equal) texts that share enough words with text `i`, of `length`, to be 80 % identical."""
    shared = (words[[i]] @ texts_by_word).toarray().ravel()[:i]
    # An alignment with identity p over n residues has at most (1 - p) n differences; each spoils at most _WORD words.
    found: NDArray[np.intp] = np.nonzero(shared >= length - _WORD + 1 - _WORD * (1 - IDENTITY) * length)[0]
    return found


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
