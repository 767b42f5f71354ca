"""Pictures: shared scales, errors centred on zero, units and degrees on them, written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj  # noqa: F401  before ecCodes, which xarray loads: see zoo.meteorology.maps
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import imread

from zoo.errors import InputError, ZooError
from zoo.meteorology.evaluation import persistence_and_climatology
from zoo.meteorology.maps import draw_maps
from zoo.meteorology.skill_plot import SYSTEMS, draw_skill

LATITUDES, LONGITUDES = np.arange(-84.375, 90, 11.25), np.arange(0, 360, 11.25)


def field(name: str = "geopotential", units: str = "m2 s-2", seed: int = 0, level: int | None = 500) -> xr.DataArray:
    waves = 300 * np.sin(np.deg2rad(3 * LONGITUDES + 40 * seed)) * np.cos(np.deg2rad(LATITUDES))[:, None]
    values = {"geopotential": 54000 + waves, "temperature": 270 + waves / 20}.get(name, waves / 15)
    coordinates: dict[str, Any] = {"latitude": LATITUDES, "longitude": LONGITUDES}
    if level is not None:
        coordinates["level"] = level
    return xr.DataArray(values, dims=("latitude", "longitude"), coords=coordinates, name=name, attrs={"units": units})


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn: list[Figure] = []
    save = Figure.savefig

    def saving(self: Figure, *args: Any, **more: Any) -> None:
        drawn.append(self)
        save(self, *args, **more)

    monkeypatch.setattr(Figure, "savefig", saving)
    return drawn


def meshes(figure: Figure) -> list[QuadMesh]:
    maps = [axes for axes in figure.axes if axes.get_title()]
    return [next(c for c in axes.collections if isinstance(c, QuadMesh)) for axes in maps]


def bar_labels(figure: Figure) -> list[str]:
    return [axes.get_ylabel() for axes in figure.axes if not axes.get_title() and axes.get_ylabel()]


@pytest.mark.parametrize("cartopy", [True, False])
def test_forecast_and_truth_share_a_scale_and_the_error_is_centred(tmp_path: Path, figures: list, cartopy: bool):
    path = draw_maps(tmp_path / "maps.png", field(seed=1), field(seed=0), title="A title", cartopy=cartopy)
    forecast, truth, error = meshes(figures[0])
    assert forecast.get_clim() == truth.get_clim()
    low, high = error.get_clim()
    assert low == -high < 0
    assert error.get_cmap().name == "RdBu_r"
    assert bar_labels(figures[0]) == ["geopotential height at 500 hPa (dam)"] * 3
    assert figures[0].get_suptitle() == "A title"
    assert imread(path).shape[1] >= 800  # pixels: read at the width of a README
    assert list(tmp_path.iterdir()) == [path]


def test_the_error_on_the_map_is_the_one_of_the_scores(tmp_path: Path, figures: list):
    draw_maps(tmp_path / "maps.png", field("temperature", "K") + 2.0, field("temperature", "K"), cartopy=False)
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert titles == ["Forecast", "Truth", "Forecast minus truth (RMSE 2 K)"]
    np.testing.assert_allclose(meshes(figures[0])[2].get_array(), 2.0)


def test_degrees_celsius_differ_by_kelvins(tmp_path: Path, figures: list):
    draw_maps(tmp_path / "m.png", field("temperature", "K", 1), field("temperature", "K"), cartopy=False)
    assert bar_labels(figures[0]) == ["temperature at 500 hPa (°C)"] * 2 + ["temperature at 500 hPa (K)"]
    assert meshes(figures[0])[0].get_array().mean() == pytest.approx(270 - 273.15, abs=0.1)


def test_wind_has_a_scale_centred_on_calm(tmp_path: Path, figures: list):
    wind = field("u_component_of_wind", "m s-1")
    draw_maps(tmp_path / "m.png", wind + 10, wind, cartopy=False)
    low, high = meshes(figures[0])[0].get_clim()
    assert low == -high


def test_other_units_are_drawn_as_they_are(tmp_path: Path, figures: list):
    draw_maps(tmp_path / "m.png", field("mystery", "Bq", 1, None), field("mystery", "Bq", 0, None), cartopy=False)
    assert bar_labels(figures[0]) == ["mystery (Bq)"] * 3


def test_axes_are_degrees_from_west_to_east(tmp_path: Path, figures: list):
    draw_maps(tmp_path / "m.png", field(seed=1), field(), cartopy=False)
    axes = next(a for a in figures[0].axes if a.get_title())
    labels = {text.get_text() for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]}
    assert {"60°W", "0°", "60°E", "30°S", "60°N"} <= labels
    left, right = axes.get_xlim()
    assert right - left == pytest.approx(360)
    drawn, data = meshes(figures[0])[0].get_array(), field(seed=1).values
    west = list(LONGITUDES).index(180)  # which is 180 W, the first column
    np.testing.assert_allclose(drawn[:, 0], data[:, west] * 0.1 / 9.80665)


@pytest.mark.parametrize("cartopy", [True, False])
def test_a_region_from_north_to_south_is_drawn_the_right_way_up(tmp_path: Path, figures: list, cartopy: bool):
    region = {"latitude": slice(20, 70), "longitude": slice(10, 100)}
    one, two = (field("temperature", "K", seed).sel(**region).isel(latitude=slice(None, None, -1)) for seed in (1, 0))
    draw_maps(tmp_path / "m.png", one, two, cartopy=cartopy)
    mesh = meshes(figures[0])[0]
    latitudes = mesh.get_coordinates()[:, 0, 1]
    assert (np.diff(latitudes) > 0).all()
    np.testing.assert_allclose(mesh.get_array(), one.values[::-1] - 273.15, rtol=1e-6)


def test_a_missing_point_stays_blank(tmp_path: Path, figures: list):
    forecast = field(seed=1)
    forecast[3, 4] = np.nan
    draw_maps(tmp_path / "m.png", forecast, field(), cartopy=False)
    assert np.ma.masked_invalid(meshes(figures[0])[2].get_array()).mask.sum() == 1


@pytest.mark.parametrize(
    ("forecast", "truth", "message"),
    [
        (field().expand_dims("time"), field(), "forecast has dimensions .*select one"),
        (field().isel(latitude=slice(0, 4)), field(), "regrid one of them first"),
        (field() * np.nan, field(), "no point in common that is a number"),
    ],
)
def test_what_cannot_be_drawn_says_why(tmp_path: Path, forecast: xr.DataArray, truth: xr.DataArray, message: str):
    with pytest.raises(InputError, match=message):
        draw_maps(tmp_path / "m.png", forecast, truth)
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_png_and_whole(tmp_path: Path):
    with pytest.raises(InputError, match=r"give a name that ends in \.png"):
        draw_maps(tmp_path / "m.jpg", field(seed=1), field())
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="the picture cannot be written"):
        draw_maps(tmp_path / "file" / "m.png", field(seed=1), field(), cartopy=False)


def test_without_cartopy_maps_are_plain_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cartopy", None)
    draw_maps(tmp_path / "m.png", field(seed=1), field())
    with pytest.raises(InputError, match=r'cartopy is not installed; run pip install "science-zoo\[maps\]"'):
        draw_maps(tmp_path / "m.png", field(seed=1), field(), cartopy=True)


def test_ecCodes_that_is_loaded_first_makes_maps_plain_and_nothing_aborts(tmp_path: Path):  # noqa: N802
    script = (
        "import sys, types; sys.modules['eccodes'] = types.ModuleType('eccodes')\n"
        "import numpy as np, xarray as xr\n"
        "from zoo.meteorology.maps import draw_maps\n"
        "f = xr.DataArray(np.ones((4, 8)), dims=('latitude', 'longitude'), name='temperature',\n"
        "    coords={'latitude': [-60, -20, 20, 60], 'longitude': np.arange(0, 360, 45)})\n"
        "draw_maps(sys.argv[1], f, f * 2)\n"
        "print('cartopy' in sys.modules)\n"
        "draw_maps(sys.argv[1], f, f * 2, cartopy=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m.png")], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    assert "ecCodes is loaded and cartopy's pyproj cannot be after it" in done.stderr
    assert (tmp_path / "m.png").exists()


# ------------------------------------------------------------------------------------------------------------ skill


@pytest.fixture(scope="module")
def scores() -> xr.Dataset:
    random = np.random.default_rng(0)
    walk = np.cumsum(random.normal(size=(40, 2, len(LATITUDES), len(LONGITUDES))), axis=0) * 100
    truth = xr.Dataset(
        {
            "geopotential": (("time", "level", "latitude", "longitude"), walk, {"units": "m2 s-2"}),
            "mean_sea_level_pressure": (("time", "latitude", "longitude"), walk[:, 0], {"units": "Pa"}),
        },
        coords={
            "time": pd.date_range("2001-01-01", periods=40, freq="6h"), "level": [500, 850],
            "latitude": LATITUDES, "longitude": LONGITUDES,
        },
    )  # fmt: skip
    return persistence_and_climatology(truth, [6, 24, 48, 96], truth.mean("time"), every=4)


def test_skill_is_a_line_for_each_system_in_units_that_are_read(tmp_path: Path, figures: list, scores: xr.Dataset):
    panels = [("geopotential", 500.0), ("geopotential", 850.0), ("mean_sea_level_pressure", None)]
    path = draw_skill(tmp_path / "skill.png", scores, panels, title="Skill")
    first, second, third = (axes for axes in figures[0].axes if axes.get_visible())
    lines = {line.get_label(): line for line in first.lines}
    assert set(lines) == {"persistence", "climatology"}
    assert lines["persistence"].get_color() == SYSTEMS["persistence"][0]
    assert lines["persistence"].get_linestyle() != lines["climatology"].get_linestyle()
    expected = scores["geopotential"].sel(metric="rmse", level=500, system="persistence") * 0.1 / 9.80665
    np.testing.assert_allclose(lines["persistence"].get_ydata(), expected)
    np.testing.assert_allclose(lines["persistence"].get_xdata(), [0.25, 1, 2, 4])
    assert (first.get_xlabel(), first.get_ylabel()) == ("lead time (days)", "RMSE (dam)")
    assert second.get_title() == "Geopotential height at 850 hPa"
    assert third.get_ylabel() == "RMSE (hPa)"
    assert first.get_ylim()[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_correlation_has_no_unit_and_systems_without_one_no_line(tmp_path: Path, figures: list, scores: xr.Dataset):
    draw_skill(
        tmp_path / "s.png", scores.isel(prediction_timedelta=[0, 1]), [("geopotential", 500)], metric="acc_uncentred"
    )
    axes = figures[0].axes[0]
    assert [line.get_label() for line in axes.lines] == ["persistence"]
    assert axes.get_ylabel() == "anomaly correlation (uncentred)"
    assert axes.get_xlabel() == "lead time (hours)"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [6, 24])


@pytest.mark.parametrize(
    ("panels", "metric", "message"),
    [
        ([], "rmse", "skill: no panels"),
        ([("temperature", 500)], "rmse", 'skill: "temperature" is not a known variable'),
        ([("geopotential", 300)], "rmse", r"geopotential has no level 300; its levels are \[500.0, 850.0\]"),
        ([("geopotential", None)], "rmse", "geopotential has no level None"),
        ([("mean_sea_level_pressure", 500)], "rmse", "no level 500; its levels are none"),
        ([("geopotential", 500)], "crps", 'skill: "crps" is not a known metric'),
    ],
)
def test_skill_that_is_not_there_says_what_is(tmp_path: Path, scores: xr.Dataset, panels, metric: str, message: str):
    with pytest.raises(InputError, match=message):
        draw_skill(tmp_path / "s.png", scores, panels, metric=metric)
