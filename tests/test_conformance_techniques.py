"""Every option of every technique keeps its promise: bitwise, within its tolerance, or openly another model.

The tests run over the registry, so that a new option is held to its word on the day it is added.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_models import CPU, NAMES, Steps, batches, changed, defaults, loads, run_steps, small, task_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.card import ModelCard
from zoo.domain import Batch, find_model
from zoo.errors import InputError
from zoo.recipe import Train
from zoo.step import Loader, Setup, build, train_step
from zoo.tasks.regression import SequenceRegression
from zoo.tasks.sequence import SequenceTask, logits
from zoo.techniques import Technique, registry
from zoo.techniques.adapter import HeadOnly, LoRA
from zoo.techniques.checkpointing import BlockCheckpointing
from zoo.techniques.chunking import Positions
from zoo.techniques.loss import ChunkedLoss
from zoo.techniques.offload import Activations, Weights
from zoo.techniques.optimizer import MasterWeights
from zoo.techniques.precision import BF16, FP32
from zoo.training.export import save_model
from zoo.training.values import loader_of
from zoo.weights import fetch

EXAMPLES: dict[type[Technique], dict[str, Any]] = {
    ChunkedLoss: {"chunk": 7}, Activations: {"smallest": 1}, Weights: {"smallest": 1},
}  # fmt: skip
"""Parameters of options that cannot do without, or that do nothing to so small a batch."""
OPTIONS = [(key, option) for key, options in registry().items() for option in options]
LENGTHS = (17, 9, 30, 12)
ADAPTERS: tuple[Technique, ...] = (registry()["adapter"][0](), LoRA(rank=2, dropout=0.1), HeadOnly())


def _made(option: type[Technique]) -> Technique:
    return option(**EXAMPLES.get(option, {}))


def _named(option: type[Technique]) -> str:
    return f"{option.key}-{option.name}"


def _of(exactness: str) -> list[Any]:
    """Options of that exactness that are not the default of their key, to which they are compared."""
    found = [o for key, o in OPTIONS if o.exactness == exactness and o is not registry()[key][0]]
    return [pytest.param(option, id=_named(option)) for option in found]


# ------------------------------------------------------------------------------------------------ declarations


@pytest.mark.parametrize("option", [pytest.param(o, id=_named(o)) for _, o in OPTIONS])
def test_every_option_declares_what_it_is(option: type[Technique]) -> None:
    for name, kind in (("key", str), ("name", str), ("source", str), ("stage", int), ("exactness", str)):
        assert isinstance(getattr(option, name), kind), f"{option.__name__} declares no {name}"
    assert option.key
    assert option.name
    assert option.__doc__, f"{option.__name__} does not say what it does"
    assert option.exactness in ("bitwise", "rounding", "changes-model")
    assert (0 < option.tolerance < 1) == (option.exactness == "rounding"), "a tolerance belongs to rounding only"
    assert option.source == "-" or len(option.source) > 10, "source names a paper or a document"


def test_names_are_unique_and_the_default_of_every_key_changes_nothing() -> None:
    assert {"precision", "adapter", "checkpointing", "optimizer"} <= set(registry())
    for key, options in registry().items():
        assert len({option.name for option in options}) == len(options)
        assert {option.key for option in options} == {key}
        assert len({option.stage for option in options}) == 1, "options of one key are applied at the same moment"
        assert options[0].exactness == "bitwise"


# ------------------------------------------------------------------------------------------------ bitwise


def _same_to_the_bit(first: Steps, second: Steps) -> bool:
    for a, b in zip(first.losses, second.losses, strict=True):
        if not torch.equal(a, b):
            return False
    for ours, theirs in zip([*first.gradients, *first.weights], [*second.gradients, *second.weights], strict=True):
        if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
            return False
    return True


def _three_steps(card: ModelCard, techniques: Sequence[Technique]) -> Steps:
    task = task_of("sequence_regression", card)
    return run_steps(card, task, techniques, [batches(task, LENGTHS, 3, 1, seed=seed) for seed in range(3)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.name)
@pytest.mark.parametrize("precision", [FP32(), BF16()], ids=lambda p: p.name)
@pytest.mark.parametrize("option", _of("bitwise"))
def test_bitwise_options_train_to_the_same_bits(
    name: str, adapter: Technique, precision: Technique, option: type[Technique]
) -> None:
    card = small(name, dropout=0.1)
    plain = {k: t for k, t in (("adapter", adapter), ("precision", precision)) if k != option.key}
    if option is Weights and not adapter.freezes_trunk:
        with pytest.raises(InputError, match="offload: weights: adapter: full trains the weights"):
            _three_steps(card, defaults(**{**plain, option.key: _made(option)}))
        return
    without = _three_steps(card, defaults(**plain))
    with_ = _three_steps(card, defaults(**{**plain, option.key: _made(option)}))
    assert len(without.losses) == 3
    assert not torch.equal(without.losses[0], without.losses[1])
    assert without.gradients[0]
    assert _same_to_the_bit(without, with_)


class _ForgetsDropout(Technique):
    """Recomputes blocks with other dropout masks than the first time."""

    key = "checkpointing"
    name = "forgetful"
    source = "-"
    stage = 200
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        for module in setup.modules_of("block").values():
            forward = module.forward
            module.forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_that_forgets_the_random_state_is_caught(name: str) -> None:
    card = small(name, dropout=0.1)
    without, wrong = _three_steps(card, defaults()), _three_steps(card, defaults(checkpointing=_ForgetsDropout()))
    assert not _same_to_the_bit(without, wrong)
    sober = small(name, dropout=0.0)
    right = _three_steps(sober, defaults(checkpointing=_ForgetsDropout()))
    assert _same_to_the_bit(_three_steps(sober, defaults()), right), "the comparison itself is at fault"


@pytest.mark.parametrize("name", NAMES)
def test_block_checkpointing_recomputes_every_block(name: str) -> None:
    card = small(name)
    task = task_of("sequence_regression", card)

    def runs(techniques: Sequence[Technique]) -> int:
        """How often the first linear layer of a block runs in one step (the last layers of one may be spared)."""
        setup = build(card, task, techniques, CPU, load=loader_of(card, "random", 0))
        seen: list[int] = []
        for block in setup.modules_of("block").values():
            inner = next(m for m in block.modules() if isinstance(m, nn.Linear))
            inner.register_forward_hook(lambda *_: seen.append(1))
        train_step(setup, batches(task, LENGTHS))
        return len(seen)

    layers = int(card.config["num_hidden_layers"])
    assert runs(defaults()) == layers
    assert runs(defaults(checkpointing=BlockCheckpointing())) == 2 * layers


# ------------------------------------------------------------------------------------------------ rounding


class _FP64(Technique):
    """Everything in 64-bit floating point: what all roundings are compared with."""

    key = "precision"
    name = "fp64"
    source = "-"
    stage = 40
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        setup.model.double()


def _published(card: ModelCard, task: SequenceTask) -> dict[str, torch.Tensor]:
    """A checkpoint in fp32 whose values bf16 cannot hold."""
    setup = build(card, task, defaults(), CPU, load=loader_of(card, "random", 0))
    return {name: value.detach().clone() for name, value in setup.model.state_dict().items()}


def _error(steps: Steps, reference: Steps) -> float:
    """The largest relative error of three steps, against float64: of a loss, and of all weights together.

    Gradients do not enter: Adam divides them by their own size, so that those which are nothing but noise
    (the bias of attention's keys, whose true gradient is zero) would count as much as any other.
    """
    errors = []
    for ours, theirs in zip(steps.losses, reference.losses, strict=True):
        errors.append(float((ours.double() - theirs.double()).abs() / theirs.double().abs()))
    for a, b in zip(steps.weights, reference.weights, strict=True):
        assert a.keys() == b.keys()
        distance = sum(float((a[n].double() - b[n].double()).square().sum()) for n in a)
        errors.append((distance / sum(float(b[n].double().square().sum()) for n in b)) ** 0.5)
    return max(errors)


KINDS = ("sequence_regression", "sequence_classification", "token_classification", "masked_language_modelling")


def _rounding_steps(card: ModelCard, kind: str, option: Technique, load: Loader | None = None) -> Steps:
    """Three steps at the default learning rate."""
    task = task_of(kind, card)
    steps = [batches(task, LENGTHS * 2, 5, 3, seed=seed) for seed in range(3)]
    load = load or loads(_published(card, task))
    rate = Train(epochs=1).learning_rate
    return run_steps(card, task, defaults(**{option.key: option}), steps, load=load, learning_rate=rate)


def _rounding_error(card: ModelCard, kind: str, option: Technique, load: Loader | None = None) -> float:
    """`_error` of `_rounding_steps`."""
    return _error(_rounding_steps(card, kind, option, load), _rounding_steps(card, kind, _FP64(), load))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", _of("rounding"))
def test_rounding_options_stay_within_their_tolerance(name: str, kind: str, option: type[Technique]) -> None:
    card = small(name)
    if option is ChunkedLoss and kind != "masked_language_modelling":
        with pytest.raises(InputError, match=f"loss: chunked: {kind} has a head of kind"):
            _rounding_error(card, kind, _made(option))
        return
    if option is Positions:  # weather transformers have the role: tests/test_techniques_chunking.py
        with pytest.raises(InputError, match=f"chunking: positions: {name} has no role positionwise"):
            _rounding_error(card, kind, _made(option))
        return
    error = _rounding_error(card, kind, _made(option))
    assert error <= option.tolerance
    if option.key == "precision":
        assert error > 100 * _rounding_error(card, kind, FP32()), "rounds nothing: this is bitwise"
    else:  # the same numbers added in another order
        default = _rounding_steps(card, kind, registry()[option.key][0]())
        assert not _same_to_the_bit(_rounding_steps(card, kind, _made(option)), default), "this is bitwise"


def _pretrained_error(option: Technique) -> float:
    card = changed(find_model("sapiens_vh"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return _rounding_error(card, "masked_language_modelling", option, loader_of(card, "pretrained", 0))


@pytest.mark.parametrize("option", [option for option in _of("rounding") if option.values[0] is not Positions])
def test_rounding_options_stay_within_their_tolerance_on_a_pretrained_model(option: type[Technique]) -> None:
    assert _pretrained_error(_made(option)) <= option.tolerance


class _Sloppy(Technique):
    """Passes for bf16, and keeps three bits of every weight."""

    key = "precision"
    name = "sloppy"
    source = "-"
    stage = 120
    exactness = "rounding"

    def apply(self, setup: Setup) -> None:
        with torch.no_grad():
            for parameter in setup.model.parameters():
                parameter.copy_(parameter.to(torch.float8_e4m3fn))


def test_a_precision_that_rounds_more_than_it_says_is_caught() -> None:
    assert _pretrained_error(_Sloppy()) > BF16.tolerance


# ------------------------------------------------------------------------------------------------ master weights


def _masters(setup: Setup) -> MasterWeights:
    assert isinstance(setup.optimizer, MasterWeights)
    return setup.optimizer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.name)
def test_bf16_parameters_are_their_masters_rounded_after_every_step(name: str, adapter: Technique) -> None:
    card = small(name, dropout=0.1)
    task = task_of("sequence_regression", card)
    checked: list[int] = []

    def check(setup: Setup) -> None:
        owned = _masters(setup)
        finer = 0
        for parameter, master in zip(owned.params, owned.masters, strict=True):
            assert parameter.dtype == torch.bfloat16
            assert master.dtype == torch.float32
            assert torch.equal(parameter, master.to(torch.bfloat16))
            finer += int((master != parameter.float()).sum())
        assert finer, "the masters hold nothing that bf16 does not"
        checked.append(len(owned.params))

    steps = [batches(task, LENGTHS, seed=seed) for seed in range(3)]
    found = run_steps(card, task, defaults(precision=BF16(), adapter=adapter), steps, after=check)
    assert checked == [len(found.setup.trainable())] * 3


def test_updates_smaller_than_the_resolution_of_bf16_add_up_in_the_masters() -> None:
    card = small(NAMES[0])
    task = task_of("sequence_regression", card)
    load = loads(_published(card, task))
    steps = [batches(task, LENGTHS)] * 8
    found = run_steps(card, task, defaults(precision=BF16()), steps, load=load, learning_rate=2e-7)
    reference = run_steps(card, task, defaults(), steps, load=load, learning_rate=2e-7)
    name = "classifier.dense.weight"
    index = list(found.setup.trainable()).index(name)
    start = _published(card, task)[name]
    moved = _masters(found.setup).masters[index] - start
    wanted = reference.weights[-1][name] - start
    assert float((moved - wanted).norm() / wanted.norm()) < 0.2
    lost = (found.weights[-1][name] != start.to(torch.bfloat16)).float().mean()
    assert float(lost) < 0.1, "so small a learning rate should move few weights in bf16"


@pytest.mark.parametrize("kind", ["sequence_regression", "masked_language_modelling"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.name)
@pytest.mark.parametrize("name", NAMES)
def test_masters_start_from_what_the_checkpoint_holds(name: str, adapter: Technique, kind: str) -> None:
    card = small(name)
    task = task_of(kind, card)
    published = _published(card, task)
    setup = build(card, task, defaults(precision=BF16(), adapter=adapter), CPU, load=loads(published))
    named = {id(p): n for n, p in setup.model.named_parameters()}
    compared = 0
    for parameter, master in zip(_masters(setup).params, _masters(setup).masters, strict=True):
        origin = named[id(parameter)].removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        if origin in published:
            assert torch.equal(master, published[origin]), f"the master of {origin} starts from a rounded value"
            assert not torch.equal(published[origin], parameter.float()) or published[origin].ndim < 2
            compared += 1
    assert compared
    assert not setup.reference, "the checkpoint's values are kept for nothing"


# ------------------------------------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", [None, 0.1], ids=["unclipped", "clipped"])
def test_dividing_the_batch_does_not_change_the_update(name: str, kind: str, clip: float | None) -> None:
    card = small(name)
    task = task_of(kind, card)
    lengths = (30, 7, 19, 12, 25, 9, 14)

    def update(precision: Technique, *divisions: int) -> Steps:
        step = batches(task, lengths, *divisions)
        assert len({micro.inputs["input_ids"].shape for micro in step}) == len(step), "padding should differ"
        return run_steps(card, task, defaults(precision=precision), [step], max_grad_norm=clip)

    for precision, tolerance in ((_FP64(), 1e-10), (FP32(), 1e-5)):
        whole = update(precision)
        for divisions in ((3, 4), (1, 2, 4), (4, 1, 2)):
            parts = update(precision, *divisions)
            assert abs(float(parts.losses[0] / whole.losses[0]) - 1) < max(tolerance, 1e-12)
            assert _distance(parts.gradients[0], whole.gradients[0]) < tolerance
            if precision == _FP64():
                assert _distance(parts.weights[0], whole.weights[0]) < tolerance


def _distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors together, relative to their norm."""
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[n].double() - theirs[n].double()).square().sum()) for n in ours)
    return (apart / sum(float(t.double().square().sum()) for t in theirs.values())) ** 0.5


