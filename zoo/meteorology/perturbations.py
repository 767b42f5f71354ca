"""Initial states that differ a little, for forecasts of an ensemble: smooth random fields on the sphere.

Legend of shapes: `N` fields, `V` fields given, `S` states of a history, `H` x `W` grid points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from zoo.card import Frozen
from zoo.errors import InputError
from zoo.meteorology.forcings import FORCINGS
from zoo.meteorology.grids import Grid
from zoo.meteorology.names import parse_field, variable_named
from zoo.meteorology.scores import EARTH_RADIUS_M

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

_KM = EARTH_RADIUS_M / 1000
_REACH = 6.0  # wavenumbers beyond this many radii over length have e^-18 of the amplitude of the first


class Ensemble(Frozen):
    """An ensemble of forecasts from perturbed initial states: `members`, of which number 0 is not perturbed.

    `amplitude` is the deviation of the perturbations in units of each field's own over training, `length_km` the
    distance at which their correlation has fallen to exp(-1/2), `seed` that of the random numbers.
    """

    members: int = Field(ge=2, description="forecasts from each start, the unperturbed one included")
    amplitude: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    length_km: float = Field(default=1000.0, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**32)

    def check(self, grid: Grid) -> None:
        """Raises `InputError` where the grid is too coarse for the length: perturbations would be white noise."""
        step = math.radians(float(np.abs(np.diff(grid.latitudes)).max(initial=0.0))) * _KM
        if self.length_km < step:
            raise InputError(
                f"task: ensemble: length_km: {self.length_km:g} is shorter than the {step:.0f} km from row to row of "
                f"the grid, which would make white noise of it; give {math.ceil(step)} or more"
            )

    def __str__(self) -> str:
        return (
            f"{self.members} members; all but the first from initial states with Gaussian random fields added, of "
            f"{self.amplitude:g} times each field's standard deviation over training and length {self.length_km:g} km "
            f"(seed {self.seed})"
        )


@dataclass(frozen=True)
class Perturbations:
    """The perturbations of an ensemble for the fields `names` (V) on a grid, in units of `std` (V).

    Fields that never change, and forcings, are as they are.
    """

    ensemble: Ensemble
    names: tuple[str, ...]
    std: Array
    grid: Grid

    def of(self, member: int, start: str) -> Floats | None:
        """What is added to a start's states (V H W); None for member 0. The same whatever else is forecast."""
        if member == 0:
            return None
        places = [place for place, name in enumerate(self.names) if _changes(name)]
        draw = np.random.default_rng([self.ensemble.seed, member, *start.encode()])
        found = np.zeros((len(self.names), *self.grid.shape), dtype=np.float32)
        scale = (self.ensemble.amplitude * self.std[places])[:, None, None]
        found[places] = scale * smooth_fields(draw, self.grid, self.ensemble.length_km, len(places))
        return found


def perturbed(state: Floats, perturbation: Floats | None) -> Floats:
    """A state (V H W), or all states of a history (S V H W) alike, with a perturbation (V H W).

    A field that is nowhere below 0, such as humidity, stays so.
    """
    if perturbation is None:
        return state
    found = state + perturbation
    bounded = (state >= 0).all(axis=(-2, -1), keepdims=True)
    return np.where(bounded, np.maximum(found, 0), found)


def _changes(name: str) -> bool:
    known = variable_named(parse_field(name)[0])
    return name not in FORCINGS and not (known and known.constant)


def smooth_fields(draw: np.random.Generator, grid: Grid, length_km: float, count: int) -> Array:
    """Independent Gaussian random fields (N H W), each of mean 0 and variance 1 at every point of the sphere.

    Isotropic: spherical harmonics of total wavenumber n >= 1 with independent coefficients, of variance in proportion
    to exp(-(L/a)^2 n (n + 1) / 2), a the radius of the Earth. The correlation over a distance d much smaller than a is
    exp(-d^2 / (2 L^2)) (Weaver and Courtier 2001, Q. J. R. Meteorol. Soc. 127, 1815-1846); the patterns of ECMWF's
    stochastic physics are made so (Palmer et al. 2009, ECMWF Technical Memorandum 598). Their mean over the globe is 0.
    """
    ratio = length_km / _KM
    highest = max(1, math.ceil(_REACH / ratio))
    n = np.arange(highest + 1)
    share = np.where(n > 0, np.exp(-(ratio**2) * (n * (n + 1) - 2) / 2), 0.0)
    deviation = np.sqrt(4 * np.pi * share / ((2 * n + 1) * share).sum())
    latitude, longitude = (np.deg2rad(np.array(axis)) for axis in (grid.latitudes, grid.longitudes))
    sine, cosine = np.sin(latitude), np.cos(latitude)
    waves = np.arange(highest + 1)[:, None] * longitude
    rows = np.empty((2, count, len(latitude), highest + 1))
    sectoral = np.full(len(latitude), np.sqrt(1 / (4 * np.pi)))
    for m in range(highest + 1):
        if m:
            sectoral = sectoral * cosine * np.sqrt((2 * m + 1) / (2 * m))
        drawn = draw.standard_normal((2, count, highest + 1 - m)) * deviation[m:]
        rows[..., m] = drawn @ _legendre(m, highest, sine, sectoral) * (np.sqrt(2) if m else 1.0)
    found: Array = rows[0] @ np.cos(waves) + rows[1] @ np.sin(waves)
    return found


def _legendre(m: int, highest: int, sine: Array, sectoral: Array) -> Array:
    """Associated Legendre functions of order m and degrees m to `highest` at some latitudes: (n H).

    Normalised so that the spherical harmonics made of them have a mean square of 1 / (4 pi) over the sphere, without
    the phase (-1)^m; by recursion over the degree from the first one, `sectoral` (Holmes and Featherstone 2002,
    J. Geod. 76, eq. 11).
    """
    found = np.zeros((highest + 1 - m, len(sine)))
    found[0] = sectoral
    for degree in range(m + 1, highest + 1):
        below = found[degree - m - 2] if degree > m + 1 else 0.0
        factor = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
        other = np.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1))
        found[degree - m] = factor * (sine * found[degree - m - 1] - other * below)
    return found
