"""Clusters of similar sequences, so that a test set is not a copy of the training set with a few residues changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.biology.residues import STANDARD

_WORD = 2  # residues in a word; at 80 % identity longer words would leave no bound to filter by
_BAND = 10  # how far an alignment may stray from the diagonals that join both ends, in residues


def cluster(inputs: Sequence[str]) -> list[int]:
    """Clusters at 80 % identity: two sequences that close are always in the same one. See `at_identity`."""
    return at_identity(inputs, 0.8)


def cluster_90(inputs: Sequence[str]) -> list[int]:
    """Clusters at 90 % identity, for genes of one family, most of which are 80 % identical. See `at_identity`."""
    return at_identity(inputs, 0.9)


def at_identity(inputs: Sequence[str], threshold: float) -> list[int]:
    """Cluster number of each sequence: two that are at least `threshold` identical are always in the same cluster.

    Clusters are the connected components of "at least that identical" (single linkage), so that no sequence outside
    a cluster is that close to any inside it. This is stricter than CD-HIT's greedy clusters (Li and Godzik 2006,
    Bioinformatics 22, 1658), which compare with representatives only and leave close pairs in different clusters.
    Identity and filter are CD-HIT's: identical residues in a global alignment over the shorter length, and a pair is
    aligned only if it shares as many words of two residues as that identity needs (each difference spoils at most
    two). Length is no obstacle: a fragment joins its whole. Alignments stray at most 10 residues from the diagonals
    that join both ends. `threshold` is a fraction; the filter bounds nothing below one half.
    """
    from biotite.sequence import ProteinSequence

    unique = sorted(set(inputs), key=lambda text: (-len(text), text))
    codes = [ProteinSequence("".join(r if r in STANDARD else "X" for r in text)) for text in unique]
    words = _words(unique)
    texts_by_word = words.T.tocsr()
    parent = list(range(len(unique)))
    for i, text in enumerate(unique):
        # An alignment with identity p over n residues has at most (1 - p) n differences; each spoils _WORD words.
        needed = len(text) - _WORD + 1 - _WORD * (1 - threshold) * len(text)
        shared = (words[[i]] @ texts_by_word).toarray().ravel()[:i]
        for j in np.nonzero(shared >= needed)[0].tolist():
            if _root(parent, i) != _root(parent, j) and identity(codes[i], codes[j]) >= threshold:
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


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
