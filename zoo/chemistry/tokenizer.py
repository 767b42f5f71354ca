"""SMILES to tokens, as RXNMapper's checkpoint was trained."""

from __future__ import annotations

from pathlib import Path

from zoo.data.vocabulary import RegexTokenizer
from zoo.errors import WeightsError

# One token per atom, bond, branch or ring closure; what stands in brackets is one token. The pattern is that of
# Schwaller et al. 2018, "Found in Translation", Chemical Science 9, 6091, doi:10.1039/C8SC02339E, as RXNMapper's own
# tokenizer has it (`>>` is one token). That tokenizer drops what no alternative matches; this one refuses it.
SMILES_PATTERN = (
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)


def smiles_tokenizer(folder: Path) -> RegexTokenizer:
    """The tokenizer whose ``vocab.txt`` (one token a line, line number = id) lies in `folder`.

    ``[CLS]`` and ``[SEP]`` go around every molecule. Raises `WeightsError` where the file is missing or is no such
    vocabulary.
    """
    path = folder / "vocab.txt"
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; a SMILES model needs its vocabulary beside its weights")
    tokens = path.read_text(encoding="utf-8").splitlines()
    try:
        return RegexTokenizer(tokens, SMILES_PATTERN, pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]", unk="[UNK]")
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; is this the vocabulary of a SMILES model?") from None