class _MeanOfMeans(SequenceRegression):
    """The usual mistake: every micro-batch weighs the same, whatever it contains."""

    def collate(self, examples: Sequence[Any], rows: Sequence[int], epoch: int | None) -> Batch:
        batch = super().collate(examples, rows, epoch)
        return Batch(batch.inputs, batch.targets, 1, batch.rows)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return super().loss(model, batch) / len(batch.rows)


def test_averaging_the_means_of_unequal_micro_batches_is_caught() -> None:
    card = small(NAMES[0])
    task = _MeanOfMeans()
    task.use_tokenizer(card, fetch)
    whole, parts = (
        run_steps(card, task, defaults(precision=_FP64()), [batches(task, (30, 7, 19), *divisions)])
        for divisions in ((3,), (1, 2))
    )
    assert _distance(parts.gradients[0], whole.gradients[0]) > 1e-2


# ------------------------------------------------------------------------------------------------ adapters


def _outputs(setup: Setup, task: SequenceTask) -> torch.Tensor:
    setup.model.eval()
    with torch.no_grad():
        return logits(setup.model, batches(task, LENGTHS)[0].inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_fresh_adapters_change_nothing(name: str, kind: str) -> None:
    card = small(name, dropout=0.1)
    task = task_of(kind, card)
    load = loads(_published(card, task))
    plain, adapted = (
        build(card, task, defaults(**kw), CPU, load=load) for kw in ({}, {"adapter": LoRA(dropout=0.1, rank=4)})
    )
    assert torch.equal(_outputs(plain, task), _outputs(adapted, task))
    with torch.no_grad():
        for n, p in adapted.model.named_parameters():
            if "lora_B" in n:
                p.fill_(0.1)
    assert not torch.equal(_outputs(plain, task), _outputs(adapted, task)), "the adapters are not in use"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [("attention",), ("attention", "mlp")], ids="+".join)
