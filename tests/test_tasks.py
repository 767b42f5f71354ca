"""Tasks: targets and inputs as batches, losses and metrics against closed forms, predictions in the data's units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import MASKED, REGRESSION, Recipes, peptides
from torch import nn

from zoo.biology.tokenizers import sapiens
from zoo.data.prepare import Data, Example
from zoo.domain import Batch, Head, Task
from zoo.errors import InputError, TrainingError
from zoo.tasks import STANDARD
from zoo.tasks.classification import SequenceClassification, classification_metrics
from zoo.tasks.masked_lm import MaskedLanguageModelling
from zoo.tasks.regression import SequenceRegression, regression_metrics
from zoo.tasks.tokens import IGNORED, TokenClassification
from zoo.training import inference
from zoo.weights import fetch

TOKENS = sapiens()


def example(text: str, row: int = 0, target: Any = None, start: int = 0) -> Example:
    return Example(row, text, tuple(TOKENS.encode(text)), target, start)


def ready(task: Any, train: tuple[Example, ...] = ()) -> Any:
    """The task with a tokenizer, having seen `train`."""
    task._tokenizer = TOKENS
    if train:
        task.learn(Data(train, (), (), "-"))
    return task


class Fixed(nn.Module):
    """Says what it was told, whatever it reads."""

    def __init__(self, said: torch.Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.said


# ------------------------------------------------------------------------------------------- batches


def test_sequences_are_padded_to_the_longest_and_the_mask_says_where() -> None:
    task = ready(SequenceRegression())
    batch = task.collate([example("ACD", target=1.0), example("AC", target=2.0)], [7, 9], 0)
    c, s, p = TOKENS.before[0], TOKENS.after[0], TOKENS.pad_id
    a, b, d = TOKENS.encode("ACD")[1:-1]
    assert batch.inputs["input_ids"].tolist() == [[c, a, b, d, s], [c, a, b, s, p]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert (batch.weight, batch.rows) == (2, (7, 9))


@pytest.mark.parametrize("name", STANDARD)
def test_a_blank_batch_has_the_shapes_and_types_of_a_real_one(name: str, recipes: Recipes) -> None:
    rows = [{**row, "each": "a" * (len(row["sequence"]) - 1) + "b"} for row in peptides(12)]
    target = {"sequence_regression": "charge", "token_classification": "each"}.get(name, "label")
    columns = {"input": "sequence"} if name == "masked_language_modelling" else {"input": "sequence", "target": target}
    job = recipes.job({"task": name, "data.columns": columns}, path=recipes.csv(rows))
    data = job.task.prepare(job, fetch)
    longest = max(job.task.length(e) for e in data.train)
    real = job.task.collate(data.train[:4], range(4), 0)
    blank = job.task.blank_batch(job.card, 4, real.inputs["input_ids"].shape[1])
    assert longest >= real.inputs["input_ids"].shape[1]
    assert {k: (v.shape, v.dtype) for k, v in blank.inputs.items()} == {
        k: (v.shape, v.dtype) for k, v in real.inputs.items()
    }
    assert (blank.targets.shape, blank.targets.dtype) == (real.targets.shape, real.targets.dtype)


def test_a_task_without_a_tokenizer_says_what_to_call() -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared)
        _ = SequenceRegression().tokenizer
    assert str(error.value) == (
        "sequence_regression has no tokenizer yet: call prepare, read_inputs or use_tokenizer first"
    )


def test_a_task_without_targets_reads_none() -> None:
    with pytest.raises(NotImplementedError, match="masked_language_modelling reads no targets"):
        MaskedLanguageModelling().parse_target("x", "x")


# ------------------------------------------------------------------------------------------- regression


def test_regression_metrics_are_their_closed_forms() -> None:
    """Errors 1, -1, 2, 0: squares sum to 6, absolutes to 4; the targets' squares around their mean 2.5 sum to 5."""
    found = regression_metrics([2.0, 1.0, 5.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert found["rmse"] == pytest.approx(math.sqrt(6 / 4))
    assert found["mae"] == pytest.approx(1.0)
    assert found["r2"] == pytest.approx(1 - 6 / 5)
    # ranks 2, 1, 4, 3 against 1, 2, 3, 4: differences of 1 each, 1 - 6 * 4 / (4 * 15)
    assert found["spearman"] == pytest.approx(0.6)


def test_metrics_that_are_not_defined_are_left_out() -> None:
    assert regression_metrics([1.0], [2.0]) == {"rmse": 1.0, "mae": 1.0}
    assert "spearman" not in regression_metrics([1.0, 1.0], [1.0, 2.0])


def test_targets_are_standardised_by_the_training_part_and_predictions_are_not() -> None:
    train = (example("A", 0, 1.0), example("C", 1, 3.0), example("D", 2, 5.0))
    task = ready(SequenceRegression(), train)
    std = math.sqrt(8 / 3)
    assert (task.mean, task.std) == (3.0, pytest.approx(std))
    batch = task.collate(train, [0, 1, 2], 0)
    assert batch.targets.tolist() == pytest.approx([-2 / std, 0, 2 / std])
    model = Fixed(torch.tensor([[0.0], [1.0], [-1.0]]))
    assert [p["prediction"] for p in task.predict(model, batch)] == pytest.approx([3.0, 3.0 + std, 3.0 - std])
    # errors of 2/std, 1 and -1 - 2/std
    expected = (2 / std) ** 2 + 1 + (1 + 2 / std) ** 2
    assert float(task.loss(model, batch)) == pytest.approx(expected, rel=1e-6)


def test_rows_in_windows_count_once_for_the_scale() -> None:
    task = ready(SequenceRegression(), (example("A", 0, 1.0), example("C", 0, 1.0, 4), example("D", 1, 3.0)))
    assert (task.mean, task.std) == (2.0, 1.0)


def test_equal_targets_do_not_divide_by_zero() -> None:
    assert ready(SequenceRegression(), (example("A", 0, 2.0), example("C", 1, 2.0))).std == 1.0


def test_windows_of_a_row_are_averaged() -> None:
    task = ready(SequenceRegression())
    windows = [example("A", 4), example("C", 4, start=1), example("D", 5)]
    predicted = [{"prediction": 1.0}, {"prediction": 2.0}, {"prediction": 7.0}]
    assert task.combine(predicted, windows) == {4: {"prediction": 1.5}, 5: {"prediction": 7.0}}


# ------------------------------------------------------------------------------------------- classification


def test_classification_metrics_are_their_closed_forms() -> None:
    """Of 4 rows of class b and 2 of a, 3 and 1 are found: accuracy 4/6, F1 of b 3/4 and of a 1/2.

    The correlation is (TP*TN - FP*FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (3 - 1) / sqrt(4*4*2*2) = 1/4.
    Of 8 pairs of a b and an a, 6 are ranked rightly.
    """
    chances = [0.9, 0.8, 0.7, 0.4, 0.75, 0.1]
    truth = ["b", "b", "b", "b", "a", "a"]
    found = classification_metrics(("a", "b"), [[1 - p, p] for p in chances], truth)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1_macro"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["mcc"] == pytest.approx(1 / 4)
    assert found["auroc"] == pytest.approx(6 / 8)


def test_the_area_is_left_out_where_a_class_does_not_occur() -> None:
    assert "auroc" not in classification_metrics(("a", "b"), [[0.4, 0.6]], ["b"])


def test_the_area_of_three_classes_is_the_mean_of_one_against_the_rest() -> None:
    perfect = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    assert classification_metrics(("a", "b", "c"), perfect, ["a", "b", "c"])["auroc"] == 1.0


def test_probabilities_are_named_and_sum_to_one() -> None:
    task = ready(SequenceClassification(), (example("A", 0, "x"), example("C", 1, "y")))
    batch = task.collate([example("A", 0, "y"), example("C", 1, "x")], [0, 1], 0)
    assert batch.targets.tolist() == [1, 0]
    model = Fixed(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    first, second = task.predict(model, batch)
    assert first == {"prediction": "y", "probability_x": pytest.approx(0.25), "probability_y": pytest.approx(0.75)}
    assert second["prediction"] == "x"  # the first of equals, the same every time
    assert float(task.loss(model, batch)) == pytest.approx(-math.log(0.75) - math.log(0.5))


def test_probabilities_of_windows_are_averaged_before_the_class_is_picked() -> None:
    task = ready(SequenceClassification(["x", "y"]))
    parts = [{"probability_x": 0.6, "probability_y": 0.4}, {"probability_x": 0.1, "probability_y": 0.9}]
    merged = task.merge(parts)
    assert merged == {
        "prediction": "y", "probability_x": pytest.approx(0.35), "probability_y": pytest.approx(0.65),
    }  # fmt: skip


def test_one_class_is_not_enough() -> None:
    with pytest.raises(InputError) as error:
        ready(SequenceClassification(), (example("A", 0, "x"),))
    assert str(error.value) == "sequence_classification: the training part has fewer than two classes: x"


def test_labels_that_training_does_not_have_are_named() -> None:
    task = ready(SequenceClassification())
    train = (example("A", 0, "x"), example("C", 1, "y"))
    with pytest.raises(InputError) as error:
        task.learn(Data(train, (), (example("D", 2, "z"),), "-"))
    assert str(error.value) == (
        "sequence_classification: labels z are not among the classes of the training part (x, y)"
    )


@pytest.mark.parametrize("task", [SequenceClassification, TokenClassification])
def test_classes_in_a_recipe_are_at_least_two(task: Any) -> None:
    with pytest.raises(ValueError, match="classes must list at least two labels"):
        task(["only"])
    with pytest.raises(ValueError, match="classes must list at least two labels"):
        task("ab")
    with pytest.raises(ValueError, match=r"^classes must differ from each other, and 1, a is listed more than once\Z"):
        task(["b", "1", "a", 1, "a"])
    assert task(["a", "b", "c"]).head.outputs == 3


# ------------------------------------------------------------------------------------------- tokens


def test_every_token_has_its_label_and_what_has_none_does_not_count() -> None:
    task = ready(TokenClassification(), (example("ACD", 0, tuple("HE-")), example("A", 1, ("H",))))
    assert task.classes == ("E", "H")
    batch = task.collate([example("ACD", 0, tuple("HE-")), example("A", 1, ("H",))], [0, 1], 0)
    no = IGNORED
    assert batch.targets.tolist() == [[no, 1, 0, no, no], [no, 1, no, no, no]]
    assert batch.weight == 3
    model = Fixed(torch.zeros(2, 5, 2))
    assert float(task.loss(model, batch)) == pytest.approx(3 * math.log(2))


def test_labels_are_characters_or_words_one_a_token() -> None:
    task = ready(TokenClassification())
    assert task.parse_target("HE-", "ACD") == ("H", "E", "-")
    assert task.parse_target("helix strand -", "ACD") == ("helix", "strand", "-")
    with pytest.raises(ValueError, match="2 labels for 3 tokens"):
        task.parse_target("HE", "ACD")
    with pytest.raises(ValueError, match="the labels are missing"):
        task.parse_target("", "ACD")


def test_token_metrics_count_labelled_tokens_only() -> None:
    """Of H, E, E, H the guesses H, H, E, H: 3 of 4; F1 of H 4/5, of E 2/3."""
    task = ready(TokenClassification(["E", "H"]))
    found = task.metrics([{"prediction": "H H H"}, {"prediction": "E H"}], [tuple("HE-"), tuple("EH")])
    assert found == {"accuracy": 0.75, "f1_macro": pytest.approx((4 / 5 + 2 / 3) / 2)}


def test_windows_of_tokens_are_put_end_to_end_and_each_has_its_own_labels() -> None:
    task = ready(TokenClassification(["E", "H"]))
    labels = tuple("HHEE")
    windows = [example("AC", 3, labels), example("DE", 3, labels, start=2)]
    batch = task.collate(windows, [0, 1], 0)
    assert batch.targets[:, 1:3].tolist() == [[1, 1], [0, 0]]
    said = task.predict(Fixed(torch.eye(2)[torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]])]), batch)
    assert task.combine(said, windows) == {3: {"prediction": "H H E E"}}


