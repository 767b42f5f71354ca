"""Checkpointing: what is kept, what is recomputed, for which blocks; and that nothing else changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Recipes
from small_models import CPU, Steps, batches, defaults, measured, predicted, run_steps, small, task_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.card import ModelCard
from zoo.errors import InputError
from zoo.memory.devices import find
from zoo.memory.trace import World
from zoo.plans import Limits, Workload
from zoo.step import PHASES, Setup, build, train_step
from zoo.tasks.sequence import SequenceTask
from zoo.techniques import Technique
from zoo.techniques.adapter import LoRA
from zoo.techniques.checkpointing import BlockCheckpointing, SelectiveCheckpointing, _kept
from zoo.techniques.precision import BF16
from zoo.tracer import Tracer
from zoo.training.export import save_model
from zoo.training.meter import with_peak
from zoo.training.values import loader_of
from zoo.units import GIB

LENGTHS = (17, 9, 30, 12)
KINDS: tuple[Technique, ...] = (
    BlockCheckpointing(), BlockCheckpointing(every=2), BlockCheckpointing(offload=True), SelectiveCheckpointing(),
)  # fmt: skip
by_name = pytest.mark.parametrize("technique", KINDS, ids=lambda t: t.describe())
WIDE = {"hidden_size": 256, "intermediate_size": 512}


def _made(card: ModelCard, technique: Technique, kind: str = "sequence_regression") -> tuple[Setup, SequenceTask]:
    task = task_of(kind, card)
    return build(card, task, defaults(checkpointing=technique), CPU, load=loader_of(card, "random", 0)), task


class _Counts(TorchDispatchMode):
    """How often each operation runs while entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.seen[name] = self.seen.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _operations(card: ModelCard, technique: Technique) -> dict[str, int]:
    """Operations of one step."""
    setup, task = _made(card, technique)
    step = batches(task, LENGTHS)
    with _Counts() as counts:
        train_step(setup, step)
    return counts.seen


# ------------------------------------------------------------------------------------------------ which blocks


@pytest.mark.parametrize(("every", "wanted"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (3, [3]), (5, [5])])
def test_every_kth_block_is_recomputed(every: int, wanted: list[int]) -> None:
    card = small("esm2_t6_8m", num_hidden_layers=5)
    setup, task = _made(card, BlockCheckpointing(every=every))
    runs: dict[int, int] = {}
    for number, block in enumerate(setup.modules_of("block").values(), 1):
        first = next(m for m in block.modules() if isinstance(m, nn.Linear))
        first.register_forward_hook(lambda *_, number=number: runs.update({number: runs.get(number, 0) + 1}))
    train_step(setup, batches(task, LENGTHS))
    assert [number for number, count in runs.items() if count == 2] == wanted
    assert set(runs.values()) <= {1, 2}


def test_fewer_blocks_than_every_are_refused() -> None:
    with pytest.raises(InputError, match="block: every: 3 is more than esm2_t6_8m has, 2 block modules; nothing would"):
        _made(small("esm2_t6_8m"), BlockCheckpointing(every=3))
    with pytest.raises(InputError, match="every: 2 is more than rxnmapper_albert has, 1 block module;"):
        _made(small("rxnmapper_albert"), BlockCheckpointing(every=2))
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        BlockCheckpointing(every=0)


def test_selective_checkpointing_is_refused_where_the_card_names_no_blocks() -> None:
    card = small("esm2_t6_8m")
    blockless = card.model_copy(update={"roles": {k: v for k, v in card.roles.items() if k != "block"}})
    with pytest.raises(InputError, match="checkpointing: selective: esm2_t6_8m has no role block"):
        _made(blockless, SelectiveCheckpointing())


# --------------------------------------------------------------------------------------------- what is recomputed


def test_selective_keeps_products_and_attention_and_recomputes_the_rest() -> None:
    card = small("esm2_t6_8m", num_hidden_layers=3)
    plain, selective, block = (
        _operations(card, t) for t in (defaults_of_checkpointing(), SelectiveCheckpointing(), BlockCheckpointing())
    )
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert plain[attention] == selective[attention] == 3
    assert block[attention] == 6
    for product in ("addmm", "mm"):
        assert selective[product] == plain[product]
    assert block["addmm"] > plain["addmm"]
    for cheap in ("native_layer_norm", "erf"):
        assert selective[cheap] > plain[cheap]
        assert selective[cheap] == block[cheap]


def test_selective_recomputes_the_score_matrix_of_attention_that_is_not_fused() -> None:
    card = small("antiberty", dropout=0.1)
    plain, selective = (_operations(card, t) for t in (defaults_of_checkpointing(), SelectiveCheckpointing()))
    assert selective["bmm"] > plain["bmm"]
    assert selective["_safe_softmax"] == 2 * plain["_safe_softmax"]
    assert selective["addmm"] == plain["addmm"]


