"""Models whose architecture `transformers` already has: built from a card's exact configuration, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from zoo.card import ModelCard
    from zoo.domain import Head

_CLASSES = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "masked_lm": "AutoModelForMaskedLM",
}


def build(card: ModelCard, head: Head) -> nn.Module:
    """The transformers model that `card.config` (with ``model_type``) describes, with the head that a task asks for.

    Raises ValueError for a kind of head that transformers has no class for.
    """
    import transformers

    if head.kind not in _CLASSES:
        raise ValueError(f"{card.name} has no head of kind {head.kind!r} (kinds: {', '.join(sorted(_CLASSES))})")
    facts: dict[str, Any] = dict(card.config)
    config = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts, num_labels=head.outputs)
    config._attn_implementation = "sdpa"
    model: nn.Module = getattr(transformers, _CLASSES[head.kind]).from_config(config)
    return model