def test_token_labels_need_two_classes_that_training_has() -> None:
    with pytest.raises(InputError) as error:
        ready(TokenClassification(), (example("AC", 0, ("H", "-")),))
    assert str(error.value) == "token_classification: the training part has fewer than two classes: H"
    task = ready(TokenClassification())
    with pytest.raises(InputError) as error:
        task.learn(Data((example("AC", 0, ("H", "E")),), (example("AC", 1, ("C", "-")),), (), "-"))
    assert str(error.value) == ("token_classification: labels C are not among the classes of the training part (E, H)")


# ------------------------------------------------------------------------------------------- masked tokens

LONG = "ACDEFGHIKLMNPQRSTVWY" * 6


def masked(task: Any, row: int = 0, epoch: int | None = 0, start: int = 0) -> tuple[list[int], list[int]]:
    batch = task.collate([example(LONG, row, start=start)], [0], epoch)
    return batch.inputs["input_ids"][0].tolist(), batch.targets[0].tolist()


def test_masks_are_the_same_for_seed_epoch_row_and_start_and_differ_otherwise() -> None:
    task, same, other = (ready(MaskedLanguageModelling(seed=seed)) for seed in (1, 1, 2))
    assert masked(task, 3, 5, 7) == masked(same, 3, 5, 7)
    everywhere = [
        masked(task, 3, 5, 7),
        masked(other, 3, 5, 7),
        masked(task, 4, 5, 7),
        masked(task, 3, 6, 7),
        masked(task, 3, 5, 8),
    ]
    assert len({str(m) for m in everywhere}) == 5


