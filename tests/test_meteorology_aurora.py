"""Aurora under our techniques is the library's Aurora; what it needs of an environment, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import cftime
import numpy as np
import pytest
import torch
from aurora_small import (
    FIELDS,
    GRID,
    LEVELS,
    checkpoint_of,
    direct,
    hours_of,
    librarys,
    loaded,
    made,
    micro_batch,
    states,
    task,
    three_steps,
    tiny,
)  # fmt: skip
from small_models import defaults, run_steps
from torch import Tensor, nn

from zoo.domain import Head, find_model
from zoo.errors import InputError, WeightsError
from zoo.meteorology import aurora as ours
from zoo.meteorology.aurora import STATIC, build, checkpoint, library, places_of, statistics
from zoo.meteorology.forecasters import ForecastHead
from zoo.meteorology.inputs import Needs, hours_since_1970
from zoo.meteorology.rollout import roll_out
from zoo.meteorology.times import time_axis
from zoo.step import build as build_setup
from zoo.techniques import Technique
from zoo.techniques.adapter import LoRA
from zoo.techniques.checkpointing import BlockCheckpointing, SelectiveCheckpointing

WANTED = [name for name in FIELDS if name not in STATIC]


# ------------------------------------------------------------------------------------------------------ environment


def in_another_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_library_leaves_the_environment_as_it_was() -> None:
    code = (
        "import sys, importlib.metadata as m, torch\n"
        "before = torch.__version__\n"
        "from zoo.meteorology.aurora import library\n"
        "library()\n"
        "assert torch.__version__ == before == m.version('torch'), (before, m.version('torch'))\n"
        "print([n for n in sys.modules if n.partition('.')[0] in ('timm', 'torchvision', 'azure')])\n"
        "import transformers, peft\n"
        "print(torch.nn.functional.gelu(torch.ones(1)).item() > 0)"
    )
    assert in_another_process(code).splitlines() == ["[]", "True"]


def test_torchvision_is_absent_or_works_with_this_torch() -> None:
    code = (
        "import importlib.util as u\n"
        "if u.find_spec('torchvision'):\n    import torch, torchvision; torch.ops.torchvision.nms\n"
        "print('fine')"
    )
    assert in_another_process(code) == "fine"


def test_a_missing_library_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"no package aurora and einops; install it with\n  pip install 'science-zoo"):
        library()


# ------------------------------------------------------------------------------------------------------------- cards


@pytest.mark.parametrize(
    ("name", "librarys_name", "count", "published"),
    [
        ("aurora_0_25deg", "AuroraPretrained", 1_256_300_176, 1.2563e9),
        ("aurora_small", "AuroraSmallPretrained", 112_797_584, 112.8e6),
    ],
)
def test_parameters_are_the_published_ones(name: str, librarys_name: str, count: int, published: float) -> None:
    card = find_model(name)
    with torch.device("meta"):
        model = build(card, Head("masked_lm"))
        with ours._numbers_on_the_host():
            theirs = getattr(library(), librarys_name)()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert card.parameters == sum(parameter.numel() for parameter in model.parameters()) == count
    assert count == pytest.approx(published, rel=1e-4)
    shapes = {n: p.shape for n, p in theirs.state_dict().items()}
    assert {n: p.shape for n, p in model.state_dict().items()} == shapes
    facts = {key: value for key, value in vars(theirs.backbone).items() if not key.startswith(("_", "training"))}
    assert facts == {key: vars(model.backbone)[key] for key in facts}


def test_every_role_matches_and_blocks_hold_everything_large() -> None:
    setup = build_setup(tiny(), task(), defaults(), torch.device("meta"))
    found = {role: set(setup.modules_of(role)) for role in setup.card.roles}
    levels = {f"decoder.atmos_heads.{v}" for v in "zuvtq"}
    assert len(found["block"]) == 3 + 6 + len(levels)
    assert {"encoder", "decoder.level_decoder.layers.0.1", "backbone.encoder_layers.1.blocks.0"} <= found["block"]
    assert found["positionwise"] == {"encoder.level_agg", "decoder.level_decoder", *levels}
    assert len(found["attention"]) == len(found["mlp"]) == 2 * 6
    assert found["head"] == levels | {f"decoder.surf_heads.{v}" for v in ("2t", "10u", "10v", "msl")}
    assert set(setup.matching(setup.card.fp32_modules)) == {"encoder"} | found["head"]


# ------------------------------------------------------------------------------------------- the library's own numbers


@pytest.mark.parametrize("plain", [False, True], ids=["to the bit", "to rounding"])
@pytest.mark.parametrize(
    "techniques",
    [[], [BlockCheckpointing()], [SelectiveCheckpointing(), LoRA(rank=2)]],
    ids=["alone", "checkpointing", "checkpointing and LoRA"],
)
def test_wrapped_is_the_library_called_directly(plain: bool, techniques: list[Technique]) -> None:
    model = made(*techniques, plain_aggregation=plain)
    base = getattr(model, "get_base_model", lambda: model)()
    theirs = direct(made(plain_aggregation=plain))
    raw = statistics(FIELDS).denormalise(states().numpy())
    batch = librarys(torch.tensor(raw), base.latitudes[::-1], base.longitudes)
    batch.static_vars["z"] = batch.static_vars["z"] * ours.GRAVITY
    normal = batch.normalise({})
    given = states()
    for i, name in enumerate(FIELDS):
        variable, _, level = name.rpartition("_")
        if name in STATIC:
            given[:, :, i] = normal.static_vars[STATIC[name]].flip(-2)
        elif name in ours.SURFACE:
            given[:, :, i] = normal.surf_vars[ours.SURFACE[name]].flip(-2)
        else:
            given[:, :, i] = normal.atmos_vars[ours.ON_LEVELS[variable]][:, :, LEVELS.index(int(level))].flip(-2)
    with torch.no_grad():
        said = model(given, torch.full((2,), 6.0), hours_of()).flip(-2)
        truth = theirs(batch)
    back = (
        library()
        .Batch(
            {short: said[:, [WANTED.index(name)]] for name, short in ours.SURFACE.items()},
            normal.static_vars,
            {
                short: torch.stack([said[:, [WANTED.index(f"{name}_{level}")]] for level in LEVELS], dim=2)
                for name, short in ours.ON_LEVELS.items()
            },
            normal.metadata,
        )
        .unnormalise({})
    )
    for mine, its in ((back.surf_vars, truth.surf_vars), (back.atmos_vars, truth.atmos_vars)):
        assert mine.keys() == its.keys()
        for name in its:
            error = (mine[name] - its[name]).abs().max()
            # adapters that begin as nothing are added, and what is added to is made by another order of the same sums
            exact = not plain and not any(isinstance(t, LoRA) for t in techniques)
            assert error <= (0 if exact else 3e-6 * its[name].abs().max()), name
    assert float(said.std()) > 0.05


def test_our_units_are_the_librarys_normalised_ones() -> None:
    model = made()
    raw = torch.tensor(statistics(FIELDS).denormalise(states().numpy()))
    batch = librarys(raw, model.latitudes[::-1], model.longitudes)
    batch.static_vars["z"] = batch.static_vars["z"] * ours.GRAVITY  # theirs is a geopotential
    normal = torch.tensor(statistics(FIELDS).normalise(raw.numpy()))
    theirs, mine = batch.normalise({}), librarys(normal, model.latitudes[::-1], model.longitudes)
    for kind in ("surf_vars", "static_vars", "atmos_vars"):
        for name, values in getattr(theirs, kind).items():
            # what 32 bits hold of 100,000 Pa is 0.004 Pa, of a deviation of 1,300 Pa
            assert torch.allclose(values, getattr(mine, kind)[name], atol=1e-5), name


def test_the_time_and_both_states_count() -> None:
    model, given, six = made(), states(), torch.full((2,), 6.0)
    with torch.no_grad():
        said = model(given, six, hours_of())
        later = model(given, six, hours_of() + 3)
        without = model(torch.cat([given[:, 1:], given[:, 1:]], dim=1), six, hours_of())
        alone = model(given[1:], six[1:], hours_of()[1:])
    assert said.shape == (2, len(WANTED), *GRID)
    assert (said - later).abs().max() > 1e-4
    assert (said - without).abs().max() > 1e-3
    assert torch.allclose(said[1:], alone, atol=1e-5)


def test_the_order_of_fields_does_not_matter_and_levels_may_be_fewer() -> None:
    model, given, six = made(), states(), torch.full((2,), 6.0)
    order = torch.randperm(len(FIELDS), generator=torch.Generator().manual_seed(3)).tolist()
    names = [FIELDS[i] for i in order]
    where = GRID, (0, 0), model.latitudes[::-1], model.longitudes
    head = ForecastHead("forecast", 2, tuple(names), ("temperature_850", "2m_temperature"), *where)
    other = build(tiny(), head).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        straight, permuted = model(given, six, hours_of()), other(given[:, :, order], six, hours_of())
    assert torch.allclose(permuted[:, 0], straight[:, WANTED.index("temperature_850")], atol=1e-6)
    assert torch.allclose(permuted[:, 1], straight[:, WANTED.index("2m_temperature")], atol=1e-6)
    fewer = [name for name in FIELDS if not name.endswith("_100")]
    assert places_of("x", fewer, fewer[3:]).levels == (500, 850)


# --------------------------------------------------------------------------------------------------------- techniques


@pytest.mark.parametrize("rollout", [1, 2])
@pytest.mark.parametrize("checkpointing", [BlockCheckpointing(), SelectiveCheckpointing()], ids=lambda t: t.name)
@pytest.mark.parametrize("adapter", [[], [LoRA(rank=2)]], ids=["full", "lora"])
def test_recomputing_gives_the_same_bits(checkpointing: Technique, adapter: Sequence[Technique], rollout: int) -> None:
    plain, recomputed = three_steps(*adapter, rollout=rollout), three_steps(*adapter, checkpointing, rollout=rollout)
    assert len(plain.losses) == 3
    assert [float(loss) for loss in plain.losses] == [float(loss) for loss in recomputed.losses]
    for one, other in zip(
        [*plain.gradients, *plain.weights], [*recomputed.gradients, *recomputed.weights], strict=True
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_lora_begins_as_the_base_and_everything_else_is_frozen() -> None:
    given = states(), torch.full((2,), 6.0), hours_of()
    with torch.no_grad():
        base, adapted = made()(*given), made(LoRA(rank=2, targets=("attention", "mlp")))(*given)
    assert torch.allclose(base, adapted, atol=1e-6, rtol=0)
    steps = three_steps(LoRA(rank=2, targets=("attention", "mlp")))
    trained = set(steps.setup.trainable())
    assert all("lora_" in name or "_heads." in name for name in trained)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained if "lora_" in name} == {
        "qkv", "proj", "fc1", "fc2"
    }  # fmt: skip
    first, last = steps.weights[0], steps.weights[-1]
    changed_names = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed_names == trained


def test_training_lowers_the_loss_of_our_task() -> None:
    card = tiny()
    job = task(card)
    batch = [micro_batch(job)]
    losses = run_steps(card, job, defaults(), [batch] * 8, load=loaded, learning_rate=3e-3).losses
    assert float(losses[-1]) < 0.9 * float(losses[0])


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ([*FIELDS, "vorticity_500"], WANTED, 'fields given: "vorticity_500" is not a known field'),
        (FIELDS, [*WANTED, "temperature_925"], "temperature_925 is wanted and not among the fields given"),
        (FIELDS, ["soil_type"], "soil_type is wanted, and it does not change with time"),
        ([f for f in FIELDS if f != "temperature_500"], ["2m_temperature"], "temperature has no level 500 hPa"),
        ([f for f in FIELDS if f not in STATIC], WANTED, "no field that never changes is given; it needs at least one"),
        (FIELDS[:7], ["2m_temperature"], "no field on levels is given"),
    ],
)
def test_fields_that_aurora_cannot_take_are_refused(given: Any, wanted: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        places_of("aurora_small", given, wanted)
    assert message in str(error.value)


def test_constants_are_for_known_fields_only() -> None:
    with pytest.raises(InputError, match='Aurora: "vorticity_500" is not a known field'):
        statistics(["vorticity_500"])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"grid": (17, 32)}, "a grid of 17 x 32 points, and the model takes the globe on 16 x 32; regrid the data, or"),
        (
            {"latitudes": tuple(range(16))},
            "16 latitudes from 15 to 0, 32 longitudes from 0 to 348.75; it takes the whole",
        ),
    ],
)
def test_parts_of_the_globe_are_refused(facts: dict[str, Any], message: str) -> None:
    head = ForecastHead("forecast", len(WANTED), FIELDS, tuple(WANTED), **{"grid": GRID, **facts})
    with pytest.raises(InputError) as error:
        build(tiny(), head)
    assert message in str(error.value)


def test_grids_of_no_whole_patches_are_refused() -> None:
    with pytest.raises(InputError, match="a grid of 18 x 32 points is not made of whole patches of 4 x 4"):
        build(tiny(grid=(18, 32)), Head("forecast"))


def test_another_kind_of_head_is_refused() -> None:
    with pytest.raises(ValueError, match="no head of kind 'token'"):
        build(tiny(), Head("token"))


def test_a_folder_needs_one_checkpoint(tmp_path: Any) -> None:
    with pytest.raises(WeightsError, match=r"needs exactly one checkpoint \(.ckpt\), has none"):
        checkpoint(tmp_path)


def test_a_released_checkpoint_is_read_in_its_own_layout(tmp_path: Any) -> None:
    model = made()
    checkpoint_of(model, tmp_path / "x.ckpt")
    found = checkpoint(tmp_path)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_other_targets_than_states_are_refused() -> None:
    with pytest.raises(
        InputError, match="predicts: difference: aurora_small normalises states by constants of its own"
    ):
        task(predicts="difference")


# ------------------------------------------------------------------------------------------------- history and time


def six_hourly(count: int = 6, missing: int | None = None) -> Any:
    times = np.datetime64("2020-01-01", "ns") + np.arange(count) * np.timedelta64(6, "h")
    return time_axis("x", times if missing is None else np.delete(times, missing), broken="skip")


def test_the_state_before_is_a_step_before_and_a_gap_has_none() -> None:
    needs = Needs.of(tiny())
    assert needs == Needs(history=2, step_hours=6.0, time=True)
    assert needs.window((1,), 3, six_hourly()).touched == (-1, 0, 1, 2, 3)
    step = 6.0, "hours"
    assert needs.before(six_hourly(), 4, step) == [3, 4]
    assert needs.before(six_hourly(), 0, step) is None
    assert needs.before(six_hourly(missing=2), 2, step) is None
    assert Needs().before(six_hourly(), 0, step) == [0]


def test_the_state_before_is_found_by_its_date_whatever_the_step_of_the_file() -> None:
    needs, step = Needs.of(tiny()), (6.0, "hours")

    def states(hours: list[float], own: Any = step) -> list[Any]:
        dates = np.datetime64("2020-01-01", "ns") + np.array([round(h * 3600) for h in hours]) * np.timedelta64(1, "s")
        axis = time_axis("x", dates, broken="skip")
        return [needs.before(axis, i, own) for i in range(len(axis))]

    assert states([0, 3, 6, 9, 12]) == [None, None, [0, 2], [1, 3], [2, 4]]
    assert states([0, 1, 2, 3, 4, 5, 6, 7], (1.0, "hours"))[6:] == [[0, 6], [1, 7]], "the model has a step of its own"
    assert states([0, 12, 24, 36]) == [None] * 4, "half a day before is not six hours before"
    assert states([6]) == [None], "a single time has no step"
    off = states([0, 6, 12, 13.5, 18, 19.5])  # half past one and half past seven are off the step of the file
    assert off == [None, [0, 1], [1, 2], None, [2, 4], [3, 5]]
    own = Needs(history=3)
    months = time_axis(
        "x", np.array(["2001-01", "2001-02", "2001-03", "2001-05"], "M8[M]").astype("M8[ns]"), broken="skip"
    )
    assert [own.before(months, i, (1.0, "months")) for i in range(4)] == [None, None, [0, 1, 2], None]
    assert [own.before(months, i, (2.0, "months")) for i in range(4)] == [None, None, None, [0, 2, 3]]


def test_other_steps_than_the_models_are_refused() -> None:
    with pytest.raises(InputError, match=r"the model makes steps of 6 hours and no others: say lead_hours: \[6\]"):
        Needs.of(tiny()).window((1, 4), 1, six_hourly())


def test_a_time_that_is_no_real_date_is_refused() -> None:
    assert hours_since_1970(np.datetime64("1970-01-02T06:00")) == 30
    with pytest.raises(InputError, match="no real date, and the model is told the time"):
        hours_since_1970(cftime.Datetime360Day(2000, 2, 30))


def test_a_rollout_hands_on_the_state_and_the_time() -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    class Adds(nn.Linear):
        def forward(self, fields: Tensor, hours: Tensor, time: Tensor) -> Tensor:
            asked.append((fields[0, :, :, 0, 0].clone(), time))
            return fields[:, -1, 1:] + 10

    given = torch.tensor([[1.0, 2.0], [1.0, 3.0]])[None, :, :, None, None].expand(1, 2, 2, 4, 4)
    inputs = {"fields": given, "hours": torch.full((1,), 6.0), "time": torch.tensor([100.0])}
    said = list(roll_out(Adds(1, 1), inputs, ("soil_type", "t"), ("t",), 3))
    assert [float(step[0, 0, 0, 0]) for step in said] == [13, 23, 33]
    assert [states.tolist() for states, _ in asked] == [[[1, 2], [1, 3]], [[1, 3], [1, 13]], [[1, 13], [1, 23]]]
    assert [float(time) for _, time in asked] == [100, 106, 112]
