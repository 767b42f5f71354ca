"""A trunk of `transformers` with a linear head on the mean of its token vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def mean_pooled(config: Any) -> nn.Module:
    """The trunk that `config` describes with ``classifier`` on its mean token vector.

    The trunk keeps its own name (``albert``, ``bert``), so that what is saved loads with ``AutoModel.from_pretrained``.
    """
    trunk = AutoModel.from_config(config, add_pooling_layer=False)
    kind = type("MeanPooledForSequence", (_MeanPooled, type(trunk).__mro__[1]), {})
    model: nn.Module = kind(config, trunk)
    return model


class _MeanPooled(PreTrainedModel):  # type: ignore[misc]
    def __init__(self, config: Any, trunk: Any) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, trunk)
        dropout = getattr(config, "classifier_dropout_prob", None)
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Token ids and mask, int64 (B, L), to ``logits`` (B, outputs); masked tokens do not count."""
        trunk = getattr(self, self.base_model_prefix)
        vectors = trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counted = attention_mask.unsqueeze(-1).to(vectors.dtype)
        mean = (vectors * counted).sum(1) / counted.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(mean)))
