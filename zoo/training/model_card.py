"""What a saved model says of itself, for whoever loads it without the zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.step import Setup, describe
from zoo.weights import HubSource, parse


def name_classes(setup: Setup) -> None:
    """Put the names of classes into the model's configuration, before it is saved."""
    config: Any = getattr(setup.base, "config", None)
    classes = getattr(setup.task, "classes", ())
    if classes and getattr(config, "num_labels", None) == len(classes):
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}


def name_base(setup: Setup, checkpoint: str, path: Path) -> None:
    """Put the name of an adapter's base into its saved configuration; PEFT, saving one, would ask the hub for it."""
    base = _source(setup, checkpoint)
    parsed = parse(base) if base is not None and base != "random" else None
    name, revision = (parsed.repository, parsed.revision) if isinstance(parsed, HubSource) else (base, None)
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": name, "revision": revision}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def readme(setup: Setup, checkpoint: str) -> str:
    """A page of Markdown: what the model is, how it is loaded, what goes in and what its outputs mean."""
    card = setup.card
    chosen = ", ".join(f"{key} {value}" for key, value in describe(setup.applied).items())
    paragraphs = [
        f"# {card.title}, fine-tuned for {setup.task.name}",
        f"From the weights `{_source(setup, checkpoint)}` (model `{card.name}`, licence {card.licence}), with "
        f"{chosen}. The recipe, the split and the metrics are in the folder above this one.",
        "With the zoo, which reads the same inputs and answers in the units of the data: "
        "`zoo predict FOLDER_ABOVE INPUT -o OUTPUT`, or `zoo.load(Path(FOLDER_ABOVE))` in Python.",
        f"Without it: {_how_to_load(setup)}",
    ]
    if card.tokenizer is not None:
        paragraphs.append(f'No tokenizer is in this folder; `zoo.load("{card.name}").tokenizer` makes the token ids.')
    if meaning := _meaning(setup):
        paragraphs.append(meaning)
    return "\n\n".join(paragraphs) + "\n"


def _source(setup: Setup, checkpoint: str) -> str | None:
    if checkpoint != "pretrained":
        return checkpoint
    return None if setup.card.source is None else setup.card.source.uri


def _how_to_load(setup: Setup) -> str:
    model: Any = setup.model
    kind = type(setup.base)
    if hasattr(model, "peft_config"):
        return "`peft.PeftModel.from_pretrained(BASE, THIS_FOLDER)`, where BASE is the model with the weights above."
    if kind.__module__.startswith("transformers."):
        return f"`transformers.{kind.__name__}.from_pretrained(THIS_FOLDER)`."
    if hasattr(model, "save_pretrained"):
        return (
            "`transformers` has no class with this head, and would put a new one in its place. "
            "`transformers.AutoModel.from_pretrained(THIS_FOLDER, add_pooling_layer=False)` is its trunk; `classifier` "
            "in model.safetensors is a linear layer on the mean of the trunk's token vectors, padding left out."
        )
    return f"the tensors of model.safetensors have the names of `{kind.__module__}.{kind.__qualname__}`."


def _meaning(setup: Setup) -> str | None:
    """What the outputs mean, as far as the task has learned something of it."""
    learned = setup.task.state()
    if classes := learned.get("classes"):
        return "Outputs are logits of classes: " + ", ".join(f"{i} is {name}" for i, name in enumerate(classes)) + "."
    if {"mean", "std"} <= learned.keys():
        return f"Outputs are standardised: the value is output * {learned['std']!r} + {learned['mean']!r}."
    return None
