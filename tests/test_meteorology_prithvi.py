"""Prithvi WxC under our techniques is the library's; what it needs of an environment and of a memory."""

from __future__ import annotations

import datetime as dt
import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prithvi_small import BOX, FIELDS, GRID, HOURS, NAME, direct, facts, loaded, micro_batch, task, tiny
from small_models import CPU, defaults, loads, measured, predicted, run_steps
from torch import Tensor

from zoo.domain import Batch, Head, find_model
from zoo.errors import InputError, WeightsError
from zoo.meteorology import prithvi as ours
from zoo.meteorology.forecasters import ForecastHead
from zoo.meteorology.inputs import Needs
from zoo.meteorology.names import GRAVITY, identify, layer_name
from zoo.meteorology.prithvi import build, checkpoint, library, places_of
from zoo.meteorology.released import PRITHVI, PRITHVI_STATIC
from zoo.meteorology.rollout import roll_out
from zoo.planner import decide, limits_of
from zoo.plans import Workload
from zoo.resolve import load_job
from zoo.resources import shared
from zoo.step import PHASES
from zoo.step import build as build_setup
from zoo.techniques import Technique
from zoo.techniques.adapter import LoRA
from zoo.techniques.checkpointing import BlockCheckpointing, SelectiveCheckpointing
from zoo.techniques.offload import OPTIONS as OFFLOAD
from zoo.techniques.precision import BF16
from zoo.techniques.quantization import NF4
from zoo.training.values import loader_of
from zoo.units import GIB, MIB

CARDS = ("prithvi_wxc_2300m", "prithvi_wxc_rollout_2300m")


def made(*techniques: Technique, **config: Any) -> Any:
    """The model as training has it."""
    card = tiny(**config)
    chosen = defaults(**{technique.key: technique for technique in techniques})
    return build_setup(card, task(card), chosen, CPU, load=loaded).model.eval()


# ------------------------------------------------------------------------------------------------------- environment


