"""Real files: ERA5's ensemble as NetCDF and GRIB, a climate model's scenarios, a reanalysis without units."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from gridded import z_files

from zoo.card import Source, SourceFile
from zoo.domain import datasets
from zoo.errors import InputError
from zoo.meteorology.fields import Fields
from zoo.meteorology.files import File, Meaning
from zoo.meteorology.grids import Box
from zoo.meteorology.source import look, open_fields
from zoo.weights import fetch

ERA5 = ["geopotential_500", "geopotential_850", "temperature_500", "temperature_850"]
GRIB = SourceFile(
    path="era5-levels-members.grib", sha256="c144fde61ca5d53702bf6f212775ef2cc783bdd66b6865160bf597c1b35ed898"
)


@pytest.fixture(scope="module")
def era5() -> str:
    card = datasets()["era5_levels_members"]
    return str(fetch(card.source) / card.files["all"])


@pytest.fixture(scope="module")
def heights() -> Fields:
    files = [File(path, {"hgt": Meaning(level=level, unit="gpm")}) for level, path in z_files().items()]
    return open_fields(files, ["z_200", "geopotential_500"])[0]


def test_members_of_era5_are_ten_series(era5: str) -> None:
    series = open_fields(era5, ERA5, latitude="ascending")
    assert len(series) == 10
    assert {len(one) for one in series} == {4}
    assert series[0].axis.step_name == "12 hours"
    with xr.open_dataset(era5) as data:
        plain = data["t"].isel(number=4, time=2).sel(isobaricInhPa=850).values
    state = series[4].read(2)
    np.testing.assert_array_equal(series[4].restore(state)[3], plain.astype(np.float32))
    np.testing.assert_array_equal(state[3], plain[::-1].astype(np.float32))
    # a standard atmosphere has 5574 m at 500 hPa and 1457 m at 850 hPa
    heights = state[:2].mean(axis=(1, 2)) / 9.80665
    np.testing.assert_allclose(heights, [5574, 1457], rtol=0.05)


def test_a_card_counts_its_states(era5: str) -> None:
    assert sum(len(one) for one in open_fields(era5, ERA5)) == datasets()["era5_levels_members"].rows
    assert set(datasets()["era5_levels_members"].columns) == {s.name for c in look(era5) for s in c.stored}


def test_grib_holds_what_its_netcdf_holds(era5: str) -> None:
    source = datasets()["era5_levels_members"].source
    path = fetch(Source(uri=source.uri, sha256=source.sha256, files=(GRIB,))) / GRIB.path
    grib, netcdf = (open_fields(str(p), ERA5, members=[0, 7], west=-180) for p in (path, era5))
    for one, other in zip(grib, netcdf, strict=True):
        assert one.grid == other.grid
        assert one.file_units == other.file_units
        # the NetCDF file is packed in steps of 0.1
        np.testing.assert_allclose(one.read(slice(None)), other.read(slice(None)), atol=0.06)
    assert not list(path.parent.glob("*.idx"))  # nothing is written beside the data


def test_a_process_that_reads_grib_and_draws_maps_ends_well() -> None:
    """Each of ecCodes and pyproj brings its own PROJ, and in the wrong order they end a process with a crash."""
    pytest.importorskip("pyproj")
    source = datasets()["era5_levels_members"].source
    path = fetch(Source(uri=source.uri, sha256=source.sha256, files=(GRIB,))) / GRIB.path
    code = (
        "import sys; from zoo.meteorology.files import open_dataset; open_dataset(sys.argv[1]); "
        "import pyproj; print(pyproj.CRS('EPSG:4326').name)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "WGS 84\n"), done.stderr


def test_scenarios_have_years_of_360_days_and_a_region() -> None:
    card = datasets()["north_america_scenarios"]
    folder = fetch(card.source)
    series = [open_fields(str(folder / file), list(card.columns))[0] for file in card.files.values()]
    assert sum(len(one) for one in series) == card.rows
    for one in series:
        assert (one.axis.calendar, one.axis.step_name) == ("360_day", "12 months")
        assert one.axis.year[[0, -1]].tolist() == [1860, 2099]
        assert one.grid.shape == (37, 49)
        assert not one.grid.is_global
    first, last = (one.read([0, -1]).mean(axis=(1, 2, 3)) for one in series)
    assert first[0] == last[0]
    assert first[1] - first[0] > 4 > last[1] - last[0]  # kelvins of warming by 2099: much under A1B, little under E1


def test_monthly_heights_need_their_unit_and_level_from_the_recipe() -> None:
    path = z_files()[500]
    with pytest.raises(
        InputError, match=r"z500_monthly\.nc: geopotential is there without a level, so geopotential_500 can"
    ):
        open_fields(path, ["geopotential_500"])
    with pytest.raises(InputError, match=r"variable hgt: no units attribute in the file.*: hgt: \{unit: UNIT\}"):
        open_fields(File(path, {"hgt": Meaning(level=500)}), ["geopotential_500"])


def test_monthly_heights_of_two_levels_are_one_series(heights: Fields) -> None:
    assert heights.names == ("geopotential_200", "geopotential_500")
    assert len(heights) == 519
    assert heights.axis.step_name == "1 month"
    assert heights.axis.label(518) == "2024-03-01T00:00"
    assert heights.grid.is_global
    with xr.open_dataset(z_files()[500]) as data:
        plain = data["hgt"].isel(time=300).values
    np.testing.assert_allclose(heights.read(300)[1], plain * np.float32(9.80665), rtol=1e-6)
    np.testing.assert_allclose(heights.to_file_units(heights.restore(heights.read(300)))[1], plain, rtol=1e-6)


def test_a_box_makes_poles_fit_patches() -> None:
    file = File(z_files()[500], {"hgt": Meaning(level=500, unit="m")})
    (fields,) = open_fields(file, ["z_500"], box=Box(90, -88, 0, 357.5), latitude="ascending", shape=(72, 144))
    assert fields.grid.latitudes[0] == -87.5
    assert fields.grid.latitudes[-1] == 90
