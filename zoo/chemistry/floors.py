"""What a molecule's fingerprint and a random forest reach: the floor that a fine-tuned model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.tasks.floors import check_floor

_TREES = 200
_RADIUS, _BITS = 2, 2048  # ECFP4 in the customary folding


def fingerprints(inputs: Sequence[str]) -> NDArray[np.uint8]:
    """Morgan fingerprints (N x 2048, 0 or 1): ECFP4 of Rogers and Hahn 2010, J. Chem. Inf. Model. 50, 742."""
    from rdkit.Chem import rdFingerprintGenerator

    from zoo.chemistry.smiles import parse

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=_RADIUS, fpSize=_BITS)
    return np.stack([generator.GetFingerprintAsNumPy(parse(text)) for text in inputs])


def ecfp_random_forest(
    train_inputs: Sequence[str],
    train_targets: Sequence[Any],
    test_inputs: Sequence[str],
    task_name: str,
    seed: int,
) -> NDArray[Any]:
    """Predictions of 200 trees on ECFP4: values for regression, probabilities (N x classes) for classification.

    Classes are ids 0, 1, ...; a class that training never shows gets probability 0. Raises `InputError` for other
    tasks and for nothing to learn from.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    check_floor("ecfp_random_forest", "molecules", task_name, train_inputs, test_inputs)
    train, test = fingerprints(train_inputs), fingerprints(test_inputs)
    if task_name == "sequence_regression":
        # Square root of the bits per split, as for classification: on solubility as good as a third of them, in a
        # third of the time, and 200 trees as good as 500.
        forest = RandomForestRegressor(_TREES, max_features="sqrt", random_state=seed, n_jobs=-1)
        predicted: NDArray[Any] = forest.fit(train, np.asarray(train_targets, dtype=float)).predict(test)
        return predicted
    ids = np.asarray(train_targets, dtype=int)
    classifier = RandomForestClassifier(_TREES, random_state=seed, n_jobs=-1).fit(train, ids)
    probabilities = np.zeros((len(test_inputs), int(ids.max()) + 1))
    probabilities[:, classifier.classes_] = classifier.predict_proba(test)
    return probabilities