def test_masks_do_not_depend_on_the_company_in_the_batch() -> None:
    task = ready(MaskedLanguageModelling())
    pair = task.collate([example("ACDEF", 1), example(LONG, 2)], [0, 1], 4)
    alone = task.collate([example(LONG, 2)], [0], 4)
    assert torch.equal(pair.inputs["input_ids"][1], alone.inputs["input_ids"][0])
    assert torch.equal(pair.targets[1], alone.targets[0])


def test_evaluation_masks_are_fixed_and_none_of_training() -> None:
    task = ready(MaskedLanguageModelling())
    assert masked(task, epoch=None) == masked(task, epoch=None)
    assert masked(task, epoch=None) not in [masked(task, epoch=epoch) for epoch in range(3)]


def test_special_tokens_are_never_masked_nor_put_in() -> None:
    task = ready(MaskedLanguageModelling(mask_probability=0.9))
    before = TOKENS.encode(LONG)
    for epoch in range(20):
        ids, labels = masked(task, epoch=epoch)
        for i, (old, new, label) in enumerate(zip(before, ids, labels, strict=True)):
            assert label in (IGNORED, old)
            if i in (0, len(before) - 1):
                assert (new, label) == (old, IGNORED)
            elif label == IGNORED:
                assert new == old
            else:
                assert new == TOKENS.mask_id or new not in TOKENS.special_ids


