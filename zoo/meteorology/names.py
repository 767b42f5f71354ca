"""One table of what variables, units and coordinates are called: ERA5, WeatherBench 2, GRIB, CF, reanalyses.

Canonical names are those that the models use, the long names of ERA5; a field on a pressure level is
``geopotential_500``, the level in hPa. Values are converted to the canonical unit by ``value * scale + offset``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zoo.errors import InputError, nearest

GRAVITY = 9.80665
"""Standard gravity, m s-2: a geopotential is a geopotential height in metres times this (WMO-No. 8)."""

Conversion = tuple[float, float]
"""Scale and offset to the canonical unit."""

_IS = (1.0, 0.0)
_TEMPERATURE = {"k": _IS, "degc": (1.0, 273.15), "degf": (5 / 9, 459.67 * 5 / 9)}
_SPEED = {"m s-1": _IS, "knot": (1852 / 3600, 0.0), "h-1 km": (1 / 3.6, 0.0)}
_GEOPOTENTIAL = {"m2 s-2": _IS, "m": (GRAVITY, 0.0), "gpm": (GRAVITY, 0.0), "dam": (10 * GRAVITY, 0.0)}
_HEIGHT = {"m": _IS, "gpm": _IS, "m2 s-2": (1 / GRAVITY, 0.0)}
_PRESSURE = {"pa": _IS, "hpa": (100.0, 0.0), "kpa": (1000.0, 0.0)}
_MIXING = {"1": _IS, "g kg-1": (1e-3, 0.0), "kg-1 mg": (1e-6, 0.0)}
_PERCENT = {"%": _IS, "1": (100.0, 0.0)}
_FRACTION = {"1": _IS, "%": (0.01, 0.0)}
_FLUX = {"m-2 w": _IS}
_DEPTH = {"m": _IS, "mm": (1e-3, 0.0), "cm": (1e-2, 0.0), "kg m-2": (1e-3, 0.0)}


@dataclass(frozen=True)
class Variable:
    """A physical variable: canonical `name` and `unit`, the units it may come in, and its other names.

    `standard_names` are those of CF. `levels`: it lies on pressure levels. `height_m`: the height above ground that
    tells it from the same quantity elsewhere. `constant`: it does not change with time.
    """

    name: str
    unit: str
    units: Mapping[str, Conversion]
    aliases: tuple[str, ...] = ()
    standard_names: tuple[str, ...] = ()
    levels: bool = False
    height_m: float | None = None
    constant: bool = False


VARIABLES = (
    Variable(
        "geopotential", "m2 s-2", _GEOPOTENTIAL,
        ("z", "phi", "hgt", "gh", "zg", "geopotential_height"), ("geopotential", "geopotential_height"), True,
    ),
    Variable("temperature", "K", _TEMPERATURE, ("t", "ta", "air", "air_temperature"), ("air_temperature",), True),
    Variable("u_component_of_wind", "m s-1", _SPEED, ("u", "ua", "uwnd"), ("eastward_wind", "x_wind"), True),
    Variable("v_component_of_wind", "m s-1", _SPEED, ("v", "va", "vwnd"), ("northward_wind", "y_wind"), True),
    Variable("specific_humidity", "kg kg-1", _MIXING, ("q", "hus", "shum", "QV"), ("specific_humidity",), True),
    Variable("relative_humidity", "%", _PERCENT, ("r", "rh", "hur", "rhum"), ("relative_humidity",), True),
    Variable(
        "vertical_velocity", "Pa s-1", {"pa s-1": _IS}, ("w", "wap", "omega"),
        ("lagrangian_tendency_of_air_pressure",), True,
    ),
    Variable("vorticity", "s-1", {"s-1": _IS}, ("vo",), ("atmosphere_relative_vorticity",), True),
    Variable("divergence", "s-1", {"s-1": _IS}, ("d",), ("divergence_of_wind",), True),
    Variable(
        "ozone_mass_mixing_ratio", "kg kg-1", _MIXING, ("o3",), ("mass_fraction_of_ozone_in_air",), True,
    ),
    Variable("2m_temperature", "K", _TEMPERATURE, ("2t", "t2m", "tas"), ("air_temperature",), height_m=2.0),
    Variable("2m_dewpoint_temperature", "K", _TEMPERATURE, ("2d", "d2m"), ("dew_point_temperature",), height_m=2.0),
    Variable("10m_u_component_of_wind", "m s-1", _SPEED, ("10u", "u10", "uas", "U10M"), ("eastward_wind",),
             height_m=10.0),
    Variable("10m_v_component_of_wind", "m s-1", _SPEED, ("10v", "v10", "vas", "V10M"), ("northward_wind",),
             height_m=10.0),
    Variable(
        "mean_sea_level_pressure", "Pa", _PRESSURE, ("msl", "psl", "mslp", "prmsl", "SLP"),
        ("air_pressure_at_mean_sea_level", "air_pressure_at_sea_level"),
    ),
    Variable("surface_pressure", "Pa", _PRESSURE, ("sp", "ps"), ("surface_air_pressure",)),
    Variable("sea_surface_temperature", "K", _TEMPERATURE, ("sst", "tos"), ("sea_surface_temperature",)),
    Variable("skin_temperature", "K", _TEMPERATURE, ("skt", "TS"), ("surface_temperature",)),
    Variable(
        "total_precipitation", "m", _DEPTH, ("tp",),
        ("lwe_thickness_of_precipitation_amount", "precipitation_amount"),
    ),
    Variable("total_precipitation_6hr", "m", _DEPTH, ("tp6h",)),
    Variable("total_precipitation_24hr", "m", _DEPTH, ("tp24h",)),
    Variable("total_cloud_cover", "1", _FRACTION, ("tcc", "clt"), ("cloud_area_fraction",)),
    Variable(
        "total_column_water_vapour", "kg m-2", {"kg m-2": _IS, "mm": _IS}, ("tcwv", "prw", "TQV"),
        ("atmosphere_mass_content_of_water_vapor",),
    ),
    Variable(
        "toa_incident_solar_radiation", "J m-2", {"j m-2": _IS}, ("tisr",),
        ("toa_incoming_shortwave_flux",),
    ),
    Variable("land_sea_mask", "1", _FRACTION, ("lsm", "sftlf"), ("land_binary_mask", "land_area_fraction"),
             constant=True),
    Variable(
        "orography", "m", _HEIGHT, ("orog", "oro", "z_sfc", "geopotential_at_surface", "PHIS"),
        ("surface_altitude", "surface_geopotential"), constant=True,
    ),
    Variable("soil_type", "1", {"1": _IS}, ("slt",), ("soil_type",), constant=True),
    Variable("lattitude", "degrees_north", {}, ("lat2d",), constant=True),  # spelled so in ClimaX's data and weights
    # what MERRA-2 has besides (Bosilovich et al. 2016, GMAO Office Note 9); as ERA5 calls it, where that has the same
    Variable("fraction_of_cloud_cover", "1", _FRACTION, ("CLOUD", "cc"), levels=True),
    Variable("specific_cloud_ice_water_content", "kg kg-1", _MIXING, ("QI", "ciwc"), levels=True),
    Variable("specific_cloud_liquid_water_content", "kg kg-1", _MIXING, ("QL", "clwc"), levels=True),
    Variable("height", "m", {"m": _IS, "gpm": _IS}, ("H",), levels=True),
    Variable("air_pressure", "Pa", _PRESSURE, ("PL",), levels=True),
    Variable("latent_heat_flux", "W m-2", _FLUX, ("EFLUX",), ("surface_upward_latent_heat_flux",)),
    Variable("sensible_heat_flux", "W m-2", _FLUX, ("HFLUX",), ("surface_upward_sensible_heat_flux",)),
    Variable("surface_absorbed_longwave_flux", "W m-2", _FLUX, ("LWGAB",)),
    Variable("surface_emitted_longwave_flux", "W m-2", _FLUX, ("LWGEM",)),
    Variable("surface_net_shortwave_flux", "W m-2", _FLUX, ("SWGNT",), ("surface_net_downward_shortwave_flux",)),
    Variable("toa_upwelling_longwave_flux", "W m-2", _FLUX, ("LWTUP",), ("toa_outgoing_longwave_flux",)),
    Variable("toa_net_shortwave_flux", "W m-2", _FLUX, ("SWTNT",), ("toa_net_downward_shortwave_flux",)),
    Variable("2m_specific_humidity", "kg kg-1", _MIXING, ("QV2M", "huss")),
    Variable("total_column_cloud_ice_water", "kg m-2", {"kg m-2": _IS}, ("TQI", "tciw")),
    Variable("total_column_cloud_liquid_water", "kg m-2", {"kg m-2": _IS}, ("TQL", "tclw")),
    Variable("root_zone_soil_wetness", "1", _FRACTION, ("GWETROOT",)),
    Variable("leaf_area_index", "1", {"1": _IS}, ("LAI", "lai")),
    Variable("surface_roughness", "m", {"m": _IS}, ("Z0M",), ("surface_roughness_length",)),
    Variable("fraction_of_ice", "1", _FRACTION, ("FRACI",), constant=True),  # of the month: the same all day
    Variable("fraction_of_land", "1", _FRACTION, ("FRLAND",), constant=True),
    Variable("fraction_of_ocean", "1", _FRACTION, ("FROCEAN",), constant=True),
)  # fmt: skip

USUAL: Mapping[str, tuple[float, float]] = {
    "temperature": (90, 350), "2m_temperature": (150, 350), "2m_dewpoint_temperature": (120, 350),
    "sea_surface_temperature": (40, 350), "skin_temperature": (120, 350),  # of seas, some files have 0 for land
    "mean_sea_level_pressure": (85_000, 110_000), "surface_pressure": (30_000, 110_000),
    "specific_humidity": (-0.001, 0.04), "relative_humidity": (-5, 200),
    "total_cloud_cover": (-0.1, 1.1), "land_sea_mask": (-0.1, 1.1),
    "total_precipitation_6hr": (-0.01, 0.3), "total_precipitation_24hr": (-0.01, 0.6),
}  # fmt: skip
"""Between what the mean over a region somewhere on Earth lies, in the table's units: wide enough for any weather, not
for values in another unit than the file says."""


def usual(field: str) -> tuple[float, float] | None:
    """Between what the mean of a field lies anywhere on Earth, where that is known.

    A geopotential is near that of the standard atmosphere of its level (ISO 2533, with one lapse rate): 0.6 to 1.4 of
    it, and a kilometre.
    """
    variable, level = parse_field(field)
    if variable == "geopotential" and level is not None:
        height = 288.15 / 0.0065 * (1 - (level / 1013.25) ** 0.190263) if level >= 226.3 else None
        height = 11_000 + 6341.6 * math.log(226.32 / level) if height is None else height
        return GRAVITY * (0.6 * height - 1000), GRAVITY * (1.4 * height + 1000)
    return USUAL.get(variable)


_BY_NAME = {name: variable for variable in VARIABLES for name in (variable.name, *variable.aliases)}

# ---------------------------------------------------------------------------------------------------------- units

_WORDS = {
    "kelvin": "k", "kelvins": "k", "degk": "k", "deg_k": "k",
    "celsius": "degc", "°c": "degc", "deg_c": "degc", "degree_celsius": "degc", "degrees_celsius": "degc", "c": "degc",
    "degreec": "degc", "degreesc": "degc", "°f": "degf", "f": "degf", "fahrenheit": "degf",
    "percent": "%", "": "1", "-": "1", "~": "1", "(0 - 1)": "1", "0-1": "1", "0 - 1": "1", "fraction": "1",
    "dimensionless": "1", "none": "1",
    "mbar": "hpa", "mb": "hpa", "millibar": "hpa", "millibars": "hpa", "pascal": "pa", "pascals": "pa",
    "kt": "knot", "kts": "knot", "knots": "knot", "gpdm": "dam", "dagpm": "dam",
    "metre": "m", "metres": "m", "meter": "m", "meters": "m", "m of water equivalent": "m", "geopotential metre": "gpm",
    "meters/second": "m s-1", "hour": "h", "hr": "h",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴", "-01234")
_FACTOR = re.compile(r"([a-z%°]+)\^?([+-]?\d+)?")


def unit_key(unit: str) -> str:
    """One spelling for all spellings of a unit: ``m**2 s**-2``, ``m^2/s^2`` and ``m2.s-2`` are ``m2 s-2``.

    Lower case, factors in alphabetical order, equal factors merged (``kg kg-1`` is ``1``). What cannot be read is
    returned in lower case as it is.
    """
    text = unit.strip().lower().translate(_SUPERSCRIPTS)
    if text in _WORDS:
        return _WORDS[text]
    powers: dict[str, int] = {}
    sign = 1
    for piece in re.split(r"(/)|[\s.·*]+", text.replace("**", "")):
        if not piece:
            continue
        if piece == "/":
            sign = -1
            continue
        match = _FACTOR.fullmatch(piece)
        if piece != "1" and not match:
            return text
        if match:
            base = _WORDS.get(match[1], match[1])
            powers[base] = powers.get(base, 0) + sign * int(match[2] or 1)
    left = sorted((base, power) for base, power in powers.items() if power)
    return " ".join(base if power == 1 else f"{base}{power}" for base, power in left) or "1"


def conversion(where: str, variable: Variable, unit: str | None) -> Conversion:
    """Scale and offset that bring values in `unit` to the variable's own.

    `where` names file and variable. Raises `InputError` where there is no unit, or none that is known for it.
    """
    accepted = ", ".join(variable.units)
    if unit is None:
        raise InputError(
            f"{where}: no units attribute in the file, and {variable.name} comes in several ({accepted}); "
            f"say in the recipe which it is, for example under this file's variables: "
            f"{where.rpartition(' ')[2]}: {{unit: UNIT}}"
        )
    found = variable.units.get(unit_key(unit))
    if found is None:
        raise InputError(
            f'{where}: unit "{unit}" is not one of {variable.name} (known: {accepted}); '
            "correct the file, or say in the recipe which unit the values really have"
        )
    return found


# --------------------------------------------------------------------------------------------------------- fields


def field_name(variable: str, level: float | None = None) -> str:
    """``geopotential_500`` for a level in hPa, the variable alone without one."""
    return variable if level is None else f"{variable}_{level:g}"


def layer_name(variable: str, layer: float) -> str:
    """``temperature_layer_72``: a field in a numbered layer of a model; to `parse_field` it is a name as it stands."""
    return f"{variable}_layer_{layer:g}"


def parse_field(name: str) -> tuple[str, float | None]:
    """Canonical variable and level (hPa) of a field's name; aliases are understood (``z500`` is not, ``z_500`` is).

    What is not in the table is a name as it stands, without a level.
    """
    if name in _BY_NAME:
        return _BY_NAME[name].name, None
    match = re.fullmatch(r"(.+)_(\d+(?:\.\d+)?)(?:hpa)?", name, re.I)
    if match and (found := _BY_NAME.get(match[1])) and found.levels:
        return found.name, float(match[2])
    return name, None


def short_field(name: str) -> str | None:
    """``geopotential_500`` for ``z500``, a name of variable and level (hPa) in one; None for what is none.

    Files have such names for fields of their own, so that it is a guess, for hints and where one knows what is meant.
    ``u100`` and ``v200`` are winds as many metres above ground.
    """
    match = re.fullmatch(r"([a-z]+)(\d{2,4})", name, re.I)
    if match is None or name in _BY_NAME or name.lower() in ("u100", "u200", "v100", "v200"):
        return None
    found = _BY_NAME.get(match[1].lower())
    return field_name(found.name, float(match[2])) if found and found.levels else None


def variable_named(name: str) -> Variable | None:
    """The table's entry for a canonical name or an alias."""
    return _BY_NAME.get(name)


