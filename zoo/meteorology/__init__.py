"""Meteorology: fields of the atmosphere on grids, from NetCDF, Zarr or GRIB files to scored forecasts."""

from __future__ import annotations

from zoo.domain import Domain, cards_in

DOMAIN = Domain(
    name="meteorology",
    title="Meteorology: forecasts of fields on the globe",
    models=cards_in("zoo.meteorology.models"),
    tasks={
        "forecast": "zoo.meteorology.forecasting:Forecast",
        "downscaling": "zoo.meteorology.downscaling:Downscaling",
    },
    formats=(".nc", ".nc4", ".zarr", ".grib", ".grib2", ".grb"),
    extra="meteorology",
)
