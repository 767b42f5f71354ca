"""Run the simulation in a process of its own, and put its file in place when it is whole."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.errors import InputError, ZooError, unknown
from zoo.meteorology.simulation.settings import VERSION, Settings

Progress = Callable[[int, int], None]

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # a GPU is for training
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",  # one order of every sum
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def simulate(
    path: Path | str, *, seed: int = 0, states: int = 1460, progress: Progress | None = None, **settings: Any
) -> Path:
    """Write a NetCDF file of `states` six-hourly states to `path`; `settings` are the rest of `Settings`.

    Variables are ``u_component_of_wind``, ``v_component_of_wind`` (m s-1), ``temperature`` (K), ``geopotential``
    (m2 s-2), each (time level latitude longitude), and ``mean_sea_level_pressure`` (Pa), float32; the settings and
    the versions of what made it are the file's attributes. The same settings give the same data on the same machine
    with the same versions. `progress` is told how many of how many six-hourly steps are done. A run that is stopped
    leaves nothing at `path`. One CPU core is used: about 0.4 s a day at T21.

    Raises `InputError` for impossible settings and where the extra ``simulation`` is not installed, and `ZooError`
    where the integration fails or the file cannot be written.
    """
    if absent := sorted(set(settings) - {field for field in asdict(Settings())}):
        raise InputError([unknown("simulation", "setting", name, asdict(Settings())) for name in absent])
    if "levels" in settings:
        settings["levels"] = tuple(settings["levels"])
    chosen = Settings(seed=seed, states=states, **settings)
    if importlib.util.find_spec("dinosaur") is None:
        raise InputError(
            'simulation: dinosaur-dycore is not installed; install it with: pip install "science-zoo[simulation]"'
        )
    target = Path(path).expanduser().absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _run(temporary, chosen, progress)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except OSError as error:
        raise ZooError(f"simulation: cannot write {target} ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # its folder may be a file, which is then what the caller hears of
            temporary.unlink(missing_ok=True)
    return target


def _run(path: Path, settings: Settings, progress: Progress | None) -> None:
    command = [sys.executable, "-m", "zoo.meteorology.simulation", str(path), json.dumps(asdict(settings))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **_ENVIRONMENT}
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            done, _, total = line.partition("/")
            if progress and done.isdigit():
                progress(int(done), int(total))
        _, problem = process.communicate()
    except BaseException:  # an interrupt, or a progress bar that failed: the other process has no one to work for
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        lines = problem.strip().splitlines() or [f"the process ended with code {process.returncode}"]
        raise ZooError(lines[-1].removeprefix("zoo.errors.ZooError: "))


class Generator:
    """`simulate` as the maker of a dataset: what a card's source ``generate:...:GENERATOR?seed=0`` names."""

    version = VERSION

    def __call__(self, path: Path, progress: Progress | None, **settings: Any) -> None:
        simulate(path, progress=progress, **settings)


GENERATOR = Generator()
