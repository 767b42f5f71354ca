"""Fields of files: whatever the file's order, units and names, the same arrays come out, and go back."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import xarray as xr
from gridded import COLUMNS, LATITUDES, LONGITUDES, ROWS, dataset, dates, expected, write

from zoo.errors import InputError
from zoo.meteorology.fields import Fields
from zoo.meteorology.files import File, Meaning
from zoo.meteorology.grids import Box, Grid, file_grid, layout
from zoo.meteorology.source import look, open_fields

NAMES = ["temperature_500", "2m_temperature", "temperature_850", "land_sea_mask"]


def opened(path: str, names: list[str] | None = None, **options: Any) -> Fields:
    (fields,) = open_fields(path, names or NAMES, **options)
    return fields


FILES: dict[str, dict[str, Any]] = {
    "as ERA5": {},
    "latitude ascending": {"latitudes": LATITUDES[::-1]},
    "longitude -180 to 180": {"longitudes": np.arange(COLUMNS) * 45.0 - 180},
    "levels in Pa": {"level_name": "plev", "level_unit": "Pa", "hpa": 100},
    "levels rising, no unit": {"levels": (250, 500, 850), "level_unit": None, "level_name": "pressure_level"},
    "WeatherBench 2": {"order": ("time", "level", "longitude", "latitude")},
    "level before time": {"order": ("level", "latitude", "time", "longitude")},
    "cfgrib": {
        "level_name": "isobaricInhPa",
        "rename": {"t": "temperature", "t2m": "2t", "latitude": "lat", "longitude": "lon", "time": "valid_time"},
    },
}


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("kind", FILES)
def test_every_layout_of_a_file_gives_the_same_arrays(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", dataset(**FILES[kind]))
    fields = opened(path, latitude="ascending", west=0, shape=(ROWS, COLUMNS))
    assert fields.names == tuple(NAMES)
    assert fields.grid == Grid(tuple(LATITUDES[::-1]), tuple(LONGITUDES))
    assert fields.shape == (4, ROWS, COLUMNS)
    state = fields.read(3)
    assert state.dtype == np.float32
    south_first = LATITUDES[::-1]
    np.testing.assert_array_equal(state[0], expected(18, 500, south_first, LONGITUDES))
    np.testing.assert_allclose(state[1], expected(18, 0, south_first, LONGITUDES), rtol=1e-6)
    np.testing.assert_array_equal(state[2], expected(18, 850, south_first, LONGITUDES))
    np.testing.assert_array_equal(state[3], (south_first > 0).astype(np.float32)[:, None].repeat(COLUMNS, 1))
    assert fields.units == {
        "temperature_500": "K", "2m_temperature": "K", "temperature_850": "K", "land_sea_mask": "1"
    }  # fmt: skip
    assert fields.constant == ("land_sea_mask",)


@pytest.mark.parametrize("kind", FILES)
def test_arrays_go_back_to_the_orientation_and_units_of_the_file(tmp_path: Path, kind: str) -> None:
    data = dataset(**FILES[kind])
    fields = opened(write(tmp_path / "a.nc", data), latitude="ascending", west=-180)
    back = fields.restore(fields.read(5))
    names = {v: k for k, v in {"level": "level", **FILES[kind].get("rename", {})}.items()}
    plain = data.rename({new: old for new, old in names.items() if new in data.variables or new in data.dims})
    plain = plain.transpose(..., "latitude", "longitude")
    np.testing.assert_array_equal(back[3], plain["lsm"].values.astype(np.float32))
    hpa = [500, 850]
    scale = FILES[kind].get("hpa", 1)
    level = next(str(d) for d in plain["t"].dims if d not in ("time", "latitude", "longitude"))
    for place, value in zip((0, 2), hpa, strict=True):
        stored = plain["t"].isel(time=5).sel({level: value * scale}).values
        np.testing.assert_array_equal(back[place], stored.astype(np.float32))
    np.testing.assert_allclose(fields.to_file_units(back)[1], plain["t2m"].isel(time=5).values, rtol=1e-5)
    assert fields.file_units["2m_temperature"] == "degC"
    assert fields.layout.back_grid == fields.layout.file


def test_a_region_over_the_meridian_counts_on_and_goes_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", dataset())
    box = Box(north=60, south=-70, west=-90, east=45)
    fields = opened(path, ["temperature_500"], box=box, latitude="ascending")
    assert fields.grid == Grid((-67.5, -22.5, 22.5), (-90.0, -45.0, 0.0, 45.0))
    np.testing.assert_array_equal(fields.read(1)[0], expected(6, 500, fields.grid.latitudes, fields.grid.longitudes))
    assert fields.layout.back_grid == Grid((22.5, -22.5, -67.5), (0.0, 45.0, 270.0, 315.0))
    np.testing.assert_array_equal(
        fields.restore(fields.read(1))[0], expected(6, 500, [22.5, -22.5, -67.5], [0, 45, 270, 315])
    )


def test_several_times_and_chosen_fields(tmp_path: Path) -> None:
    fields = opened(write(tmp_path / "a.nc", dataset()))
    several = fields.read([4, 0, -1], ["temperature_850", "land_sea_mask"])
    assert several.shape == (3, 2, ROWS, COLUMNS)
    for i, hour in enumerate((24, 0, 54)):
        np.testing.assert_array_equal(several[i, 0], expected(hour, 850, LATITUDES, LONGITUDES))
    np.testing.assert_array_equal(fields.read(slice(2, 4)), np.stack([fields.read(2), fields.read(3)]))


def test_the_latitude_that_climax_wants_is_made_of_the_grid(tmp_path: Path) -> None:
    fields = opened(write(tmp_path / "a.nc", dataset()), ["lattitude", "temperature_500"], latitude="ascending")
    np.testing.assert_array_equal(fields.read(0)[0], LATITUDES[::-1, None].repeat(COLUMNS, 1))


# ---------------------------------------------------------------------------------------------------- several files


def test_files_follow_each_other_in_time_whatever_their_order(tmp_path: Path) -> None:
    write(tmp_path / "b_early.nc", dataset(dates(10)))
    write(tmp_path / "a_late.nc", dataset(dates(6, "2001-01-03T12"), levels=(500, 850), latitudes=LATITUDES))
    fields = opened(str(tmp_path / "*.nc"), ["temperature_850"])
    assert len(fields) == 16
    assert fields.label == "a_late.nc and 1 more"
    for i in range(16):
        np.testing.assert_array_equal(fields.read(i)[0], expected(6 * i, 850, LATITUDES, LONGITUDES))


def test_files_with_different_fields_are_merged(tmp_path: Path) -> None:
    data = dataset()
    paths = [
        write(tmp_path / "t.nc", data[["t"]]),
        write(tmp_path / "s.zarr", data[["t2m"]]),
        write(tmp_path / "c.nc", data[["lsm"]]),
    ]
    (fields,) = open_fields(paths, NAMES)
    one = opened(write(tmp_path / "all.nc", data))
    np.testing.assert_array_equal(fields.read(slice(None)), one.read(slice(None)))
    assert set(fields.paths) == set(paths)


def test_a_file_for_each_time_without_a_dimension_of_time(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / f"{i}.nc", dataset()[["t"]].isel(time=i))
    fields = opened(str(tmp_path / "*.nc"), ["temperature_250"])
    assert len(fields) == 4
    np.testing.assert_array_equal(fields.read(2)[0], expected(12, 250, LATITUDES, LONGITUDES))


def test_the_same_variable_of_two_files_on_levels_that_the_recipe_says(tmp_path: Path) -> None:
    files = []
    for level in (500, 850):
        part = dataset()[["t"]].sel(level=level, drop=True).rename(t="hgt")
        part["hgt"] = part["hgt"].assign_attrs(units="gpm")
        files.append(File(write(tmp_path / f"{level}.nc", part), {"hgt": Meaning(level=level)}))
    (fields,) = open_fields(files, ["geopotential_850", "z_500"])
    assert fields.names == ("geopotential_850", "geopotential_500")
    np.testing.assert_allclose(fields.read(2)[1], 9.80665 * expected(12, 500, LATITUDES, LONGITUDES), rtol=1e-6)


def test_members_are_series_of_their_own_or_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", dataset(members=3))
    each = open_fields(path, ["temperature_500", "2m_temperature"])
    assert [fields.label for fields in each] == ["a.nc member 0", "a.nc member 1", "a.nc member 2"]
    for number, fields in enumerate(each):
        plain = expected(6, 500, LATITUDES, LONGITUDES)
        np.testing.assert_allclose(fields.read(1)[0], plain + np.float32(number * 1e6), rtol=1e-6)
    (chosen,) = open_fields(path, ["temperature_500"], members=[2])
    np.testing.assert_array_equal(chosen.read(1), each[2].read(1, ["temperature_500"]))
    with pytest.raises(InputError, match=r"members: 7 \(there: 0, 1, 2\)"):
        open_fields(path, ["temperature_500"], members=[7])
    with pytest.raises(InputError, match='members: "all" is not each, nor a list of members'):
        open_fields(path, ["temperature_500"], members="all")
    other = write(tmp_path / "b.nc", dataset())
    with pytest.raises(InputError, match=r"members: 1 are asked for, and the files have no ensemble"):
        open_fields(other, ["temperature_500"], members=[1])
    two = write(tmp_path / "c.nc", dataset(dates(4, "2002-01-01"), members=2))
    with pytest.raises(InputError, match=r"c\.nc: members 0, 1, and in the other files 0, 1, 2"):
        open_fields([path, two], ["temperature_500"])


# ------------------------------------------------------------------------------------------------- lazy and constant


def test_reading_opens_no_task_graph_and_reads_each_chunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.meteorology import blocks

    chunks = {"t": {"chunks": (5, 3, ROWS, COLUMNS)}, "t2m": {"chunks": (5, ROWS, COLUMNS)}}
    fields = opened(write(tmp_path / "a.zarr", dataset(), encoding=chunks))
    reads: list[tuple[int, int]] = []
    plain = blocks.Part.read

    def read(self: Any, handles: Any, start: int, stop: int) -> Any:
        reads.append((start, stop))
        return plain(self, handles, start, stop)

    monkeypatch.setattr(blocks.Part, "read", read)
    for index in (7, 8, 9, 5):
        fields.read(index, ["temperature_500"])
    assert reads == [(5, 10)]
    assert fields._reader.handles.get(fields.paths[0]).chunks == {}  # which lists those of task graphs


def test_torch_is_not_needed_to_read_fields(tmp_path: Path) -> None:
    code = (
        "import sys, zoo.meteorology.leaks, zoo.meteorology.climatology, zoo.meteorology.forcings; "
        "from zoo.meteorology.source import open_fields; "
        f"f, = open_fields({write(tmp_path / 'a.nc', dataset())!r}, ['temperature_500']); f.read(3); "
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_kept_blocks_stay_within_their_bytes(tmp_path: Path) -> None:
    chunks = {"t": {"chunks": (1, 3, ROWS, COLUMNS)}}
    limit = 3 * ROWS * COLUMNS * 4
    fields = opened(
        write(tmp_path / "a.zarr", dataset(dates(400)), encoding=chunks), ["temperature_500"], cache_bytes=limit
    )
    for index in range(400):
        np.testing.assert_array_equal(fields.read(index)[0], expected(6 * index, 500, LATITUDES, LONGITUDES))
        assert fields._reader.cache.held_bytes <= limit


def test_many_variables_are_each_read_once_however_little_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States and those two steps later, in order: two blocks of each variable stay, though that is beyond the limit."""
    from zoo.meteorology import blocks

    chunks = {"t": {"chunks": (8, 3, ROWS, COLUMNS)}, "t2m": {"chunks": (8, ROWS, COLUMNS)}}
    path = write(tmp_path / "a.zarr", dataset(dates(64)), encoding=chunks)
    fields = opened(path, ["temperature_500", "2m_temperature"], cache_bytes=ROWS * COLUMNS * 4)
    reads: list[int] = []
    plain = blocks.Part.read

    def read(self: Any, handles: Any, start: int, stop: int) -> Any:
        reads.extend([start] * (stop - start))
        return plain(self, handles, start, stop)

    monkeypatch.setattr(blocks.Part, "read", read)
    for index in range(62):
        fields.read(index)
        fields.read(index + 2)
    assert len(reads) == 2 * 64


