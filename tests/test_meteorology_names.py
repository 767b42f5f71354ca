"""The table of names, units and coordinates."""

from __future__ import annotations

import pytest

from zoo.errors import InputError
from zoo.meteorology import names, released
from zoo.meteorology.names import (
    conversion,
    coordinate,
    identify,
    levels_hpa,
    parse_field,
    short_field,
    unit_key,
    unknown_field,
    variable_named,
)


def test_every_variable_of_the_models_is_in_the_table() -> None:
    for name in (*released.CLIMAX, *released.STORMER):
        variable, level = parse_field(name)
        known = variable_named(variable)
        assert known is not None, name
        assert known.levels == (level is not None), name
        assert names.field_name(variable, level) == name


def test_no_name_means_two_variables() -> None:
    spellings = [spelling for v in names.VARIABLES for spelling in (v.name, *v.aliases)]
    assert sorted(spellings) == sorted(set(spellings))


def test_every_variable_converts_its_own_unit_to_itself() -> None:
    for variable in names.VARIABLES:
        if variable.units:
            assert conversion("f.nc: variable x", variable, variable.unit) == (1.0, 0.0), variable.name
            assert all(unit_key(unit) == unit for unit in variable.units), variable.name


@pytest.mark.parametrize(
    ("alias", "field"),
    [
        ("z_500", "geopotential_500"), ("hgt_500", "geopotential_500"), ("t_850", "temperature_850"),
        ("u_50", "u_component_of_wind_50"), ("q_700hPa", "specific_humidity_700"), ("t2m", "2m_temperature"),
        ("2t", "2m_temperature"), ("u10", "10m_u_component_of_wind"), ("10u", "10m_u_component_of_wind"),
        ("msl", "mean_sea_level_pressure"), ("tp", "total_precipitation"), ("lsm", "land_sea_mask"),
        ("geopotential_500", "geopotential_500"), ("10m_v_component_of_wind", "10m_v_component_of_wind"),
        ("somebody's_500", "somebody's_500"), ("msl_500", "msl_500"),
    ],
)  # fmt: skip
def test_aliases_of_fields(alias: str, field: str) -> None:
    assert names.field_name(*parse_field(alias)) == field


@pytest.mark.parametrize(
    ("name", "attributes", "on_levels", "height", "variable"),
    [
        ("z", {}, True, None, "geopotential"),
        ("T2M", {}, False, None, "2m_temperature"),
        ("air_temperature", {}, True, None, "temperature"),
        ("air_temperature", {}, False, 1.5, "2m_temperature"),
        ("x_wind", {"standard_name": "eastward_wind"}, False, 10.0, "10m_u_component_of_wind"),
        ("foo", {"standard_name": "northward_wind"}, True, None, "v_component_of_wind"),
        ("var130", {"GRIB_shortName": "t"}, True, None, "temperature"),
        ("foo", {"long_name": "Mean sea level pressure"}, False, None, "mean_sea_level_pressure"),
        ("tas", {"standard_name": "air_temperature"}, False, None, "2m_temperature"),
        ("foo", {"standard_name": "air_temperature"}, False, None, "2m_temperature"),
        ("orog", {}, False, None, "orography"),
    ],
)
def test_what_a_file_means(
    name: str, attributes: dict[str, str], on_levels: bool, height: float | None, variable: str
) -> None:
    found = identify(name, attributes, on_levels=on_levels, height_m=height)
    assert found is not None
    assert found.name == variable


def test_what_is_not_in_the_table_is_nothing() -> None:
    assert identify("foo", {"standard_name": "bar", "long_name": 3}, on_levels=False, height_m=None) is None


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("m**2 s**-2", "m2 s-2"), ("m2/s2", "m2 s-2"), ("m^2 s^-2", "m2 s-2"), ("s-2 m2", "m2 s-2"),
        ("m² s⁻²", "m2 s-2"), ("m2.s-2", "m2 s-2"), ("kg kg**-1", "1"), ("kg/kg", "1"), ("g kg-1", "g kg-1"),
        ("g/kg", "g kg-1"), ("K", "k"), ("degrees_Celsius", "degc"), ("°C", "degc"), ("hPa", "hpa"),
        ("millibars", "hpa"), ("(0 - 1)", "1"), ("%", "%"), ("m of water equivalent", "m"), ("J m**-2", "j m-2"),
        ("1", "1"), ("m s**-1", "m s-1"), ("m/s", "m s-1"), ("km/h", "h-1 km"), ("what is this?", "what is this?"),
    ],
)  # fmt: skip
def test_spellings_of_units(spelling: str, key: str) -> None:
    assert unit_key(spelling) == key


