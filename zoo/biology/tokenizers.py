"""Residue tokenizers: one token per residue. Vocabularies are facts of the published models and need no file."""

from __future__ import annotations

from pathlib import Path

from zoo.data.vocabulary import RegexTokenizer

_RESIDUES = tuple("ACDEFGHIKLMNPQRSTVWY")
_ANY_RESIDUE = r"(?s)."


def esm(folder: Path | None = None) -> RegexTokenizer:
    """ESM-2's alphabet of 33 tokens; letters it lacks (J) become ``<unk>``. Source: fair-esm, ``esm/data.py``."""
    tokens = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
    return RegexTokenizer(
        tokens, _ANY_RESIDUE, pad="<pad>", cls="<cls>", sep="<eos>", mask="<mask>", unk="<unk>",
        other_special=("<null_1>",),
    )  # fmt: skip


def antiberty(folder: Path | None = None) -> RegexTokenizer:
    """AntiBERTy's ``vocab.txt``: 20 residues; any other letter becomes ``[UNK]``, as its BertTokenizer does."""
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_RESIDUES)
    return RegexTokenizer(tokens, _ANY_RESIDUE, pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]", unk="[UNK]")


class _SapiensTokenizer(RegexTokenizer):
    """Reads X as ``<mask>``, "any residue", as the original ``seq2tokens`` does."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("X", "<mask>"))


def sapiens(folder: Path | None = None) -> RegexTokenizer:
    """Sapiens' fairseq dictionary: four special tokens, ``dict.txt`` (20 residues), ``<mask>`` last."""
    tokens = ("<s>", "<pad>", "</s>", "<unk>", *_RESIDUES, "<mask>")
    return _SapiensTokenizer(tokens, r"(?s)<mask>|.", pad="<pad>", cls="<s>", sep="</s>", mask="<mask>", unk="<unk>")
