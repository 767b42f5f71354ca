"""The fields that released checkpoints know, in their order. No torch here: cards name them."""

from __future__ import annotations

_CLIMAX_HPA = (50, 250, 500, 600, 700, 850, 925)
_CLIMAX_ON_LEVELS = (
    "geopotential", "u_component_of_wind", "v_component_of_wind", "temperature", "relative_humidity",
    "specific_humidity",
)  # fmt: skip
CLIMAX = (
    "land_sea_mask",
    "orography",
    "lattitude",  # spelled so in the released data and checkpoints
    "2m_temperature",
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
    *(f"{name}_{level}" for name in _CLIMAX_ON_LEVELS for level in _CLIMAX_HPA),
)
"""The 48 variables of the released checkpoints, in their order; levels in hPa."""

_STORMER_HPA = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
_STORMER_ON_LEVELS = ("geopotential", "u_component_of_wind", "v_component_of_wind", "temperature", "specific_humidity")
STORMER = (
    "2m_temperature",
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
    "mean_sea_level_pressure",
    *(f"{name}_{level}" for name in _STORMER_ON_LEVELS for level in _STORMER_HPA),
)
"""The 69 variables of the released checkpoints, in their order; levels in hPa."""