@pytest.mark.parametrize("name", NAMES)
def test_lora_trains_the_targets_adapters_and_the_head(name: str, targets: tuple[str, ...], kind: str) -> None:
    card = small(name)
    task = task_of(kind, card)
    plain = build(card, task, defaults(), CPU)
    heads = {n for n, _ in plain.modules_of("head").items()}
    wanted = {n for role in targets for n, m in plain.modules_of(role).items() if isinstance(m, nn.Linear)}
    found = run_steps(card, task, defaults(adapter=LoRA(rank=2, targets=targets)), [batches(task, LENGTHS)] * 2)
    moved = {n for n in found.weights[0] if not torch.equal(found.weights[0][n], found.weights[1][n])}
    adapted, trained_heads = set(), set()
    for n in found.setup.trainable():
        inside = n.removeprefix("base_model.model.")
        if ".lora_" in inside:
            adapted.add(inside.split(".lora_")[0])
        else:
            assert ".modules_to_save.default" in inside, f"{n} is neither an adapter nor in the head"
            trained_heads.add(inside.split(".modules_to_save.")[0])
    assert adapted == wanted
    assert not {a for a in adapted for h in heads if a == h or a.startswith(f"{h}.")}, "the head is adapted"
    assert trained_heads
    assert all(any(t == h or t.startswith(f"{h}.") for h in heads) for t in trained_heads)
    assert moved
    assert moved <= set(found.setup.trainable()), "a frozen weight moved"
    assert {n for n in moved if ".modules_to_save." in n}, "the head was not trained"
    assert {n.split(".lora_")[0] for n in moved if ".lora_" in n} == {f"base_model.model.{w}" for w in wanted}


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_saved_with_the_adapter(name: str, tmp_path: Path) -> None:
    card = small(name)
    task = task_of("sequence_classification", card)
    setup = run_steps(card, task, defaults(adapter=LoRA(rank=2)), [batches(task, LENGTHS)]).setup
    save_model(setup, tmp_path / "model")
    saved = safetensors.torch.load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert any("lora_A" in key for key in saved)
    weights = dict(setup.model.named_parameters())
    heads = {n for n in weights if ".modules_to_save.default" in n}
    assert heads
    for n in heads:
        assert torch.equal(saved[n.replace(".modules_to_save.default", "")], weights[n])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_head_only_trains_the_head_and_nothing_else(name: str, kind: str) -> None:
    card = small(name)
    task = task_of(kind, card)
    found = run_steps(card, task, defaults(adapter=HeadOnly()), [batches(task, LENGTHS)] * 2)
    heads = tuple(f"{n}." for n in found.setup.modules_of("head"))
    assert found.setup.trainable()
    assert all(n.startswith(heads) for n in found.setup.trainable())
    moved = {n for n in found.weights[0] if not torch.equal(found.weights[0][n], found.weights[1][n])}
    assert moved
    assert all(n.startswith(heads) for n in moved), f"the trunk moved: {[n for n in moved if not n.startswith(heads)]}"