def identify(
    name: str, attributes: Mapping[str, object], *, on_levels: bool, height_m: float | None
) -> Variable | None:
    """Which variable a file's `name` and attributes mean, or None.

    The name decides before ``GRIB_shortName``, and that before ``standard_name`` and ``long_name``. Where the same
    name of CF is used on levels and near the ground (``air_temperature``), having levels decides; so does a height of
    at most 10 m for any name. A short name (``t``) without either keeps its meaning on levels: such a file is of one
    level, which the recipe says.
    """
    given = (name, name.lower(), attributes.get("GRIB_shortName"), attributes.get("GRIB_cfVarName"))
    for alias in (*given, attributes.get("standard_name"), _snake(attributes.get("long_name"))):
        if not isinstance(alias, str) or not alias:
            continue
        found = [_BY_NAME[alias]] if alias in _BY_NAME else []
        found += [v for v in VARIABLES if alias in v.standard_names and v not in found]
        if found:
            return _place(found, on_levels, height_m)
    return None


def _snake(text: object) -> str:
    return re.sub(r"\W+", "_", text.strip().lower()) if isinstance(text, str) else ""


def _place(found: list[Variable], on_levels: bool, height_m: float | None) -> Variable:
    """Of the same quantity aloft and near the ground, the one at this height."""
    near = height_m is not None and height_m <= 10 and not on_levels
    same = [v for v in VARIABLES if set(v.standard_names) & set(found[0].standard_names)] if near else []
    by_height = sorted(
        (v for v in same if v.height_m is not None), key=lambda v: abs((v.height_m or 0.0) - (height_m or 0.0))
    )
    if by_height and found[0].levels:
        return by_height[0]
    return next((v for v in found if v.levels == on_levels), found[0])


