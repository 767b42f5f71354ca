"""The loss in chunks: the same loss, gradients and predictions, and never the scores of a whole vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from small_models import (
    CPU,
    NAMES,
    batches,
    changed,
    defaults,
    examples,
    measured,
    predicted,
    run_steps,
    small,
    task_of,
)
from torch import nn

from zoo.card import ModelCard
from zoo.domain import Head, find_model
from zoo.errors import InputError
from zoo.step import PHASES, Setup, build
from zoo.tasks.masked_lm import MaskedLanguageModelling
from zoo.tasks.sequence import SequenceTask, logits
from zoo.tasks.vocabulary import IGNORED, LazyScores, likelihoods, scores_of, summed_cross_entropy
from zoo.techniques import Technique
from zoo.techniques.adapter import HeadOnly, LoRA
from zoo.techniques.loss import ChunkedLoss, ChunkedScores
from zoo.training.inference import predict
from zoo.training.values import loader_of

KIND = "masked_language_modelling"
LENGTHS = (17, 9, 30, 12)
VOCABULARY = 50_000


def _inputs(bias: bool, dtype: torch.dtype, count: int = 23, vocabulary: int = 11) -> tuple[Any, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(count, 7, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, 7, dtype=dtype, requires_grad=True)
    added = torch.randn(vocabulary, dtype=dtype, requires_grad=True) if bias else None
    targets = torch.randint(vocabulary, (count,))
    targets[::3] = IGNORED
    return hidden, weight, added, targets


# ------------------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_are_those_of_all_scores_at_once(bias: bool, chunk: int) -> None:
    hidden, weight, added, targets = _inputs(bias, torch.float64)
    parts = [t for t in (hidden, weight, added) if t is not None]
    whole = F.cross_entropy(F.linear(hidden, weight, added), targets, ignore_index=IGNORED, reduction="sum")
    lazy = ChunkedScores(hidden, weight, added, chunk).summed_cross_entropy(targets, IGNORED)
    torch.testing.assert_close(lazy, whole, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(lazy * 3, parts), torch.autograd.grad(whole * 3, parts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_scores_beyond_what_an_exponential_holds_give_a_finite_loss() -> None:
    hidden, weight, _, targets = _inputs(False, torch.float32)
    lazy = ChunkedScores(hidden * 1e3, weight, None, 5).summed_cross_entropy(targets, IGNORED)
    whole = F.cross_entropy(hidden * 1e3 @ weight.t(), targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(lazy, whole)
    lazy.backward()
    assert hidden.grad.isfinite().all()


def test_nothing_but_ignored_targets_is_a_loss_of_zero() -> None:
    hidden, weight, _, targets = _inputs(False, torch.float32)
    loss = ChunkedScores(hidden, weight, None, 5).summed_cross_entropy(torch.full_like(targets, IGNORED), IGNORED)
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_only_what_learns_gets_a_gradient(frozen: str) -> None:
    hidden, weight, bias, targets = _inputs(True, torch.float32)
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    named[frozen].requires_grad_(False)
    ChunkedScores(hidden, weight, bias, 5).summed_cross_entropy(targets, IGNORED).backward()
    assert {name for name, t in named.items() if t.grad is None} == {frozen}


def test_the_gradient_of_a_16_bit_weight_is_summed_in_32_bits() -> None:
    """Many small terms: summed in bfloat16, those of later chunks are lost."""
    hidden, weight, _, targets = _inputs(False, torch.bfloat16, count=4096)
    wide = weight.detach().float().requires_grad_()
    F.cross_entropy(hidden.detach().float() @ wide.t(), targets, ignore_index=IGNORED, reduction="sum").backward()
    ChunkedScores(hidden, weight, None, 8).summed_cross_entropy(targets, IGNORED).backward()
    assert weight.grad.dtype == torch.bfloat16
    assert float((weight.grad.float() - wide.grad).norm() / wide.grad.norm()) < 0.01


def test_likelihoods_and_likeliest_tokens_are_those_of_all_scores() -> None:
    hidden, weight, bias, targets = _inputs(True, torch.float32, count=24)
    shaped, wanted = hidden.detach().view(4, 6, 7), targets.view(4, 6)
    lazy, whole = ChunkedScores(shaped, weight, bias, 5), F.linear(shaped, weight, bias)
    assert isinstance(lazy, LazyScores)
    assert lazy.shape == whole.shape
    assert (lazy.dtype, lazy.device) == (whole.dtype, whole.device)
    torch.testing.assert_close(lazy.full(), whole)
    for ours, theirs in zip(likelihoods(lazy, wanted), likelihoods(whole, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(summed_cross_entropy(lazy, wanted), summed_cross_entropy(whole, wanted))


def test_a_bias_may_be_added_from_either_side() -> None:
    hidden, weight, bias, _ = _inputs(True, torch.float32)
    lazy, more = ChunkedScores(hidden, weight, None, 5), torch.ones_like(bias)
    whole = F.linear(hidden, weight, bias) + more
    for added in (lazy + bias + more, more + (bias + lazy), torch.add(lazy, bias) + more):
        torch.testing.assert_close(added.full(), whole)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda s: torch.tanh(s), "calls tanh with it"),
        (lambda s: s.softmax(-1), "asks for its softmax"),
        (lambda s: s + torch.ones(3), "adds anything but a bias to it"),
        (lambda s: s + 1.0, "adds anything but a bias to it"),
        (lambda s: torch.ones(11) * s, "calls mul with it"),
    ],
)
def test_a_model_that_computes_with_its_scores_is_told_so(use: Any, said: str) -> None:
    hidden, weight, _, _ = _inputs(False, torch.float32)
    with pytest.raises(InputError, match=f"loss: chunked: the model does not only return.*{said}; write loss: full"):
        use(ChunkedScores(hidden, weight, None, 5))


# ------------------------------------------------------------------------------------------------ models


def _made(card: ModelCard, task: SequenceTask, **techniques: Technique) -> Setup:
    return build(card, task, defaults(**techniques), CPU, load=loader_of(card, "random", 0))


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2), HeadOnly()], ids=["full", "lora", "head"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_models_are_those_of_the_full_loss(name: str, tied: bool, adapter: Technique | None) -> None:
    card = small(name, tie_word_embeddings=tied)
    task = task_of(KIND, card)
    others = {} if adapter is None else {"adapter": adapter}
    step = [batches(task, LENGTHS, 3, 1)]
    plain, chunked = (
        run_steps(card, task, defaults(**more, **others), step, max_grad_norm=1e9)
        for more in ({}, {"loss": ChunkedLoss(chunk=7)})
    )
    assert type(scores_of(chunked.setup.model, step[0][0].inputs)) is ChunkedScores
    torch.testing.assert_close(chunked.losses, plain.losses, rtol=1e-5, atol=0)
    ours, theirs = chunked.gradients[0], plain.gradients[0]
    assert ours.keys() == theirs.keys()
    assert ours
    scale = max(float(g.norm()) for g in theirs.values())
    for n in theirs:
        assert float((ours[n] - theirs[n]).norm()) < 1e-5 * scale, n
    assert chunked.weights[0].keys() == plain.weights[0].keys(), "names of parameters are as they were"


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_the_full_loss(name: str) -> None:
    card = small(name)
    task = task_of(KIND, card)
    rows = examples(task, LENGTHS)
    plain, chunked = (_made(card, task, **more).model for more in ({}, {"loss": ChunkedLoss(chunk=7)}))
    ours, theirs = (predict(task, model, rows, CPU, rows=2, longest=64) for model in (chunked, plain))
    assert [p["masked_correct"] for p in ours] == [p["masked_correct"] for p in theirs]
    assert [p["masked_tokens"] for p in ours] == [p["masked_tokens"] for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["masked_log_likelihood"] == pytest.approx(b["masked_log_likelihood"], rel=1e-5)
    inputs = batches(task, LENGTHS)[0].inputs
    chunked.eval(), plain.eval()
    torch.testing.assert_close(logits(chunked, inputs), logits(plain, inputs))


def test_predicting_does_not_make_all_scores_either(monkeypatch: pytest.MonkeyPatch) -> None:
    card = small("antiberty")
    task = task_of(KIND, card)
    monkeypatch.setattr(ChunkedScores, "full", lambda self: pytest.fail("all scores at once"))
    model = _made(card, task, loss=ChunkedLoss(chunk=7)).model
    assert predict(task, model, examples(task, LENGTHS), CPU, rows=2, longest=64)


@pytest.mark.parametrize("kind", ["sequence_regression", "sequence_classification", "token_classification"])
def test_tasks_without_a_vocabulary_are_refused(kind: str) -> None:
    card = small("esm2_t6_8m")
    head = "token" if kind.startswith("token") else "sequence"
    said = f"loss: chunked: {kind} has a head of kind {head}, whose outputs are no vocabulary; write loss: full"
    with pytest.raises(InputError, match=said):
        _made(card, task_of(kind, card), loss=ChunkedLoss())


def test_a_head_without_a_linear_layer_is_refused() -> None:
    card = small("esm2_t6_8m")
    other = card.model_copy(update={"roles": {**card.roles, "head": ("lm_head.layer_norm",)}})
    with pytest.raises(InputError, match="no linear layer in role head of esm2_t6_8m could be the output layer"):
        _made(other, task_of(KIND, card), loss=ChunkedLoss())


class _OtherLinear(nn.Linear):
    pass


def test_an_output_layer_of_another_kind_is_refused() -> None:
    card = small("esm2_t6_8m")
    setup = _made(card, task_of(KIND, card))
    setup.base.lm_head.decoder.__class__ = _OtherLinear
    with pytest.raises(InputError, match=r"the output layer lm_head.decoder is a _OtherLinear; only a plain linear"):
        ChunkedLoss().apply(setup)


# ------------------------------------------------------------------------------------------------ memory


class NextToken(MaskedLanguageModelling):
    """Guess the next token: the loss of a decoder."""

    name = "next_token"

    @property
    def head(self) -> Head:
        return Head("causal_lm", 0)


def gpt2(card: ModelCard, head: Head) -> nn.Module:
    import transformers

    facts = {k: v for k, v in card.config.items() if k != "model_type"}
    config = transformers.GPT2Config(**facts, use_cache=False, bos_token_id=None, eos_token_id=None)
    config._attn_implementation = "sdpa"
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def _decoder(*, tied: bool) -> tuple[ModelCard, SequenceTask]:
    config = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    card = find_model("antiberty").model_copy(
        update={
            "config": {**config, **rates, "tie_word_embeddings": tied},
            "build": "test_techniques_loss:gpt2",
            "depth": "n_layer",
            "roles": {"block": ("transformer.h.*",), "head": ("lm_head",), "embedding": ("transformer.wte",)},
        }
    )
    task = NextToken()
    task.use_tokenizer(card, lambda source: pytest.fail("fetched"))
    return card, task


def _encoder(*, tied: bool) -> tuple[ModelCard, SequenceTask]:
    size = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": VOCABULARY}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    card = changed(find_model("antiberty"), **size, **rates, tie_word_embeddings=tied)
    return card, task_of(KIND, card)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shape", [_encoder, _decoder], ids=["bert", "gpt2"])
def test_the_scores_of_a_large_vocabulary_never_exist(shape: Any, tied: bool) -> None:
    card, task = shape(tied=tied)
    rows, length, chunk = 8, 64, 32
    scores = rows * length * VOCABULARY * 4
    real = measured(card, task, defaults(loss=ChunkedLoss(chunk=chunk)), rows, length)
    plan = predicted(card, task, defaults(loss=ChunkedLoss(chunk=chunk)), rows, length).peaks()
    full = predicted(card, task, defaults(), rows, length).peaks()
    for phase in PHASES:
        assert plan[phase] == pytest.approx(real[phase], rel=0.01), phase
    weights = VOCABULARY * 64 * 4
    assert full["forward"] - plan["forward"] > 1.8 * scores
    record = predicted(card, task, defaults(loss=ChunkedLoss(chunk=chunk)), rows, length, world="meta")
    assert max(record.sizes) == weights < scores / 7, "the largest tensor is a weight"
    # Weights, their two states, gradients and what becomes them, one chunk of scores, and the little rest.
    whole = (1 if tied else 2) * weights
    assert max(real.values()) < 4 * whole + weights + chunk * VOCABULARY * 4 + 0.1 * scores


def test_the_number_of_rows_need_not_be_a_multiple_of_the_chunk() -> None:
    card, task = _encoder(tied=False)
    peaks = [predicted(card, task, defaults(loss=ChunkedLoss(chunk=100)), rows, 30).peaks() for rows in (1, 5)]
    real = measured(card, task, defaults(loss=ChunkedLoss(chunk=100)), 5, 30)
    assert peaks[1]["forward"] == pytest.approx(real["forward"], rel=0.01)
    assert peaks[1]["forward"] - peaks[0]["forward"] > 65 * VOCABULARY * 4