def test_states_asked_for_in_order_are_read_ahead_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.meteorology import blocks

    chunks = {"t": {"chunks": (1, 3, ROWS, COLUMNS)}}
    fields = opened(write(tmp_path / "a.zarr", dataset(dates(64)), encoding=chunks), ["temperature_500"])
    reads: list[int] = []
    plain = blocks.Part.read

    def read(self: Any, handles: Any, start: int, stop: int) -> Any:
        reads.append(stop - start)
        return plain(self, handles, start, stop)

    monkeypatch.setattr(blocks.Part, "read", read)
    for index in (40, 3, 21, 9):
        fields.read(index)
    assert reads == [1, 1, 1, 1]
    fields.close()
    reads.clear()
    for index in range(64):
        np.testing.assert_array_equal(fields.read(index)[0], expected(6 * index, 500, LATITUDES, LONGITUDES))
    assert reads == [1, 2, 4, 8, 16, 32, 1]


def _sum(job: tuple[Fields, int]) -> float:
    return float(job[0].read(job[1]).astype(np.float64).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_other_processes_read_the_same(tmp_path: Path, suffix: str, method: str) -> None:
    fields = opened(write(tmp_path / f"a{suffix}", dataset()))
    here = [_sum((fields, i)) for i in range(6)]  # files are open in this process when it forks
    assert b"Dataset" not in pickle.dumps(fields)
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        assert list(pool.map(_sum, [(fields, i) for i in range(6)])) == here


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_store_without_metadata_in_one_place_is_opened_without_a_word(tmp_path: Path) -> None:
    dataset().to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    assert len(opened(str(tmp_path / "a.zarr"))) == 10


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")  # format 3 says nothing of consolidated metadata yet
def test_a_store_behind_a_web_server(tmp_path: Path, zarr_format: Any) -> None:
    dataset().to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, consolidated=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        fields = opened(f"{address}/a.zarr")
        np.testing.assert_array_equal(fields.read(2)[0], expected(12, 500, LATITUDES, LONGITUDES))
        assert fields.paths == (f"{address}/a.zarr",)
        with pytest.raises(InputError, match=r"/b\.zarr: cannot be opened as zarr \(No group found"):
            opened(f"{address}/b.zarr")
        server.shutdown()
    with pytest.raises(InputError, match=r"/a\.zarr: cannot be opened as zarr \(Cannot connect to host"):
        opened(f"{address}/a.zarr")


def test_an_object_store_is_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    address = "memory://era5-test/a.zarr"
    dataset().to_zarr(address, zarr_format=2, consolidated=True)
    fields = opened(address)
    np.testing.assert_array_equal(fields.read(2)[0], expected(12, 500, LATITUDES, LONGITUDES))
    assert len(opened("memory://era5-test/*.zarr")) == 10
    with pytest.raises(InputError, match=r"memory://era5-test/\*\.grib: no such file"):
        opened("memory://era5-test/*.grib")
    with pytest.raises(InputError, match=r"a\.nc: only Zarr is read from an object store; copy the file here, or conv"):
        opened("memory://era5-test/a.nc")
    fsspec.filesystem("memory").rm("/era5-test", recursive=True)
    with pytest.raises(
        InputError, match=r"nosuch://x/\*\.zarr: the store cannot be looked into \(Protocol not known: nosuch"
    ):
        opened("nosuch://x/*.zarr")
    with pytest.raises(InputError, match=r"nosuch://x\.zarr: cannot be opened as zarr \("):
        opened("nosuch://x.zarr")


# ----------------------------------------------------------------------------------------------------- grid, errors


def test_a_grid_that_the_model_does_not_take_is_named_with_the_one_it_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", dataset())
    message = (
        r"a\.nc: the grid is 4 x 8 points, latitude 67\.5 to -67\.5, longitude 0 to 315; "
        r"wanted are 32 x 64\. Regrid the data, cut it with a box"
    )
    with pytest.raises(InputError, match=message):
        opened(path, shape=(32, 64))
    with pytest.raises(
        InputError, match=r"a\.nc: no point of the file in north 10, south -10, west 0, east 10; the file"
    ):
        opened(path, box=Box(north=10, south=-10, west=0, east=10))
    with pytest.raises(
        InputError, match=r"box: north 10, south 20, .*; needed are -90 <= south < north <= 90 and west"
    ):
        Box(north=10, south=20, west=0, east=10)
    with pytest.raises(InputError, match=r'latitude order "up"; it is ascending or descending'):
        opened(path, latitude="up")


@pytest.mark.parametrize(
    ("latitudes", "longitudes", "message"),
    [
        ([[1.0, 2.0]], [0.0, 1.0], r"f: latitude has shape \(1, 2\); only grids of latitudes x longitudes are read"),
        ([0.0, 10.0, 5.0], [0.0, 1.0], r"f: latitude neither rises nor falls all the way \(0 to 5\); put the data in"),
        (
            [0.0, 5.0],
            [0.0, 20.0, 10.0, 30.0, 25.0],
            r"longitude neither .* with xarray: data.sortby\(\"longitude",
        ),
        ([0.0, 5.0], [0.0, 90.0, 45.0, 270.0], r"longitude neither rises nor falls all the way \(0 to 270\)"),
        ([0.0, 95.0], [0.0, 1.0], r"f: latitude goes from 0 to 95, beyond the poles"),
        (
            [0.0, 9.0],
            np.linspace(0, 360, 9),
            r"f: longitude goes from 0 to 360, so the last repeats the first; select the",
        ),
        ([0.0, np.nan], [0.0, 1.0], r"f: latitude neither rises nor falls"),
    ],
)
def test_axes_that_make_no_grid(latitudes: Any, longitudes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        file_grid("f", latitudes, longitudes)


@pytest.mark.parametrize("first", [180.0, 270.0, -180.0])
@pytest.mark.parametrize("way", [1, -1])
def test_longitudes_that_begin_anew_are_counted_on(tmp_path: Path, first: float, way: int) -> None:
    data = dataset()
    start = int(np.flatnonzero(np.isclose(data.longitude % 360, first % 360))[0])
    turned = data.roll(longitude=-start, roll_coords=True).isel(longitude=slice(None, None, way))
    if first < 0:
        turned = turned.assign_coords(longitude=(turned.longitude + 180) % 360 - 180)
        turned = turned.roll(longitude=3, roll_coords=True)  # -180 in the middle
    assert len(np.unique(np.sign(np.diff(turned.longitude)))) == 2
    turned["longitude"].attrs = data["longitude"].attrs
    names = ["temperature_500", "2m_temperature", "land_sea_mask"]
    own, other = (
        opened(write(tmp_path / f"{i}.nc", each), names, west=0, latitude="ascending")
        for i, each in enumerate((data, turned))
    )
    assert other.grid == own.grid
    assert np.array_equal(own.read(1), other.read(1))


def test_only_a_whole_circle_is_global() -> None:
    assert file_grid("f", [1.0, 0.0], LONGITUDES).is_global
    assert not file_grid("f", [1.0, 0.0], LONGITUDES[:-1]).is_global
    place = layout("f", file_grid("f", [1.0, 0.0], LONGITUDES))
    with pytest.raises(InputError, match=r"fields of \(3, 8\) points; the grid is 2 x 8 points"):
        place.back(np.zeros((1, 3, 8)))


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", dataset())
    with pytest.raises(InputError) as error:
        opened(path, ["temperature_300", "2m_temprature", "specific_humidity_500", "temperature_500", "t_500"])
    assert len(error.value.problems) == 4
    assert "temperature has no level 300 hPa (levels there: 250, 500, 850)" in str(error.value)
    assert 'no field "2m_temprature"; did you mean "2m_temperature"?' in str(error.value)
    assert "field temperature_500 is asked for twice (t_500)" in str(error.value)
    with pytest.raises(InputError, match=r"a\.nc: no fields; name at least one of 2m_temperature, land_sea_mask, temp"):
        open_fields(path, [])
    with pytest.raises(InputError, match=r"no field depends on time \(land_sea_mask\); add one that does"):
        opened(path, ["land_sea_mask"])
    fields = opened(path)
    with pytest.raises(InputError, match=r'a\.nc: "q" is not a known field of this selection'):
        fields.read(0, ["q"])
    with pytest.raises(InputError, match=r"a\.nc: no time 10; there are 10 times, counted from 0"):
        fields.read(10)
    with pytest.raises(InputError, match='unreadable: "drop" is not one of error, skip'):
        opened(path, broken="drop")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    one = write(tmp_path / "a.nc", dataset())
    other = write(tmp_path / "b.nc", dataset(latitudes=LATITUDES * 0.9, times=dates(4, "2002-01-01")))
    with pytest.raises(InputError, match=r"b\.nc: the grid is 4 x 8 .*, and that of .*a\.nc is 4 x 8 .*must share it"):
        open_fields([one, other], ["temperature_500"])
    part = write(tmp_path / "c.nc", dataset()[["t2m"]])
    with pytest.raises(InputError, match=r"a\.nc and .*c\.nc both hold 2m_temperature, and otherwise different fields"):
        open_fields([one, part], ["temperature_500", "2m_temperature"])
    with pytest.raises(InputError, match="no files; give at least one path"):
        open_fields([], ["temperature_500"])
    twice = dataset()
    twice["ta"] = twice["t"]
    with pytest.raises(
        InputError, match=r"d\.nc: variables t and ta both mean temperature_850; say in the recipe what"
    ):
        look(write(tmp_path / "d.nc", twice))


def test_units_levels_and_dimensions_that_cannot_be_read(tmp_path: Path) -> None:
    data = dataset()
    del data["t"].attrs["units"]
    path = write(tmp_path / "a.nc", data)
    assert len(opened(path, ["2m_temperature"])) == 10  # what is not asked for may be as it is
    with pytest.raises(InputError, match=r"a\.nc: variable t: no units attribute .*: t: \{unit: UNIT\}"):
        opened(path, ["temperature_500"])
    (told,) = open_fields(File(path, {"t": Meaning(unit="degC")}), ["temperature_500"])
    np.testing.assert_allclose(told.read(0)[0], expected(0, 500, LATITUDES, LONGITUDES) + 273.15, rtol=1e-6)
    with pytest.raises(InputError, match=r'a\.nc: "tt" is not a known variable of the file.* \(known: lsm, t, t2m\)'):
        look(File(path, {"tt": Meaning(unit="K")}))
    with pytest.raises(InputError, match=r"a\.nc: variable t has levels of its own \(850, 500, 250\); leave out level"):
        look(File(path, {"t": Meaning(level=500)}))
    versions = dataset()[["t2m"]].expand_dims(expver=[1, 5])
    path = write(tmp_path / "v.nc", versions)
    with pytest.raises(
        InputError, match=r"v\.nc: variable t2m has 2 of dimension expver \(1, 5\), and one must be chosen"
    ):
        look(path)
    (chosen,) = open_fields(File(path, select={"expver": 5}), ["2m_temperature"])
    np.testing.assert_allclose(chosen.read(1)[0], expected(6, 0, LATITUDES, LONGITUDES), rtol=1e-6)
    with pytest.raises(InputError, match=r"variable t2m: expver = 7 is not there \(there: 1, 5\)"):
        look(File(path, select={"expver": 7}))
    with pytest.raises(InputError, match=r'v\.nc: "version" is not a known dimension of the file'):
        look(File(path, select={"version": 7}))
    sigma = write(tmp_path / "s.nc", dataset(level_unit="sigma"))
    with pytest.raises(
        InputError, match=r'no field "temperature_500".*variable t of .*s\.nc is not used: levels level have'
    ):
        opened(sigma, ["temperature_500", "2m_temperature"])
    doubled = write(tmp_path / "l.nc", dataset(levels=(500, 500))[["t"]])
    with pytest.raises(InputError, match=r"l\.nc: variable t: a level is there twice \(500, 500\)"):
        look(doubled)
    station = xr.Dataset({"t2m": ("time", np.zeros(10), {"units": "K"})}, {"time": dates(10)})
    with pytest.raises(
        InputError, match=r"no variable on a latitude-longitude grid: t2m \(dimensions time, without lat"
    ):
        look(write(tmp_path / "p.nc", station))


def test_files_that_cannot_be_opened_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "era5.nc", dataset())
    with pytest.raises(InputError, match=r"era.nc: no such file; near names in .*: era5\.nc"):
        look(str(tmp_path / "era.nc"))
    with pytest.raises(InputError, match=r"no such file; nor is there a folder .*nowhere"):
        look(str(tmp_path / "nowhere" / "era.nc"))
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"a\.csv: neither NetCDF, Zarr nor GRIB \(it begins with b'a,b"):
        look(str(tmp_path / "a.csv"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        InputError, match=r"folder: a folder, and not a Zarr store; give a file, a pattern such as .*\*\.nc"
    ):
        look(str(tmp_path / "folder"))
    whole = (tmp_path / "era5.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(whole[:2000])
    with pytest.raises(InputError, match=r"cut\.nc: cannot be opened as netcdf \("):
        look(str(tmp_path / "cut.nc"))
    (tmp_path / "a.grib").write_bytes(b"GRIB" + bytes(100))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cfgrib", None)
        with pytest.raises(
            InputError, match=r"a\.grib: cfgrib is needed to read it .*; run pip install 'science-zoo\[grib\]'"
        ):
            look(str(tmp_path / "a.grib"))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.import_module", _no_eccodes)
        with pytest.raises(
            InputError, match=r"cfgrib does not work here \(Cannot find the ecCodes library\); run pip install"
        ):
            look(str(tmp_path / "a.grib"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "netCDF4", None)
        with pytest.raises(InputError, match=r"netCDF4 is needed .*; run pip install 'science-zoo\[meteorology\]'"):
            look(str(tmp_path / "era5.nc"))


def _no_eccodes(name: str) -> Any:
    if name == "cfgrib":
        raise RuntimeError("Cannot find the ecCodes library")
    return sys.modules[name]


# ------------------------------------------------------------------------------------------------- broken in time


def test_times_that_are_there_twice(tmp_path: Path) -> None:
    data = dataset()
    doubled = write(tmp_path / "a.nc", xr.concat([data[["t"]], data[["t"]].isel(time=[4, 5]) * 0 + 7], "time"))
    with pytest.raises(
        InputError, match=r"a\.nc: 2 times are there more than once, first 2001-01-02T00:00 in .*a\.nc; rem"
    ):
        opened(doubled, ["temperature_500"])
    fields = opened(doubled, ["temperature_500"], broken="skip")
    assert len(fields) == 10
    assert fields.notes == {"times there more than once": 2}
    np.testing.assert_array_equal(fields.read(4)[0], expected(24, 500, LATITUDES, LONGITUDES))


def test_gaps_and_times_off_the_step(tmp_path: Path) -> None:
    times = np.delete(dates(20), [5, 6, 11])
    gap = write(tmp_path / "gap.nc", dataset(times))
    message = (
        r"gap\.nc: 2 gaps with 3 missing times, at a step of 6 hours; the first is after "
        r"2001-01-02T00:00; complete the data, or set unreadable: skip"
    )
    with pytest.raises(InputError, match=message):
        opened(gap)
    fields = opened(gap, broken="skip")
    assert fields.notes == {"times missing in gaps": 3}
    assert fields.axis.slots.tolist() == [i for i in range(20) if i not in (5, 6, 11)]
    crooked = dates(12)
    crooked[3] += np.timedelta64(90, "m")
    path = write(tmp_path / "crooked.nc", dataset(crooked))
    with pytest.raises(
        InputError, match=r"crooked\.nc: 1 of 12 times are off the regular step of 6 hours \(first 2001-01-01T19"
    ):
        opened(path)
    fields = opened(path, broken="skip")
    assert fields.notes == {"times off the regular step": 1, "times missing in gaps": 1}
    assert fields.axis.slots[3] == -1


def test_times_that_only_some_files_have(tmp_path: Path) -> None:
    data = dataset()
    one = write(tmp_path / "t.nc", data[["t"]])
    other = write(tmp_path / "s.nc", data[["t2m"]].isel(time=slice(2, None)))
    message = (
        r"2 of 10 times are not in all files: .*t\.nc has 10 from 2001-01-01T00:00 to "
        r".*s\.nc has 8 from 2001-01-01T12:00.*unreadable: skip"
    )
    with pytest.raises(InputError, match=message):
        open_fields([one, other], NAMES[:2])
    (fields,) = open_fields([one, other], NAMES[:2], broken="skip")
    assert fields.notes == {"times that some files lack": 2}
    np.testing.assert_array_equal(fields.read(0)[0], expected(12, 500, LATITUDES, LONGITUDES))
    np.testing.assert_allclose(fields.read(0)[1], expected(12, 0, LATITUDES, LONGITUDES), rtol=1e-6)
    late = write(tmp_path / "l.nc", dataset(dates(4, "2009-01-01"))[["t2m"]])
    with pytest.raises(InputError, match=r"14 of 14 times are not in all files: .* to 2009-01-01T18:00$"):
        open_fields([one, late], NAMES[:2], broken="skip")


def test_times_that_are_no_dates(tmp_path: Path) -> None:
    data = dataset().assign_coords(time=np.arange(10))
    with pytest.raises(
        InputError, match=r"a\.nc: the time coordinate holds int64 and not dates; its units attribute must"
    ):
        opened(write(tmp_path / "a.nc", data))
    with pytest.raises(InputError, match=r"b\.nc: dimension time has no coordinate with dates"):
        look(write(tmp_path / "b.nc", dataset().drop_vars("time")))
    undated = dates(10)
    undated[3] = np.datetime64("NaT")
    with pytest.raises(InputError, match=r"c\.nc: 1 times have no date"):
        opened(write(tmp_path / "c.nc", dataset().assign_coords(time=undated)))


def test_calendars_and_axes_of_time_that_do_not_go_together(tmp_path: Path) -> None:
    import cftime

    real = write(tmp_path / "a.nc", dataset(dates(3)))
    days = [cftime.Datetime360Day(2001, 2, 28 + i) for i in range(3)]
    other = write(tmp_path / "b.nc", dataset(dates(3)).assign_coords(time=days))
    with pytest.raises(
        InputError, match="files differ in their calendar; give files of one calendar with at least one"
    ):
        open_fields([real, other], ["temperature_500"])
    empty = write(tmp_path / "c.nc", dataset(dates(3)).isel(time=slice(0, 0)))
    with pytest.raises(
        InputError, match=r"c\.nc: there is no time in it; give files of one calendar with at least one"
    ):
        open_fields(empty, ["temperature_500"])
    two = dataset(dates(3))
    two["t2m"] = two["t2m"].rename(time="valid_time").assign_coords(valid_time=dates(3))
    with pytest.raises(
        InputError, match=r"d\.nc: several dimensions of time \(time, valid_time\); split the file by var"
    ):
        look(write(tmp_path / "d.nc", two))


def test_values_that_are_missing(tmp_path: Path) -> None:
    data = dataset()
    data["t"][4, 1, 2, 3] = np.nan
    data["t2m"][7] = np.inf
    path = write(tmp_path / "a.nc", data)
    fields = opened(path)
    message = (
        r"a\.nc: at 2001-01-02T00:00 values are missing or not finite: temperature_500 "
        r"\(1 of 32 points\); mend the data, or set unreadable: skip"
    )
    with pytest.raises(InputError, match=message):
        fields.read(4)
    with pytest.raises(InputError, match=r"2m_temperature \(32 of 32 points\)"):
        fields.read(7)
    assert np.isfinite(fields.read(4, ["temperature_850", "2m_temperature"])).all()
    assert np.isnan(fields.read(4, nan="allow")[0, 2, 3])
    assert fields.unreadable() == {
        4: "2001-01-02T00:00: values missing or not finite in temperature_500",
        7: "2001-01-02T18:00: values missing or not finite in 2m_temperature",
    }
    masked = dataset()
    masked["lsm"][0, 0] = np.nan
    with pytest.raises(InputError, match="land_sea_mask has missing values, and it is used at every time"):
        opened(write(tmp_path / "b.nc", masked)).read(0)


def test_a_chunk_that_is_damaged_is_one_unreadable_time(tmp_path: Path) -> None:
    chunks = {"t": {"chunks": (1, 3, ROWS, COLUMNS)}}
    fields = opened(write(tmp_path / "a.zarr", dataset(), encoding=chunks), ["temperature_500"])
    (tmp_path / "a.zarr" / "t" / "6.0.0.0").write_bytes(b"garbage")
    found = fields.unreadable()
    assert list(found) == [6]
    assert found[6].startswith("2001-01-02T12:00: ")
    message = (
        r"a\.zarr: variable t cannot be read at times 6 to 6 of the file \(.*\); fetch the "
        "file again, or set unreadable: skip"
    )
    with pytest.raises(InputError, match=message):
        fields.read(6)


def _states(path: Path, name: str, unit: str, values: float, level: float | None = None) -> str:
    grid = np.full((3, ROWS, COLUMNS), values, dtype=np.float32)
    dims = ("time", "latitude", "longitude")
    coordinates = {"time": dates(3), "latitude": LATITUDES, "longitude": LONGITUDES}
    data = xr.Dataset({name: (dims, grid, {"units": unit})}, coordinates)
    return write(path, data if level is None else data.assign_coords(level=((), level, {"units": "hPa"})))


@pytest.mark.parametrize(
    ("name", "level", "wrong", "right", "value"),
    [
        ("t2m", None, "degC", "K", 285.0),
        ("t2m", None, "K", "degC", 12.0),
        ("t", 500, "degC", "K", 253.0),
        ("msl", None, "Pa", "hPa", 1013.0),
        ("msl", None, "hPa", "Pa", 101300.0),
        ("z", 500, "m2 s-2", "m", 5500.0),
        ("z", 500, "m", "m2 s-2", 54000.0),
        ("z", 50, "m2 s-2", "m", 20500.0),
        ("q", 850, "kg kg-1", "g kg-1", 6.0),
        ("tcc", None, "1", "%", 63.0),
        ("tp24h", None, "m", "mm", 2.7),
    ],
)
def test_values_in_another_unit_than_the_file_says(
    tmp_path: Path, name: str, level: float | None, wrong: str, right: str, value: float
) -> None:
    (found,) = look(_states(tmp_path / "a.nc", name, wrong, value, level))
    field = found.fields[0]
    with pytest.raises(InputError) as refused:
        opened(found.path, [field]).check_units()
    assert f'variable {name} has the unit "{wrong}": {field} would be ' in str(refused.value)
    assert f'{{"a.nc": {{{name}: {{unit: UNIT}}}}}}' in str(refused.value)
    for unit in (wrong, right):
        (told,) = open_fields(File(found.path, {name: Meaning(unit=unit)}), [field])
        told.check_units()
    opened(_states(tmp_path / "b.nc", name, right, value, level), [field]).check_units()


def test_values_that_are_missing_or_of_no_known_size_are_believed(tmp_path: Path) -> None:
    opened(_states(tmp_path / "a.nc", "t2m", "K", np.nan), ["2m_temperature"]).check_units()
    opened(_states(tmp_path / "d.nc", "tp", "m", 1.9), ["total_precipitation"]).check_units()  # of a month
    opened(_states(tmp_path / "b.nc", "u10", "m s-1", 1e6), ["10m_u_component_of_wind"]).check_units()


def test_units_are_looked_at_in_more_than_the_first_file_and_beside_gaps(tmp_path: Path) -> None:
    right, wrong = dataset(), dataset()
    wrong["time"] = wrong["time"] + np.timedelta64(100, "D")
    for data in (right, wrong):
        data["t2m"] = data["t2m"] * 0 + 280.0
        data["t2m"].attrs["units"] = "K"
    wrong["t2m"][:, 0, 0] = np.nan
    paths = [write(tmp_path / "a.nc", right), write(tmp_path / "b.nc", wrong)]
    opened(str(tmp_path / "*.nc"), ["2m_temperature"], broken="skip").check_units()
    wrong["t2m"] = wrong["t2m"] - 273.15
    wrong["t2m"].attrs["units"] = "K"
    write(Path(paths[1]), wrong)
    with pytest.raises(InputError, match=r"b\.nc: variable t2m has the unit .K.: 2m_temperature would be 6\.85 K on"):
        opened(str(tmp_path / "*.nc"), ["2m_temperature"], broken="skip").check_units()