def unknown_field(where: str, name: str, there: Iterable[str]) -> str:
    """A sentence for a field that the files do not have: what there is, and the nearest spelling."""
    present = sorted(there, key=_by_level)
    variable, level = parse_field(name)
    levels = [field for field in present if parse_field(field)[0] == variable]
    if level is not None and any(parse_field(field)[1] is not None for field in levels):
        have = ", ".join(f"{parse_field(field)[1]:g}" for field in levels if parse_field(field)[1] is not None)
        return f"{where}: {variable} has no level {level:g} hPa (levels there: {have})"
    if level is None and levels and name == variable:
        return f'{where}: "{name}" is on levels; name them: {", ".join(levels)}'
    if level is not None and variable in present:
        return (
            f"{where}: {variable} is there without a level, so {name} cannot be told; say in the recipe which level "
            f"the file holds, for example under this file's variables: {{level: {level:g}}}"
        )
    meant = short_field(name)
    close = meant if meant in present else nearest(field_name(variable, level), present) or nearest(name, present)
    hint = f'; did you mean "{close}"?' if close else ""
    return f'{where}: no field "{name}"{hint} (there: {", ".join(present) or "none"})'


def _by_level(field: str) -> tuple[str, float]:
    variable, level = parse_field(field)
    return variable, level or 0.0