@pytest.mark.parametrize(
    ("variable", "unit", "value", "canonical"),
    [
        ("temperature", "degC", 0.0, 273.15),
        ("temperature", "degF", 32.0, 273.15),
        ("geopotential", "m", 5000.0, 49033.25),
        ("geopotential", "gpm", 5000.0, 49033.25),
        ("geopotential", "dam", 500.0, 49033.25),
        ("orography", "m2 s-2", 9806.65, 1000.0),
        ("mean_sea_level_pressure", "hPa", 1013.25, 101325.0),
        ("specific_humidity", "g/kg", 7.0, 0.007),
        ("relative_humidity", "1", 0.5, 50.0),
        ("land_sea_mask", "%", 50.0, 0.5),
        ("total_precipitation", "mm", 5.0, 0.005),
        ("total_precipitation", "kg m**-2", 5.0, 0.005),
        ("u_component_of_wind", "knots", 36.0, 18.52),
        ("u_component_of_wind", "km/h", 36.0, 10.0),
    ],
)
def test_values_in_other_units(variable: str, unit: str, value: float, canonical: float) -> None:
    known = variable_named(variable)
    assert known is not None
    scale, offset = conversion("f.nc: variable x", known, unit)
    assert value * scale + offset == pytest.approx(canonical, rel=1e-12)


def test_a_missing_unit_says_what_to_write_and_a_wrong_one_what_is_known() -> None:
    known = variable_named("geopotential")
    assert known is not None
    missing = (
        r"f\.nc: variable hgt: no units attribute .* \(m2 s-2, m, gpm, dam\); say in the recipe .*: hgt: \{unit: UNIT\}"
    )
    with pytest.raises(InputError, match=missing):
        conversion("f.nc: variable hgt", known, None)
    with pytest.raises(
        InputError, match=r'variable hgt: unit "K" is not one of geopotential \(known: m2 s-2, m, gpm, dam'
    ):
        conversion("f.nc: variable hgt", known, "K")


@pytest.mark.parametrize(
    ("name", "attributes", "kind"),
    [
        ("lat", {}, "latitude"), ("longitude", {}, "longitude"), ("isobaricInhPa", {}, "level"), ("plev", {}, "level"),
        ("valid_time", {}, "time"), ("number", {}, "member"), ("realization", {}, "member"),
        ("rlat", {"standard_name": "latitude"}, "latitude"), ("p", {"standard_name": "air_pressure"}, "level"),
        ("bnds", {}, None), ("step", {}, None),
    ],
)  # fmt: skip
def test_coordinates_by_name_and_standard_name(name: str, attributes: dict[str, str], kind: str | None) -> None:
    assert coordinate(name, attributes) == kind


def test_levels_in_either_unit() -> None:
    assert levels_hpa("f.nc", "level", [50, 1000], "millibars") == [50, 1000]
    assert levels_hpa("f.nc", "plev", [5000, 100000], None) == [50, 1000]
    assert levels_hpa("f.nc", "level", [5000, 100000], "Pa") == [50, 1000]
    assert levels_hpa("f.nc", "level", [50, 1000], None) == [50, 1000]


def test_levels_that_are_no_pressures_are_refused() -> None:
    with pytest.raises(
        InputError, match=r'f\.nc: levels lev have the unit "sigma"; pressure levels in hPa or Pa are read'
    ):
        levels_hpa("f.nc", "lev", [0.1], "sigma")
    with pytest.raises(
        InputError, match=r"levels level of 5000, 100000 hPa \(unit not given\); pressure is between 0 and"
    ):
        levels_hpa("f.nc", "level", [5000, 100000], None)


THERE = ["geopotential_500", "geopotential_850", "2m_temperature", "temperature_850"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("geopotential_50", r"f: geopotential has no level 50 hPa \(levels there: 500, 850\)"),
        ("geopotential", r'f: "geopotential" is on levels; name them: geopotential_500, geopotential_850'),
        ("2m_temprature", r'f: no field "2m_temprature"; did you mean "2m_temperature"\? \(there: 2m_temperature, geo'),
        ("specific_humidity_850", r'f: no field "specific_humidity_850" \(there: 2m_temperature, geopotential_500, '),
    ],
)
def test_a_missing_field_says_what_is_there(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        raise InputError(names.unknown_field("f", name, THERE))


def test_a_field_without_its_level_asks_for_the_level() -> None:
    text = names.unknown_field("f", "geopotential_500", ["geopotential"])
    assert "geopotential is there without a level, so geopotential_500 cannot be told; say in the recipe" in text
    assert "{level: 500}" in text
    assert names.unknown_field("f", "temperature_500", []).endswith("(there: none)")


def test_variable_and_level_in_one_name_are_a_hint() -> None:
    for name, field in (("z500", "geopotential_500"), ("t850", "temperature_850"), ("Q1000", "specific_humidity_1000"),
                        ("u850", "u_component_of_wind_850")):  # fmt: skip
        assert short_field(name) == field
        assert unknown_field("f", name, ["2m_temperature", field]).startswith(
            f'f: no field "{name}"; did you mean "{field}"?'
        )
    for name in ("u100", "V200", "t2m", "u10", "sst500", "x500", "geopotential_500", "z"):
        assert short_field(name) is None, name
