"""Models whose architecture `transformers` already has: built from a card's exact configuration, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.weights.lean import unhurried

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
    with unhurried():
        model: nn.Module = getattr(transformers, _CLASSES[head.kind]).from_config(_config(card, head))
    return model


def build_mean_pooled(card: ModelCard, head: Head) -> nn.Module:
    """As `build`, but one output per sequence is read off the mean over its tokens.

    For models that were pretrained by masked-language modelling alone, whose pooler of the first token has never
    been trained: a fresh pooler learns slowly and ends worse.
    """
    if head.kind != "sequence":
        return build(card, head)
    from zoo.weights.pooled import mean_pooled

    return mean_pooled(_config(card, head))


def _config(card: ModelCard, head: Head) -> Any:
    import transformers

    facts: dict[str, Any] = dict(card.config)
    config = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts, num_labels=head.outputs)
    config._attn_implementation = "sdpa"
    return config
