"""Geology: does a bed of sediment grow finer or coarser upwards? Rock types as letters, read from the bottom."""

from pathlib import Path

import torch
from torch import nn

from zoo.card import DatasetCard, ModelCard, Source
from zoo.data.vocabulary import RegexTokenizer
from zoo.domain import Domain

FILES = Source(uri=f"file:{Path(__file__).parent}")  # data only: without weights, recipes say checkpoint: random


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(2 * width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, seen):  # each bed beside the mean of all beds below it
        h = self.norm(x)
        return x + self.down(nn.functional.gelu(self.up(torch.cat([h, h.cumsum(1) / seen], -1))))


class LogReader(nn.Module):
    def __init__(self, tokens, width, layers, outputs):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, outputs)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        mask = attention_mask.unsqueeze(-1).to(x.dtype)  # the zoo chooses the number format
        seen = mask.cumsum(1).clamp(min=1)
        for block in self.blocks:
            x = block(x, seen)
        return self.head((x * mask).sum(1) / seen[:, -1])


def build(card, head):
    return LogReader(**card.config, outputs=head.outputs)


def tokenizer(folder):
    return RegexTokenizer(["<pad>", *"CZFMG"], ".", pad="<pad>")  # clay, silt, fine, medium, gravel


MODEL = ModelCard(
    name="log_reader", domain="geology", title="Reader of well logs", parameters=102_000, licence="CC0-1.0", paper="-",
    config={"tokens": 6, "width": 48, "layers": 5}, build="geology:build", tokenizer="geology:tokenizer",
    source=FILES, max_length=64, special_tokens=0, depth="layers", tasks=("sequence_classification",),
    roles={"block": ("blocks.*",), "mlp": ("blocks.*.up", "blocks.*.down"), "head": ("head",), "embedding": ("embed",)},
)  # fmt: skip
LOGS = DatasetCard(
    name="well_logs", domain="geology", title="Made-up beds", licence="CC0-1.0", source=FILES,
    files={"all": "well_logs.csv"}, columns={"bed": "rock types", "trend": "fining or coarsening"}, rows=200,
)  # fmt: skip
DOMAIN = Domain("geology", "Geology: beds of sediment", (MODEL,), (LOGS,))