# ---------------------------------------------------------------------------------------------------- coordinates

COORDINATES: Mapping[str, tuple[str, ...]] = {
    "time": ("time", "valid_time", "date", "t"),
    "latitude": ("latitude", "lat", "y"),
    "longitude": ("longitude", "lon", "x"),
    "level": ("level", "isobaricInhPa", "isobaricInPa", "pressure_level", "plev", "pressure", "lev", "air_pressure"),
    "member": ("number", "member", "realization", "ensemble", "ens"),
}
"""Names of dimensions in files by what they are."""

_STANDARD = {"latitude": "latitude", "longitude": "longitude", "air_pressure": "level", "realization": "member"}
_IN_PASCAL = ("plev", "isobaricInPa", "air_pressure")  # CF's pressure is in Pa unless a unit says otherwise


def coordinate(name: str, attributes: Mapping[str, object]) -> str | None:
    """What a dimension is: ``time``, ``latitude``, ``longitude``, ``level``, ``member``, or None."""
    for kind, names in COORDINATES.items():
        if name in names or name.lower() in names:
            return kind
    return _STANDARD.get(str(attributes.get("standard_name", "")))


_LAYERS = ("layer", "layers", "level", "levels", "model_layer", "model_layers", "model_level_number")


def is_layers(unit: str | None, attributes: Mapping[str, object]) -> bool:
    """Whether a vertical coordinate counts the layers of a model, as that of MERRA-2 (``units: layer``)."""
    return str(unit).strip().lower() in _LAYERS or str(attributes.get("standard_name")) in _LAYERS


def levels_hpa(where: str, name: str, values: Sequence[float], unit: str | None) -> list[float]:
    """Pressure levels in hPa. Raises `InputError` for another unit, and for numbers that are no pressures."""
    key = ("pa" if name in _IN_PASCAL else "hpa") if unit is None else unit_key(unit)
    if key not in ("pa", "hpa"):
        raise InputError(
            f'{where}: levels {name} have the unit "{unit}"; pressure levels in hPa or Pa are read, and layers of a '
            "model by number (unit: layer); other vertical coordinates are not"
        )
    found = [float(f"{float(value) * (0.01 if key == 'pa' else 1.0):.6g}") for value in values]
    wrong = [value for value in found if not 0 < value <= 1100]
    if wrong:
        raise InputError(
            f"{where}: levels {name} of {', '.join(f'{v:g}' for v in wrong[:5])} hPa (unit {unit or 'not given'}); "
            "pressure is between 0 and 1100 hPa: the unit of the coordinate is wrong"
        )
    return found
