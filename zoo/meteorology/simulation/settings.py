"""What is simulated: the settings of a run, checked, and how its file describes them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from zoo.errors import InputError

VERSION = "1"
"""Of the generator: raised whenever the same settings would give other data."""

HOURS_PER_STATE = 6


@dataclass(frozen=True)
class Settings:
    """A run of the Held-Suarez atmosphere; the defaults make the dataset ``held_suarez``.

    `states` are kept every six hours after `spin_up_days`, of which none is. `wavenumber` is the triangular
    truncation (T21), `layers` are equally thick in sigma = pressure / surface pressure, `step_minutes` divides six
    hours. Waves at the truncation decay by ``exp(-1)`` in `diffusion_hours`, others by the power `diffusion_order` of
    the Laplacian. `levels` are in hPa, `latitudes` x `longitudes` is the regular grid of the output (WeatherBench's
    5.625 degrees), `start` the date that the first state is given: there is no calendar in this atmosphere.
    """

    seed: int = 0
    states: int = 1460
    spin_up_days: int = 200
    wavenumber: int = 21
    layers: int = 10
    step_minutes: int = 30
    diffusion_hours: float = 6.0
    diffusion_order: int = 4
    levels: tuple[int, ...] = (250, 500, 850)
    latitudes: int = 32
    longitudes: int = 64
    start: str = "2000-01-01"

    def __post_init__(self) -> None:
        """Raises `InputError` with every setting that is impossible."""
        problems = [
            f"simulation.{name}: {getattr(self, name)} is not {what}"
            for name, fits, what in (
                ("seed", 0 <= self.seed < 2**31, "between 0 and 2^31 - 1"),
                ("states", self.states >= 1, "at least 1"),
                ("spin_up_days", self.spin_up_days >= 0, "at least 0"),
                ("wavenumber", 5 <= self.wavenumber <= 106, "between 5 and 106"),
                ("layers", 5 <= self.layers <= 40, "between 5 and 40"),
                (
                    "step_minutes", self.step_minutes >= 1 and 360 % self.step_minutes == 0,
                    "a number of minutes that divides six hours, for example 30",
                ),
                ("diffusion_hours", self.diffusion_hours > 0, "above 0"),
                ("diffusion_order", 1 <= self.diffusion_order <= 8, "between 1 and 8"),
                ("latitudes", self.latitudes > self.wavenumber, "more rows than wavenumbers"),
                ("longitudes", self.longitudes > 2 * self.wavenumber, "more than two columns for each wavenumber"),
            )
            if not fits
        ]  # fmt: skip
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            problems.append(f"simulation.levels: {list(self.levels)} are not in increasing order, each once")
        lowest, highest = 100_000 / self.layers / 200, 90_000 / 100  # half a layer below the top; above the surface
        if any(not max(lowest, 100) <= level <= highest for level in self.levels):
            problems.append(
                f"simulation.levels: {list(self.levels)} hPa are not all between {max(lowest, 100):.0f} and "
                f"{highest:.0f}, where {self.layers} layers are dense enough"
            )
        if problems:
            raise InputError(problems)

    @property
    def steps_per_state(self) -> int:
        return HOURS_PER_STATE * 60 // self.step_minutes

    def attributes(self) -> dict[str, str | int | float]:
        """Of the file: what the data is and from which settings it came."""
        settings = {f"simulation_{name}": value for name, value in asdict(self).items() if name != "levels"}
        return {
            "title": "Simulated dry atmosphere (Held-Suarez), not observations and not a reanalysis",
            "source": "simulation: dinosaur-dycore, forcing of Held and Suarez 1994",
            "simulated": "true",
            "comment": "For pipelines, overfitting and skill relative to persistence and climatology in this "
            "simulated world; not for statements about weather on Earth.",
            "references": "Held and Suarez 1994, Bull. Amer. Meteor. Soc. 75, 1825-1830",
            "Conventions": "CF-1.11",
            "generator_version": VERSION,
            **settings,
            "simulation_levels": " ".join(map(str, self.levels)),
        }
