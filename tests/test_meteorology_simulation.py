"""The simulated atmosphere: it obeys its equations, has weather, comes out the same, and is never half a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from zoo.card import Source
from zoo.domain import datasets
from zoo.errors import InputError, ZooError
from zoo.meteorology import simulation
from zoo.meteorology.evaluation import persistence_and_climatology
from zoo.meteorology.scores import latitude_weights
from zoo.meteorology.simulation import GENERATOR, Settings, simulate
from zoo.meteorology.simulation.simulate import _ENVIRONMENT
from zoo.weights import GeneratedSource, parse

SMALL = {
    "states": 3, "spin_up_days": 1, "wavenumber": 10, "layers": 6, "step_minutes": 60, "latitudes": 16,
    "longitudes": 32, "levels": [500, 850],
}  # fmt: skip
EARTH_ROTATION, EARTH_RADIUS = 7.292e-5, 6.37122e6


@pytest.fixture(autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a short run is compiling."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[xr.Dataset]:
    """Twenty days of weather, coarser than the dataset, after 120 days of spin-up."""
    path = simulate(
        tmp_path_factory.mktemp("world") / "world.nc", seed=0, states=80, spin_up_days=120, wavenumber=15, layers=7,
        step_minutes=60, diffusion_hours=8.0,
    )  # fmt: skip
    with xr.open_dataset(path) as dataset:
        yield dataset


def area_mean(values: xr.DataArray) -> xr.DataArray:
    weights = xr.DataArray(latitude_weights(values.latitude), coords={"latitude": values.latitude})
    return values.weighted(weights).mean(["latitude", "longitude"])


def test_the_layout_is_that_of_era5_at_5_625_degrees(world: xr.Dataset):
    np.testing.assert_allclose(world.latitude, np.arange(-87.1875, 90, 5.625))
    np.testing.assert_allclose(world.longitude, np.arange(0, 360, 5.625))
    assert world.level.values.tolist() == [250, 500, 850]
    assert bool((np.diff(world.time) == np.timedelta64(6, "h")).all())
    assert world["geopotential"].attrs["standard_name"] == "geopotential"
    assert {name: world[name].attrs["units"] for name in world} == {
        "u_component_of_wind": "m s-1", "v_component_of_wind": "m s-1", "temperature": "K",
        "geopotential": "m2 s-2", "mean_sea_level_pressure": "Pa",
    }  # fmt: skip
    assert not any(bool(world[name].isnull().any()) for name in world)


def test_the_file_says_that_it_is_simulated_and_how(world: xr.Dataset):
    assert world.attrs["simulated"] == "true"
    assert "not observations" in world.attrs["title"]
    assert world.attrs["simulation_seed"] == 0
    assert world.attrs["simulation_wavenumber"] == 15
    assert world.attrs["generator_version"] == simulation.VERSION
    assert world.attrs["version_of_dinosaur-dycore"]


def test_mass_is_conserved(world: xr.Dataset):
    pressure = area_mean(world["mean_sea_level_pressure"].astype(np.float64))
    assert float(pressure.std()) < 1.0  # of 1e5 Pa
    assert float(pressure[0]) == pytest.approx(1e5, abs=50)


def test_jets_blow_at_30_to_45_degrees_and_trade_winds_at_the_surface(world: xr.Dataset):
    wind = world["u_component_of_wind"].mean(["time", "longitude"])
    for half in (slice(-90, 0), slice(0, 90)):
        jet = wind.sel(level=250, latitude=half)
        assert 20 < float(jet.max()) < 45
        assert 30 < abs(float(jet.latitude[int(jet.values.argmax())])) < 47
    low = wind.sel(level=850)
    assert float(low.sel(latitude=slice(-20, 20)).mean()) < 0 < float(low.sel(latitude=slice(33, 50)).mean())


def test_temperature_is_that_of_held_and_suarez(world: xr.Dataset):
    low = world["temperature"].sel(level=850).mean(["time", "longitude"])
    tropics = float(low.sel(latitude=slice(-15, 15)).mean())
    poles = float(low.where(abs(low.latitude) > 75).mean())
    assert tropics == pytest.approx(299, abs=4)
    assert poles == pytest.approx(261, abs=6)


def test_there_are_waves_in_middle_latitudes_and_few_in_the_tropics(world: xr.Dataset):
    eddies = world["v_component_of_wind"].sel(level=500).std("longitude").mean("time")
    assert float(eddies.sel(latitude=slice(30, 60)).mean()) > 4
    assert float(eddies.sel(latitude=slice(-60, -30)).mean()) > 4
    assert float(eddies.sel(latitude=slice(-15, 15)).mean()) < 3


def test_thickness_of_layers_is_that_of_their_temperature(world: xr.Dataset):
    # hydrostatic balance: z(250) - z(850) = R * (mean temperature by logarithm of pressure) * ln(850 / 250)
    logs = np.log([850.0, 500.0, 250.0])
    temperature = world["temperature"].sel(level=[850, 500, 250]).astype(np.float64)
    mean = sum(
        (temperature.isel(level=i) + temperature.isel(level=i + 1)) / 2 * (logs[i] - logs[i + 1]) for i in range(2)
    )
    thickness = (world["geopotential"].sel(level=250) - world["geopotential"].sel(level=850)).astype(np.float64)
    np.testing.assert_allclose(thickness, 287 * mean, rtol=0.02)  # three levels see a curved profile roughly


def test_wind_is_nearly_geostrophic_outside_of_the_tropics(world: xr.Dataset):
    state = world.sel(level=500)
    f = 2 * EARTH_ROTATION * np.sin(np.deg2rad(world.latitude))
    slope = state["geopotential"].differentiate("latitude") / np.deg2rad(1) / EARTH_RADIUS
    middle = (abs(world.latitude) > 30) & (abs(world.latitude) < 70)
    expected = (-slope / f).where(middle, drop=True).values.ravel()
    wind = state["u_component_of_wind"].where(middle, drop=True).values.ravel()
    assert np.corrcoef(expected, wind)[0, 1] > 0.9
    assert np.polyfit(expected, wind, 1)[0] == pytest.approx(0.9, abs=0.2)  # differences over 11 degrees are too small


def test_persistence_is_good_at_first_and_then_worse_than_climatology(world: xr.Dataset):
    # so that there is something to forecast, and something to gain
    found = persistence_and_climatology(world[["geopotential"]], [6, 24, 240], world.mean("time"), every=4)
    rmse = found["geopotential"].sel(metric="rmse", level=500)
    persistence, climatology = (rmse.sel(system=name).values for name in ("persistence", "climatology"))
    assert persistence[0] < 0.4 * persistence[1]
    assert persistence[1] < 0.95 * climatology[1]
    assert persistence[2] > 1.1 * climatology[2]


def test_the_same_seed_gives_the_same_bytes_and_another_one_another_world(tmp_path: Path):
    steps: list[tuple[int, int]] = []
    GENERATOR(tmp_path / "a.nc", lambda *at: steps.append(at), seed=1, **SMALL)
    simulate(tmp_path / "b.nc", seed=1, **SMALL)
    simulate(tmp_path / "c.nc", seed=2, **SMALL)
    assert steps[-1] == (7, 7)
    one, same, other = (xr.load_dataset(tmp_path / f"{name}.nc") for name in "abc")
    for name in one:
        assert one[name].values.tobytes() == same[name].values.tobytes()
    assert not np.allclose(one["mean_sea_level_pressure"], other["mean_sea_level_pressure"], rtol=0, atol=10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc", "b.nc", "c.nc"]


def test_a_run_that_is_killed_leaves_no_file_and_ends_the_process_that_simulates(tmp_path: Path):
    script = (
        "import os, signal, sys; from zoo.meteorology.simulation import simulate\n"
        "def kill(done, total):\n"
        "    if done: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"simulate(sys.argv[1], seed=1, progress=kill, **{SMALL | {'states': 10**6}})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "world.nc")], check=False)
    assert done.returncode == -signal.SIGKILL
    for _ in range(100):  # the other process finds at its next word that nobody listens
        if not list(tmp_path.iterdir()):
            break
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_progress_bar_that_fails_stops_the_run(tmp_path: Path):
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "world.nc", seed=1, progress=interrupted, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_integration_that_blows_up_says_what_to_do(tmp_path: Path):
    with pytest.raises(ZooError, match="the integration became unstable; give shorter steps"):
        simulate(tmp_path / "world.nc", seed=1, **SMALL | {"step_minutes": 360, "spin_up_days": 100})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"simulation: cannot write .*/file/world\.nc"):
        simulate(tmp_path / "file" / "world.nc", seed=1, **SMALL)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'not installed; install it with: pip install "science-zoo\[simulation\]"'):
        simulate(tmp_path / "world.nc", seed=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "simulation.seed: -1 is not between 0 and"),
        ({"states": 0}, "simulation.states: 0 is not at least 1"),
        ({"spin_up_days": -1}, "simulation.spin_up_days: -1 is not at least 0"),
        ({"wavenumber": 3}, "simulation.wavenumber: 3 is not between 5 and 106"),
        ({"layers": 2}, "simulation.layers: 2 is not between 5 and 40"),
        ({"step_minutes": 7}, "simulation.step_minutes: 7 is not a number of minutes that divides six hours"),
        ({"diffusion_hours": 0.0}, "simulation.diffusion_hours: 0.0 is not above 0"),
        ({"diffusion_order": 0}, "simulation.diffusion_order: 0 is not between 1 and 8"),
        ({"latitudes": 16}, "simulation.latitudes: 16 is not more rows than wavenumbers"),
        ({"longitudes": 42}, "simulation.longitudes: 42 is not more than two columns for each wavenumber"),
        ({"levels": (850, 500)}, "simulation.levels: .* are not in increasing order, each once"),
        ({"levels": (500, 1000)}, "simulation.levels: .* are not all between 100 and 900"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


def test_settings_that_do_not_exist_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match='"wave_number" is not a known setting; did you mean "wavenumber"'):
        simulate(tmp_path / "world.nc", seed=1, wave_number=21)


def test_all_impossible_settings_are_named_at_once():
    with pytest.raises(InputError) as caught:
        Settings(seed=-1, states=0)
    assert len(caught.value.problems) == 2


def test_the_card_says_simulated_and_names_this_generator():
    card = datasets()["held_suarez"]
    assert card.simulated
    assert card.title.startswith("SIMULATED")
    assert "no" in card.known_issues[0] or "not" in card.known_issues[0]
    source = parse(Source.model_validate(card.source).uri)
    assert isinstance(source, GeneratedSource)
    assert source.ref == "zoo.meteorology.simulation:GENERATOR"
    assert Settings(**source.parameters).states == card.rows
    assert set(card.columns) == {
        "u_component_of_wind", "v_component_of_wind", "temperature", "geopotential", "mean_sea_level_pressure",
    }  # fmt: skip


def test_the_generator_is_named_without_importing_jax():
    script = (
        "import sys, zoo.meteorology.simulation; print([m for m in ('jax', 'torch', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_simulation_never_takes_the_gpu():
    assert _ENVIRONMENT["JAX_PLATFORMS"] == "cpu"
    assert os.environ.get("JAX_PLATFORMS") is None  # of the process that trains: untouched
