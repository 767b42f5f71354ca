"""Chemistry: molecules written as SMILES, from CSV, Parquet or SDF files."""

from __future__ import annotations

from zoo.domain import Domain, cards_in

DOMAIN = Domain(
    name="chemistry",
    title="Chemistry: properties of molecules",
    models=cards_in("zoo.chemistry.models"),
    readers={".sdf": "zoo.chemistry.sdf:read_sdf"},
    clean="zoo.chemistry.smiles:clean",
    groups={"scaffold": "zoo.chemistry.smiles:scaffold"},
    baselines={"ecfp_random_forest": "zoo.chemistry.floors:ecfp_random_forest"},
    extra="chemistry",
)
