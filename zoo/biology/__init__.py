"""Biology: proteins written as residues, from CSV, Parquet or FASTA files."""

from __future__ import annotations

from zoo.domain import Domain, cards_in

DOMAIN = Domain(
    name="biology",
    title="Biology: sequences of proteins, peptides and antibodies",
    models=cards_in("zoo.biology.models"),
    readers={
        ".fasta": "zoo.biology.fasta:read_fasta",
        ".fa": "zoo.biology.fasta:read_fasta",
        ".faa": "zoo.biology.fasta:read_fasta",
        ".modlamp.csv": "zoo.biology.modlamp:read_modlamp",
    },
    clean="zoo.biology.residues:clean",
    groups={"cluster": "zoo.biology.clusters:cluster", "cluster_90": "zoo.biology.clusters:cluster_90"},
    baselines={"composition": "zoo.biology.floors:composition"},
    extra="biology",
)
