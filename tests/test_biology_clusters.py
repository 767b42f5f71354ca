"""Clusters: sequences that are close to each other are never in different ones."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.biology.clusters import cluster, cluster_90, identity
from zoo.biology.fasta import read_fasta
from zoo.domain import datasets
from zoo.weights import fetch

WHOLE = "QVQLQQSGAELARPGASVKMSCKASGYTFTSYTMHWVKQRPGQGLEWIGYINPSSGYTNYNQKFKDKATLTADKSSSTAYMQLSSLTSEDSAVYYCAR"


def _changed(text: str, count: int) -> str:
    """`text` with `count` residues, evenly spread, replaced by others."""
    places = np.linspace(0, len(text) - 1, count).astype(int)
    return "".join("W" if i in places and r != "W" else "G" if i in places else r for i, r in enumerate(text))


def _identity(one: str, other: str) -> float:
    from biotite.sequence import ProteinSequence

    return identity(ProteinSequence(one), ProteinSequence(other))


def test_equal_inputs_share_a_cluster_and_numbers_follow_the_input():
    assert cluster([WHOLE, "ACDEFGHIKLM" * 3, WHOLE]) == [0, 1, 0]


def test_clusters_do_not_depend_on_the_order_of_the_input():
    texts = [WHOLE, _changed(WHOLE, 10), "ACDEFGHIKLM" * 3, _changed("ACDEFGHIKLM" * 3, 3)]
    assert cluster(texts) == [0, 0, 1, 1]
    assert cluster(texts[::-1]) == [0, 0, 1, 1]


def test_threshold_is_80_percent_identity():
    close, far = _changed(WHOLE, 19), _changed(WHOLE, 21)  # of 98 residues: 19.4 % and 21.4 % changed
    assert _identity(WHOLE, close) >= 0.8 > _identity(WHOLE, far)
    assert cluster([WHOLE, close]) == [0, 0]
    assert cluster([WHOLE, far]) == [0, 1]


def test_cluster_90_is_finer():
    close, far = _changed(WHOLE, 9), _changed(WHOLE, 11)  # of 98 residues: 9.2 % and 11.2 % changed
    assert cluster_90([WHOLE, close]) == [0, 0]
    assert cluster_90([WHOLE, far]) == [0, 1]
    assert cluster([WHOLE, far]) == [0, 0]


def test_identity_counts_residues_over_the_shorter_length():
    assert _identity("ACDEFGHIKL", "ACDEFGHIKL") == 1
    assert _identity("ACDEFGHIKL", "ACDEFWHIKL") == pytest.approx(0.9)
    assert _identity("ACDEFGHIKLMNPQ", "ACDEFGHIKL") == 1  # a fragment
    assert _identity("MNPQACDEFGHIKL", "ACDEFGHIKL") == 1
    assert _identity(WHOLE, WHOLE[:40] + WHOLE[43:]) == 1  # a deletion


def test_a_fragment_joins_its_whole():
    assert cluster([WHOLE, WHOLE[20:60]]) == [0, 0]


def test_closeness_is_passed_on():
    far = _changed(WHOLE, 30)
    between = WHOLE[:49] + far[49:]
    assert _identity(WHOLE, far) < 0.8
    assert cluster([WHOLE, far]) == [0, 1]
    assert cluster([WHOLE, between, far]) == [0, 0, 0]


def test_non_standard_residues_and_very_short_inputs_are_clustered_too():
    assert cluster(["AB", "DE", "MKUTAYJAKO", "MKUTAYJAKO"]) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("clusters", "threshold", "largest"), [(cluster, 0.8, [269, 62, 48]), (cluster_90, 0.9, [68, 65, 56])]
)
def test_no_two_real_genes_in_different_clusters_are_close(clusters, threshold, largest):
    """Against an independent count: genes of one length, compared residue by residue without any alignment."""
    card = datasets()["mouse_v_genes"]
    genes = read_fasta(fetch(card.source) / card.files["all"])
    heavy = genes[genes.field1 == "IGH"].sequence.tolist()
    numbers = np.array(clusters(heavy))
    assert np.sort(np.bincount(numbers))[::-1][:3].tolist() == largest
    compared = 0
    for length in {len(text) for text in heavy}:
        rows = np.array([i for i, text in enumerate(heavy) if len(text) == length])
        residues = np.array([list(heavy[i]) for i in rows])
        same = np.stack([(residues == row).mean(axis=1) for row in residues])
        across = numbers[rows][:, None] != numbers[rows]
        assert not (same[across] >= threshold).any()
        compared += int(across.sum())
    assert compared > 10_000
