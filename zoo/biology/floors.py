"""What counting residues reaches: the floor that a fine-tuned protein language model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.biology.residues import STANDARD
from zoo.tasks.floors import check_floor


def features(inputs: Sequence[str]) -> NDArray[np.float64]:
    """Fractions of the 20 standard residues, of all other letters, and the length's logarithm (N x 22)."""
    counts = np.array([[text.count(residue) for residue in STANDARD] for text in inputs], dtype=float)
    lengths = np.array([len(text) for text in inputs], dtype=float)[:, None]
    return np.hstack([counts / lengths, 1 - counts.sum(1, keepdims=True) / lengths, np.log(lengths)])


def composition(
    train_inputs: Sequence[str],
    train_targets: Sequence[Any],
    test_inputs: Sequence[str],
    task_name: str,
    seed: int,
) -> NDArray[Any]:
    """Logistic regression (probabilities, N x classes) or ridge regression (values, N) on residue composition.

    Classes are ids 0, 1, ...; a class that training never shows gets probability 0. Both models are deterministic, so
    that `seed` changes nothing. Raises `InputError` for other tasks and for nothing to learn from. Composition as a
    protein descriptor: Nakashima, Nishikawa and Ooi 1986, J. Biochem. 99, 153.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_floor("composition", "sequences", task_name, train_inputs, test_inputs)
    train, test = features(train_inputs), features(test_inputs)
    if task_name == "sequence_regression":
        ridge = make_pipeline(StandardScaler(), Ridge())
        predicted: NDArray[Any] = ridge.fit(train, np.asarray(train_targets, dtype=float)).predict(test)
        return predicted
    ids = np.asarray(train_targets, dtype=int)
    probabilities = np.zeros((len(test_inputs), int(ids.max()) + 1))
    if len(seen := np.unique(ids)) == 1:  # scikit-learn refuses to fit one class
        probabilities[:, seen[0]] = 1
        return probabilities
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    logistic.fit(train, ids)
    probabilities[:, logistic.classes_] = logistic.predict_proba(test)
    return probabilities
