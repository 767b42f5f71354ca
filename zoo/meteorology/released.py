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

_PRITHVI_LAYERS = (34, 39, 41, 43, 44, 45, 48, 51, 53, 56, 63, 68, 71, 72)
_PRITHVI_ON_LAYERS = (
    "fraction_of_cloud_cover", "height", "vertical_velocity", "air_pressure",
    "specific_cloud_ice_water_content", "specific_cloud_liquid_water_content", "specific_humidity", "temperature",
    "u_component_of_wind", "v_component_of_wind",
)  # fmt: skip
PRITHVI = (
    "latent_heat_flux", "root_zone_soil_wetness", "sensible_heat_flux", "leaf_area_index",
    "surface_absorbed_longwave_flux", "surface_emitted_longwave_flux", "toa_upwelling_longwave_flux",
    "surface_pressure", "2m_specific_humidity", "mean_sea_level_pressure", "surface_net_shortwave_flux",
    "toa_net_shortwave_flux", "2m_temperature", "total_column_cloud_ice_water", "total_column_cloud_liquid_water",
    "total_column_water_vapour", "skin_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind",
    "surface_roughness",
    *(f"{name}_layer_{layer}" for name in _PRITHVI_ON_LAYERS for layer in _PRITHVI_LAYERS),
)  # fmt: skip
"""The 160 variables of MERRA-2 that Prithvi WxC forecasts, in the order of its channels: 20 at the surface (EFLUX,
GWETROOT, HFLUX, LAI, LWGAB, LWGEM, LWTUP, PS, QV2M, SLP, SWGNT, SWTNT, T2M, TQI, TQL, TQV, TS, U10M, V10M, Z0M) and 10
(CLOUD, H, OMEGA, PL, QI, QL, QV, T, U, V) in 14 of the model's 72 layers, the lowest last."""
PRITHVI_STATIC = ("fraction_of_ice", "fraction_of_land", "fraction_of_ocean", "orography")
"""What it is given beside them and does not forecast: FRACI, FRLAND, FROCEAN, PHIS."""