def test_the_library_leaves_the_environment_as_it_was() -> None:
    code = (
        "import sys, importlib.metadata as m, importlib.util as u, torch\n"
        "before = torch.__version__\n"
        "import zoo.meteorology.models.prithvi\n"
        "assert 'PrithviWxC' not in sys.modules, 'imported before it is needed'\n"
        "from zoo.meteorology.prithvi import library\n"
        "library()\n"
        "assert torch.__version__ == before == m.version('torch'), (before, m.version('torch'))\n"
        "assert not {'h5py', 'requests', 'torchvision'} & set(sys.modules)\n"
        "if u.find_spec('torchvision'):\n    import torchvision; torch.ops.torchvision.nms\n"
        "import transformers, peft, netCDF4, h5py\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "fine"


def test_a_missing_library_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Prithvi WxC: no package PrithviWxC; install it with\n  pip install 'sci"):
        library()


# -------------------------------------------------------------------------------------------------------------- cards


@pytest.mark.parametrize("name", CARDS)
def test_parameters_are_the_published_ones(name: str) -> None:
    """2.3 billion, says its title; 28.4 GB, says the hub, of weights and of Adam's two moments in fp32."""
    card = find_model(name)
    with torch.device("meta"):
        model = build(card, Head("masked_lm"))
        theirs = direct_of_released_size(card)
    assert all(parameter.is_meta for parameter in model.parameters())
    shapes = {n: p.shape for n, p in theirs.named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    assert card.parameters == sum(p.numel() for p in model.parameters()) == 2_366_633_600
    assert 12 * card.parameters / 1e9 == pytest.approx(28.4, abs=0.05)


def direct_of_released_size(card: Any) -> Any:
    """As the authors' notebooks and their `large.yml` build it."""
    channels = torch.zeros(160)
    return library().PrithviWxC(
        in_channels=160, input_size_time=2, in_channels_static=8, input_scalers_mu=channels,
        input_scalers_sigma=channels, input_scalers_epsilon=0.0, static_input_scalers_mu=torch.zeros(11),
        static_input_scalers_sigma=torch.zeros(11), static_input_scalers_epsilon=0.0, output_scalers=channels,
        n_lats_px=360, n_lons_px=576, patch_size_px=[2, 2], mask_unit_size_px=[30, 32], mask_ratio_inputs=0.0,
        mask_ratio_targets=0.0, embed_dim=2560, n_blocks_encoder=12, n_blocks_decoder=2, mlp_multiplier=4, n_heads=16,
        dropout=0.0, drop_path=0.0, parameter_dropout=0.0, residual="climate", masking_mode="both",
        positional_encoding="fourier", encoder_shifting=card.config["encoder_shifting"], decoder_shifting=True,
    )  # fmt: skip


def test_fields_are_the_librarys_channels_in_their_order() -> None:
    def ours_of(name: str, *, on_levels: bool = False) -> str:
        known = identify(name, {}, on_levels=on_levels, height_m=None)
        assert known is not None, name
        return known.name

    told = facts()
    aloft = [ours_of(name, on_levels=True) for name in told["vertical_vars"]]
    on_layers = [layer_name(name, layer) for name in aloft for layer in told["levels"]]
    assert (*(ours_of(name) for name in told["surface_vars"]), *on_layers) == PRITHVI
    assert tuple(ours_of(name) for name in told["static_surface_vars"]) == PRITHVI_STATIC
    assert len(PRITHVI) == 160


def test_every_role_matches_and_the_librarys_own_checkpointing_is_off() -> None:
    setup = build_setup(tiny(), task(), defaults(), torch.device("meta"))
    found = {role: set(setup.modules_of(role)) for role in setup.card.roles}
    assert found["block"] == {f"{h}.lgl_block.transformers.{i}" for h in ("encoder", "decoder") for i in range(5)}
    assert found["embedding"] == {"patch_embedding", "patch_embedding_static"}
    assert found["head"] == {"unembed"}
    assert len(found["attention"]) == len(found["mlp"]) == 2 * 10
    linear = {name for name, module in setup.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear - set().union(*found.values()) == {"input_time_embedding", "lead_time_embedding"}
    assert "mask_token" not in setup.trainable(), "nothing is masked"
    assert setup.model._checkpoint_encoder == setup.model._checkpoint_decoder == []


# -------------------------------------------------------------------------------------------- the library's own numbers


def librarys(batch: Batch, model: Any) -> dict[str, Tensor]:
    """Our batch in the library's units and terms."""
    given = batch.inputs
    shift, scale = (given[name][:, :, None, None] for name in ("mean", "std"))
    states = given["fields"] * scale[:, None] + shift[:, None]
    usual = given["climate"][:, 0] * scale + shift
    static = states[:, -1, : len(PRITHVI_STATIC)].clone()
    orography = FIELDS.index("orography")  # metres times gravity, rounded as the model does
    factor = torch.tensor(GRAVITY)
    static[:, orography] = (
        given["fields"][:, -1, orography] * (scale[:, orography] * factor) + shift[:, orography] * factor
    )
    place = np.stack(np.meshgrid(model.latitudes, model.longitudes, indexing="ij")).astype(np.float32)
    times = [dt.datetime.fromtimestamp(3600 * hours, dt.UTC) for hours in HOURS]
    circles = [(2 * np.pi * t.timetuple().tm_yday / 366, 2 * np.pi * t.hour / 24) for t in times]
    clock = np.array([[f(a) for a in one for f in (np.cos, np.sin)] for one in circles], dtype=np.float32)
    clocks = torch.tensor(clock)[:, :, None, None].expand(-1, -1, *GRID)
    return {
        "x": states[:, :, len(PRITHVI_STATIC) :],
        "y": usual[:, len(PRITHVI_STATIC) :],
        "climate": usual[:, len(PRITHVI_STATIC) :],
        "static": torch.cat([torch.tensor(place).expand(2, -1, -1, -1), clocks, static], dim=1),
        "input_time": given["hours"],
        "lead_time": given["hours"],
    }


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize(
    "techniques",
    [[], [BlockCheckpointing()], [SelectiveCheckpointing(), LoRA(rank=2)]],
    ids=["alone", "checkpointing", "checkpointing and LoRA"],
)
def test_wrapped_is_the_library_called_directly_to_the_bit(name: str, techniques: list[Technique]) -> None:
    card = tiny(name)
    batch = micro_batch(task(card))
    model = build_setup(card, task(card), defaults(**{t.key: t for t in techniques}), CPU, load=loaded).model.eval()
    plain = build_setup(card, task(card), defaults(), CPU, load=loaded).model
    theirs = direct(plain, card)
    terms = librarys(batch, plain)
    with torch.no_grad():
        said = next(roll_out(model, batch.inputs, FIELDS, PRITHVI, 1))
        truth = importlib.import_module("PrithviWxC.model").masked_inference(theirs, terms)
    shift, scale = (batch.inputs[n][:, len(PRITHVI_STATIC) :, None, None] for n in ("mean", "std"))
    assert torch.equal(said, (truth - shift) / scale)
    assert (said - batch.inputs["climate"][:, 0, len(PRITHVI_STATIC) :]).std() > 1e-3, "more than climatology"


def test_an_order_of_windows_drawn_at_random_changes_nothing_but_rounding() -> None:
    card = tiny("prithvi_wxc_2300m")
    model, batch = build_setup(card, task(card), defaults(), CPU, load=loaded).model.eval(), micro_batch(task(card))
    theirs = direct(model, card, masking_mode="global")  # the decoder's windows are shifted once all are in place
    with torch.no_grad():
        said = next(roll_out(model, batch.inputs, FIELDS, PRITHVI, 1))
        truth = theirs(librarys(batch, model))
    shift, scale = (batch.inputs[n][:, len(PRITHVI_STATIC) :, None, None] for n in ("mean", "std"))
    assert torch.allclose(said, (truth - shift) / scale, atol=1e-5)


def test_fields_come_and_go_in_any_order() -> None:
    batch, model = micro_batch(task()), made()
    order = torch.randperm(len(FIELDS), generator=torch.Generator().manual_seed(1))
    names = tuple(FIELDS[i] for i in order)
    wanted = ("temperature_layer_72", "2m_temperature")
    where = {"latitudes": task().latitudes, "longitudes": task().longitudes}
    other = build(tiny(), ForecastHead("forecast", 2, names, wanted, **where)).eval()
    other.load_state_dict(model.state_dict())
    given = {**batch.inputs, "fields": batch.inputs["fields"][:, :, order]}
    given |= {name: batch.inputs[name][:, order] for name in ("mean", "std")}
    given["climate"] = batch.inputs["climate"][:, :, order]
    with torch.no_grad():
        straight = next(roll_out(model, batch.inputs, FIELDS, PRITHVI, 1))
        permuted = next(roll_out(other, given, names, wanted, 1))
    assert torch.allclose(permuted, straight[:, [PRITHVI.index(name) for name in wanted]], atol=1e-5)


def test_days_of_the_year_and_hours_are_those_of_the_calendar() -> None:
    from zoo.meteorology.prithvi_model import calendar

    first = dt.datetime(1899, 12, 31, tzinfo=dt.UTC)
    dates = [first + dt.timedelta(days=367 * n, hours=5 * n) for n in range(250)]  # to 2151, over 1900 and 2000
    dates += [dt.datetime(year, 2, 29, 23, tzinfo=dt.UTC) for year in (1904, 2000, 2024)]
    dates += [dt.datetime(year, month, 1, tzinfo=dt.UTC) for year in (1970, 2100) for month in (1, 3, 12)]
    hours = torch.tensor([date.timestamp() // 3600 for date in dates])
    found = calendar(hours)
    days = (torch.atan2(found[:, 1], found[:, 0]) / (2 * torch.pi) * 366).round() % 366
    of_day = (torch.atan2(found[:, 3], found[:, 2]) / (2 * torch.pi) * 24).round() % 24
    assert [int(d) for d in days] == [date.timetuple().tm_yday % 366 for date in dates]
    assert [int(h) for h in of_day] == [date.hour for date in dates]


# ---------------------------------------------------------------------------------------------------------- techniques


def three_steps(*techniques: Technique, rollout: int = 1) -> Any:
    card = tiny(drop_path=0.1, parameter_dropout=0.1)
    job = task(card, rollout=rollout)
    steps = [[micro_batch(job, card, seed=seed)] for seed in range(3)]
    return run_steps(card, job, defaults(**{t.key: t for t in techniques}), steps, load=loaded)


ACTIVATIONS = next(option for option in OFFLOAD if option.name == "activations")


@pytest.mark.parametrize("rollout", [1, 2])
@pytest.mark.parametrize(
    "kept",
    [[BlockCheckpointing()], [BlockCheckpointing(offload=True)], [SelectiveCheckpointing()], [ACTIVATIONS()]],
    ids=["block", "block on the host", "selective", "offload"],
)
@pytest.mark.parametrize("adapter", [[], [LoRA(rank=2)]], ids=["full", "lora"])
def test_what_is_kept_does_not_change_a_bit(kept: list[Technique], adapter: Sequence[Technique], rollout: int) -> None:
    plain, other = three_steps(*adapter, rollout=rollout), three_steps(*adapter, *kept, rollout=rollout)
    assert [float(loss) for loss in plain.losses] == [float(loss) for loss in other.losses]
    pairs = zip([*plain.gradients, *plain.weights], [*other.gradients, *other.weights], strict=True)
    for one, two in pairs:
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_lora_begins_as_the_base_and_everything_else_is_frozen() -> None:
    batch = micro_batch(task())
    with torch.no_grad():
        base, adapted = (
            next(roll_out(model, batch.inputs, FIELDS, PRITHVI, 1))
            for model in (made(), made(LoRA(rank=2, targets=("attention", "mlp"))))
        )
    assert torch.equal(base, adapted)
    steps = three_steps(LoRA(rank=2, targets=("attention", "mlp")))
    trained = set(steps.setup.trainable())
    assert all("lora_" in name or "unembed" in name for name in trained)
    assert len({name.split(".lora_")[0] for name in trained if "lora_" in name}) == 4 * 10
    first, last = steps.weights[0], steps.weights[-1]
    assert {name for name in first if not torch.equal(first[name], last[name])} == trained


@pytest.mark.parametrize(("technique", "most"), [(BF16(), 0.03), (NF4(), 0.4)], ids=["bf16", "nf4"])
def test_fewer_bits_stay_near_fp32_and_leave_scalers_alone(technique: Technique, most: float) -> None:
    batch = micro_batch(task())
    adapter = [LoRA(rank=2)] if technique.key == "quantization" else []
    fine, chosen = made(), defaults(**{one.key: one for one in (technique, *adapter)})
    coarse = build_setup(tiny(), task(), chosen, CPU, load=loads(fine.state_dict())).model.eval()
    scalers = getattr(coarse, "get_base_model", lambda: coarse)().scalers
    assert all(value.dtype == torch.float32 for value in scalers.buffers())
    with torch.no_grad():
        one, other = (next(roll_out(model, batch.inputs, FIELDS, PRITHVI, 1)) for model in (fine, coarse))
    # of what is forecast beside climatology, which is not rounded; with weights that are random
    departure = one - batch.inputs["climate"][:, 0, len(PRITHVI_STATIC) :]
    error = (one - other).square().mean().sqrt() / departure.square().mean().sqrt()
    assert 1e-4 < float(error) < most


def test_training_lowers_the_loss_of_our_task() -> None:
    card = tiny()
    job = task(card)
    losses = run_steps(card, job, defaults(), [[micro_batch(job)]] * 8, learning_rate=3e-3).losses
    assert float(losses[-1]) < 0.95 * float(losses[0])


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "techniques", [[], [LoRA(rank=4), BlockCheckpointing()]], ids=["full", "lora and recomputed"]
)  # fmt: skip
def test_predicted_peaks_are_the_measured_ones(techniques: list[Technique]) -> None:
    card = tiny(grid=(48, 96), embed_dim=128, n_blocks_encoder=12)  # 160 fields weigh less than tokens
    job, chosen = task(card), defaults(**{t.key: t for t in techniques})
    expected, seen = predicted(card, job, chosen, 1, 1).peaks(), measured(card, job, chosen, 1, 1)
    assert max(seen.values()) > 22 * MIB
    for phase in PHASES:
        assert expected[phase] == pytest.approx(seen[phase], rel=0.01), phase


def test_a_trace_leaves_nothing_behind_that_training_would_find() -> None:
    batch, model = micro_batch(task()), made()
    before = next(roll_out(model, batch.inputs, FIELDS, PRITHVI, 1))
    for world in ("fake", "accelerator"):
        predicted(tiny(), task(), defaults(checkpointing=BlockCheckpointing()), 2, 1, world=world)
        assert torch.equal(next(roll_out(model, batch.inputs, FIELDS, PRITHVI, 1)), before)


@pytest.mark.parametrize(
    ("device", "pinned", "least", "most"),
    [
        ("rtx-4090-24gb", ["techniques.adapter.lora.rank=4"], 16, 19),
        ("a100-40gb", [], 16, 19),
        ("h100-80gb", ["techniques.adapter=full", "techniques.optimizer=adamw-8bit"], 30, 45),
    ],
)
def test_the_recipe_is_planned_for(device: str, pinned: list[str], least: float, most: float) -> None:
    # one way through the choices: each is a trace of three shallow models
    more = [
        "techniques.quantization=none", "techniques.offload=none", "train.global_batch_size=1",
    ]  # fmt: skip
    if not any("optimizer" in one for one in pinned):
        more.append("techniques.optimizer=adamw")
    job = load_job(recipe(), [*more, *pinned], gpu=device)
    decision = decide(job, Workload(1, 1, "nothing is at hand"), limits_of(job.recipe.budget))
    assert decision.fits, decision.reasons
    assert least * GIB < decision.chosen.estimate.peak < most * GIB


def recipe() -> Path:
    return shared() / "recipes" / "meteorology" / "prithvi_lora.yaml"


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ([*FIELDS, "vorticity_500"], PRITHVI, 'fields given: "vorticity_500" is not a known field'),
        (
            FIELDS[:-2],
            PRITHVI[:3],
            "not given are v_component_of_wind_layer_71, v_component_of_wind_layer_72; recipes/",
        ),
        (FIELDS[:20], PRITHVI[:3], "skin_temperature, 10m_u_component_of_wind"),
        (FIELDS, ["orography"], "orography is wanted, and it is given only; leave it out of the targets"),
        (FIELDS, ["temperature_500"], 'fields wanted: "temperature_500" is not a known field'),
    ],
)
def test_fields_that_prithvi_cannot_take_are_refused(given: Any, wanted: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        places_of("prithvi", given, wanted)
    assert message in str(error.value)


def test_another_grid_than_the_globe_is_refused_with_the_box_that_would_do() -> None:
    where = {"latitudes": tuple(np.linspace(-90, 90, 361)), "longitudes": tuple(np.arange(576) * 0.625 - 180)}
    with pytest.raises(InputError) as error:
        build(find_model(NAME), ForecastHead("forecast", 160, FIELDS, PRITHVI, (361, 576), **where))
    assert "a grid of 361 x 576 points, latitudes from -90 to 90" in str(error.value)
    assert "box: {north: 89.5, south: -90, west: -180, east: 179.375}" in str(error.value)
    with pytest.raises(InputError) as error:
        build(tiny(), ForecastHead("forecast", 160, FIELDS, PRITHVI, (9, 16), **where))
    assert f"box: {{{', '.join(f'{edge}: {value:g}' for edge, value in BOX.items())}}}" in str(error.value)


def test_another_kind_of_head_is_refused() -> None:
    with pytest.raises(ValueError, match="no head of kind 'token'"):
        build(tiny(), Head("token"))


@pytest.mark.parametrize("predicts", ["difference", "anomaly"])
def test_other_targets_than_states_are_refused(predicts: Any) -> None:
    with pytest.raises(InputError, match=f"predicts: {predicts}: {NAME} has scalers for states; say predicts: state"):
        task(predicts=predicts)


def test_the_card_needs_two_states_the_time_what_is_usual_and_units() -> None:
    assert Needs.of(tiny()) == Needs(history=2, step_hours=6.0, time=True, climate=True, units=True)


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("wrapped", [True, False], ids=["with the optimizer", "bare"])
def test_a_released_checkpoint_is_read_with_its_scalers(tmp_path: Path, wrapped: bool) -> None:
    model, batch = made(), micro_batch(task())
    state = direct(model).state_dict()
    assert any("shifter.local_mask" in name for name in state)
    saved = {"model_state": state, "optimizer_state": {"step": 3}, "epoch": 1} if wrapped else state
    torch.save(saved, tmp_path / "prithvi.wxc.pt")
    other = build_setup(tiny(), task(), defaults(), CPU, load=loads(dict(checkpoint(tmp_path)))).model.eval()
    assert other.scalers.released == 1
    with torch.no_grad():
        one, two = (next(roll_out(m, batch.inputs, FIELDS, PRITHVI, 1)) for m in (model, other))
    assert torch.equal(one, two)


def test_a_folder_needs_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"needs exactly one checkpoint \(.ckpt, .pt, .pth\), has none"):
        checkpoint(tmp_path)


def test_weights_from_a_seed_work_on_fields_as_the_data_normalises_them() -> None:
    card, batch = tiny(), micro_batch(task())
    setup = build_setup(card, task(), defaults(), CPU, load=loader_of(card, "random", 0))
    with torch.no_grad():
        one = next(roll_out(setup.model.eval(), batch.inputs, FIELDS, PRITHVI, 1))
        batch.inputs["mean"], batch.inputs["std"] = batch.inputs["mean"] + 5, batch.inputs["std"] * 3
        assert torch.equal(next(roll_out(setup.model, batch.inputs, FIELDS, PRITHVI, 1)), one)