def _recast(card: ModelCard, **roles: tuple[str, ...]) -> ModelCard:
    return card.model_copy(update={"roles": {**card.roles, **roles}})


@pytest.mark.parametrize(
    ("technique", "roles", "said"),
    [
        pytest.param(
            LoRA(targets=("attention",)), {"attention": ("esm.encoder.layers.*.query",)},
            ['role "attention" of esm2_t6_8m matches no module', "esm.encoder.layers.*.query", "for example", "esm."],
            id="lora-no-module",
        ),
        pytest.param(
            LoRA(targets=("attn",)), {},
            ['"attn" is not a role of esm2_t6_8m', "attention, block, embedding, head, mlp"], id="lora-no-role",
        ),
        pytest.param(
            LoRA(targets=("embedding",)), {},
            ['role "embedding" of esm2_t6_8m has no linear layer for LoRA to adapt'], id="lora-no-linear-layer",
        ),
        pytest.param(
            HeadOnly(), {"head": ("regressor",)},
            ['role "head" of esm2_t6_8m matches no module: patterns regressor', "for example"], id="head-no-module",
        ),
        pytest.param(
            LoRA(), {"head": ("regressor",)},
            ['role "head" of esm2_t6_8m matches no module: patterns regressor'], id="lora-no-head",
        ),
        pytest.param(
            BlockCheckpointing(), {"block": ("esm.layer.*",)},
            ['role "block" of esm2_t6_8m matches no module: patterns esm.layer.*'], id="block-no-module",
        ),
    ],
)  # fmt: skip
def test_a_role_that_matches_nothing_is_an_error_that_names_what_exists(
    technique: Technique, roles: dict[str, tuple[str, ...]], said: list[str]
) -> None:
    card = _recast(small("esm2_t6_8m"), **roles)
    with pytest.raises(InputError) as caught:
        build(card, task_of("sequence_regression", card), defaults(**{technique.key: technique}), CPU)
    for part in said:
        assert part in str(caught.value)


def test_checkpointing_is_refused_where_the_card_names_no_blocks() -> None:
    card = small("esm2_t6_8m")
    blockless = card.model_copy(update={"roles": {k: v for k, v in card.roles.items() if k != "block"}})
    task = task_of("sequence_regression", card)
    with pytest.raises(InputError, match="checkpointing: block: esm2_t6_8m has no role block"):
        build(blockless, task, defaults(checkpointing=BlockCheckpointing()), CPU)