def test_of_the_chosen_tokens_eight_in_ten_are_masked_and_one_in_ten_is_another() -> None:
    """120 tokens, 18 chosen an epoch, 400 epochs: 7200 draws; the bounds are 5 standard deviations wide."""
    task = ready(MaskedLanguageModelling())
    before = TOKENS.encode(LONG)
    masks = others = chosen = 0
    for epoch in range(400):
        ids, labels = masked(task, epoch=epoch)
        assert sum(label != IGNORED for label in labels) == 18
        for old, new, label in zip(before, ids, labels, strict=True):
            chosen += label != IGNORED
            masks += new == TOKENS.mask_id
            others += new not in (old, TOKENS.mask_id)
    assert chosen == 7200
    assert abs(masks / chosen - 0.8) < 0.024
    assert abs(others / chosen - 0.1 * 19 / 20) < 0.018  # one in 20 random residues is the old one


def test_at_least_one_token_is_chosen_and_an_empty_one_counts_nothing() -> None:
    task = ready(MaskedLanguageModelling())
    assert task.collate([example("A")], [0], 0).weight == 1
    assert task.collate([Example(0, "", (*TOKENS.before, *TOKENS.after))], [0], 0).weight == 0


def test_masked_metrics_are_their_closed_forms() -> None:
    """Equal scores for all 25 tokens: each costs log 25, so the perplexity is 25."""
    task = ready(MaskedLanguageModelling())
    batch = task.collate([example("ACDEFGHIKL"), example("AC", 1)], [0, 1], None)
    model = Fixed(torch.zeros(2, 12, 25))
    assert float(task.loss(model, batch)) == pytest.approx(batch.weight * math.log(25))
    found = task.metrics(task.predict(model, batch), [None, None])
    assert found["masked_perplexity"] == pytest.approx(25)
    knows = torch.nn.functional.one_hot(batch.targets.clamp(min=0), 25).float() * 100
    assert task.metrics(task.predict(Fixed(knows), batch), [None, None]) == {
        "masked_accuracy": 1.0, "masked_perplexity": pytest.approx(1.0),
    }  # fmt: skip
    assert task.merge(task.predict(Fixed(knows), batch))["masked_tokens"] == batch.weight


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    prediction = {"masked_tokens": 1, "masked_correct": 0, "masked_log_likelihood": -1e4}
    assert MaskedLanguageModelling().metrics([prediction], [None])["masked_perplexity"] == math.inf