def defaults_of_checkpointing() -> Technique:
    return next(t for t in defaults() if t.key == "checkpointing")


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "name",
    [
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    ],
)
def test_a_kernel_that_draws_its_dropout_mask_inside_is_run_again(name: str, dropout: float) -> None:
    """Its random numbers would be missing, and all later masks of the block would differ from those of the forward."""
    operation = getattr(torch.ops.aten, name).default
    names = [argument.name for argument in operation._schema.arguments]
    place = names.index("dropout_p")
    args = tuple(dropout if i == place else None for i in range(place + 1))
    assert _kept(operation, args, {}) == (dropout == 0)
    assert _kept(operation, args[:place], {"dropout_p": dropout}) == (dropout == 0)
    assert _kept(operation, args[:place], {}), "without being said it is 0"


@pytest.mark.parametrize(
    "name", ["_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention_backward", "bmm", "gelu", "t"]
)
def test_other_operations_are_recomputed(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    assert not any(_kept(getattr(packet, overload), (), {}) for overload in packet.overloads())


# ------------------------------------------------------------------------------------------------ exactness


def _three_steps(card: ModelCard, *, kind: str = "masked_language_modelling", **techniques: Technique) -> Steps:
    task = task_of(kind, card)
    steps = [batches(task, LENGTHS, 3, 1, seed=seed) for seed in range(3)]
    return run_steps(card, task, defaults(**techniques), steps)


def _same(first: Steps, second: Steps) -> bool:
    ours, theirs = [*first.gradients, *first.weights], [*second.gradients, *second.weights]
    return all(torch.equal(a, b) for a, b in zip(first.losses, second.losses, strict=True)) and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(ours, theirs, strict=True)
    )


@by_name
@pytest.mark.parametrize("others", [{}, {"precision": BF16(), "adapter": LoRA(rank=2, dropout=0.1)}], ids=["", "lora"])
def test_the_same_bits_with_dropout_everywhere(technique: Technique, others: dict[str, Technique]) -> None:
    card = small("antiberty", dropout=0.1, num_hidden_layers=3)
    assert _same(_three_steps(card, **others), _three_steps(card, checkpointing=technique, **others))


# ------------------------------------------------------------------------------------------------ when


def _kept_bytes(setup: Setup, task: SequenceTask) -> int:
    """Bytes that autograd keeps of a forward pass, beside the parameters."""
    own = {p.untyped_storage().data_ptr() for p in setup.model.parameters()}
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        task.loss(setup.model, batches(task, LENGTHS)[0])
    return sum(kept.values())


@by_name
def test_a_model_in_eval_mode_with_gradients_is_checkpointed_too(technique: Technique) -> None:
    card = small("esm2_t6_8m", num_hidden_layers=4)
    plain, task = _made(card, defaults_of_checkpointing())
    setup, _ = _made(card, technique)
    sizes = {}
    for training in (True, False):
        for each in (plain, setup):
            each.model.train(training)
            sizes[training, each is plain] = _kept_bytes(each, task)
    assert sizes[False, False] == sizes[True, False]
    assert sizes[False, False] < 0.8 * sizes[False, True]


@by_name
def test_nothing_is_recomputed_or_kept_without_gradients(technique: Technique) -> None:
    card = small("esm2_t6_8m")
    setup, task = _made(card, technique)
    inputs = batches(task, LENGTHS)[0].inputs
    with torch.no_grad():
        setup.model.eval()
        plain, _ = _made(card, defaults_of_checkpointing())
        plain.model.eval()
        assert torch.equal(setup.model(**inputs).logits, plain.model(**inputs).logits)


