"""Tasks that every domain of sequences shares. A domain adds its own through `Domain.tasks`."""

from __future__ import annotations

from collections.abc import Mapping

from zoo.card import Ref

STANDARD: Mapping[str, Ref] = {
    "sequence_regression": "zoo.tasks.regression:SequenceRegression",
    "sequence_classification": "zoo.tasks.classification:SequenceClassification",
    "token_classification": "zoo.tasks.tokens:TokenClassification",
    "masked_language_modelling": "zoo.tasks.masked_lm:MaskedLanguageModelling",
}
"""Recipe name -> class of a `zoo.domain.Task`."""