def test_masking_needs_a_mask_and_a_share() -> None:
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"mask_probability must lie between 0 and 1, not {share}"):
            MaskedLanguageModelling(mask_probability=share)
    task = ready(MaskedLanguageModelling())
    task._tokenizer = sapiens()
    task._tokenizer.mask_id = None
    with pytest.raises(ValueError, match="the model's tokenizer has no mask token"):
        task.collate([example("ACD")], [0], 0)


# ------------------------------------------------------------------------------------------- state and scores


def test_a_task_that_was_restored_predicts_the_same() -> None:
    import json

    batches: Mapping[str, tuple[Any, Any, torch.Tensor]] = {
        "regression": (
            ready(SequenceRegression(), (example("A", 0, 1.0), example("C", 1, 4.0))), SequenceRegression(),
            torch.tensor([[0.3], [-0.2]]),
        ),
        "classes": (
            ready(SequenceClassification(), (example("A", 0, "p"), example("C", 1, "q"), example("D", 2, "r"))),
            SequenceClassification(), torch.tensor([[0.1, 0.2, 0.3], [3.0, 1.0, 2.0]]),
        ),
        "tokens": (
            ready(TokenClassification(), (example("AC", 0, ("H", "E")),)), TokenClassification(),
            torch.tensor([[[0.0, 1.0]] * 3, [[1.0, 0.0]] * 3]),
        ),
    }  # fmt: skip
    for learned, fresh, said in batches.values():
        ready(fresh).restore(json.loads(json.dumps(learned.state())))
        assert fresh.head == learned.head
        examples = [example("A"), example("C", 1)]
        first = learned.predict(Fixed(said), learned.collate(examples, [0, 1], None))
        assert fresh.predict(Fixed(said), fresh.collate(examples, [0, 1], None)) == first


def test_the_constant_floor_is_the_mean_or_the_shares() -> None:
    train, test = (example("A", 0, 1.0), example("C", 1, 4.0)), (example("D", 2, 9.0),)
    data = Data(train, (), test, "-")
    assert ready(SequenceRegression(), train).constant(data) == [{"prediction": 2.5}]
    train = (example("A", 0, "p"), example("C", 1, "q"), example("D", 2, "q"))
    data = Data(train, (), (example("E", 3, "p"),), "-")
    floor = ready(SequenceClassification(), train).constant(data)
    assert floor == [{"prediction": "q", "probability_p": pytest.approx(1 / 3), "probability_q": pytest.approx(2 / 3)}]


def test_predictions_come_back_in_the_order_of_the_examples() -> None:
    class Length(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return attention_mask.sum(-1, keepdim=True).float()

    task = ready(SequenceRegression())
    examples = [example("A" * n, n) for n in (3, 9, 1, 7, 5)]
    found = inference.predict(task, Length(), examples, torch.device("cpu"), rows=2, longest=11)
    assert [p["prediction"] for p in found] == [5.0, 11.0, 3.0, 9.0, 7.0]


def test_scores_of_predictions_that_are_not_finite_are_refused() -> None:
    task = ready(SequenceRegression())
    examples = [example("A", 4, 1.0), example("C", 9, 2.0)]
    with pytest.raises(TrainingError) as error:
        inference.score(task, [{"prediction": 1.0}, {"prediction": math.nan}], examples)
    assert str(error.value) == (
        "the model's predictions are not finite for 1 of 2 rows (data rows [10]); "
        "train with a lower learning rate, a longer warm-up, max_grad_norm or precision: fp32"
    )


def test_every_standard_task_is_a_task(recipes: Recipes) -> None:
    kinds = {
        "sequence_regression": ("sequence", REGRESSION), "sequence_classification": ("sequence", {}),
        "token_classification": ("token", {"task": "token_classification"}),
        "masked_language_modelling": ("masked_lm", MASKED),
    }  # fmt: skip
    assert kinds.keys() == STANDARD.keys()
    for kind, changes in kinds.values():
        task = recipes.job(changes).task
        assert isinstance(task, Task)
        assert isinstance(task.head, Head)
        assert task.head.kind == kind
        assert isinstance(Batch({}, torch.zeros(1), 1).to(torch.device("cpu")), Batch)