@by_name
@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_what_is_saved_has_the_same_names_and_values(
    technique: Technique, adapter: Technique | None, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    card = small("esm2_t6_8m")
    task = task_of("sequence_regression", card)
    others = {} if adapter is None else {"adapter": adapter}
    found = {}
    for name, one in (("plain", defaults_of_checkpointing()), ("with", technique)):
        setup = run_steps(card, task, defaults(checkpointing=one, **others), [batches(task, LENGTHS)]).setup
        save_model(setup, tmp_path / name)
        files = sorted((tmp_path / name).rglob("*.safetensors"))
        assert files
        found[name] = {f.name + key: value for f in files for key, value in load_file(f).items()}
    assert found["with"].keys() == found["plain"].keys()
    assert found["with"]
    assert all(torch.equal(found["with"][key], found["plain"][key]) for key in found["plain"])


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("name", "technique"),
    [
        ("esm2_t6_8m", SelectiveCheckpointing()),
        ("esm2_t6_8m", BlockCheckpointing(every=2)),
        ("esm2_t6_8m", BlockCheckpointing(offload=True)),
        ("rxnmapper_albert", BlockCheckpointing(offload=True)),
        ("antiberty", SelectiveCheckpointing()),
        ("rxnmapper_albert", SelectiveCheckpointing()),
    ],
    ids=lambda v: v if isinstance(v, str) else v.describe(),
)
def test_predicted_peaks_are_measured_ones(name: str, technique: Technique) -> None:
    card = small(name, dropout=0.0 if name == "esm2_t6_8m" else 0.1, num_hidden_layers=4, **WIDE)
    given = (card, task_of("sequence_classification", card), defaults(checkpointing=technique), 16, 64)
    fake, meta, real = predicted(*given).peaks(), predicted(*given, world="meta").peaks(), measured(*given)
    for phase in PHASES:
        assert fake[phase] == pytest.approx(real[phase], rel=0.01), phase
        assert meta[phase] == pytest.approx(fake[phase], rel=0.002), phase


@pytest.mark.parametrize("world", ["fake", "meta", "accelerator"])
def test_selective_holds_more_than_block_and_less_than_everything(world: World) -> None:
    card = small("esm2_t6_8m", num_hidden_layers=4, **WIDE)
    task = task_of("sequence_regression", card)

    def peak(technique: Technique) -> int:
        return with_peak(predicted(card, task, defaults(checkpointing=technique), 16, 64, world=world).peaks())["peak"]

    sizes = [peak(t) for t in (BlockCheckpointing(), SelectiveCheckpointing(), defaults_of_checkpointing())]
    assert sizes[0] < 0.95 * sizes[1] < 0.9 * sizes[2]


def test_a_kept_result_is_alive_between_forward_and_backward_and_no_other() -> None:
    """By hand: of a block, the outputs of six products, attention's with its log-sum-exp, and the block's input."""
    card = small("esm2_t6_8m", num_hidden_layers=4, **WIDE)
    shallower = small("esm2_t6_8m", num_hidden_layers=3, **WIDE)
    rows, length, width, inner, heads = 16, 64, 256, 512, 4
    worlds: tuple[World, ...] = ("fake", "meta")
    for world in worlds:
        held = []
        for one in (card, shallower):
            task = task_of("sequence_regression", one)
            record = predicted(one, task, defaults(checkpointing=SelectiveCheckpointing()), rows, length, world=world)
            start = next(i for i, phase in reversed(record.marks) if phase == "backward")
            before = record.events[:start]
            alive = {e - 1 for e in before if e > 0} - {-e - 1 for e in before if e < 0}
            held.append(sum(record.sizes[i] for i in alive if record.labels[i] == "activations"))
        tokens = rows * length
        kept = tokens * (5 * width + inner + width + heads) * 4  # q, k, v, attention's, mlp's down; up; attention
        block_input = tokens * width * 4
        assert held[0] - held[1] == pytest.approx(kept + block_input, rel=0.01)


# ------------------------------------------------------------------------------------------------ planning


def _tracer(session: Recipes, layers: int, device: str) -> Tracer:
    """Of a model with so many narrow blocks."""
    job = session.job({"techniques": {"precision": "fp32", "adapter": "full"}, "train.global_batch_size": 4})
    card = job.card.model_copy(update={"config": {**job.card.config, "num_hidden_layers": layers}})
    job = dataclasses.replace(job, card=card)
    return Tracer(job, Workload(20, 4, "a test"), Limits(find(device), 64 * GIB, None, "a test"))


@pytest.mark.parametrize(("layers", "every"), [(7, 2), (33, 5), (14, 8)])
@pytest.mark.parametrize("device", ["cpu", "t4"])
def test_depths_that_are_traced_fit_the_period(recipes: Recipes, layers: int, every: int, device: str) -> None:
    """Estimated from shallow models, confirmed as the planner confirms, or traced as a whole: the same peaks."""
    tracer = _tracer(recipes, layers, device)
    chosen = defaults(checkpointing=BlockCheckpointing(every=every))
    plan = tracer.plans(chosen)[0]
    assert plan.micro_batch_size == 4
    whole = tracer._full(chosen, 4, 1)
    for phase in PHASES:
        assert plan.estimate.peak_by_phase[phase] == pytest.approx(whole.peak_by_phase[phase], rel=2e-3), phase
    confirmed = tracer.confirm(plan).estimate
    tracer.depth = None  # from here on it traces models as they are
    whole = tracer.confirm(plan).estimate
    for phase in PHASES:
        assert confirmed.peak_by_phase[phase] == pytest.approx(whole.peak_by_phase[phase], rel=2e-3), phase
