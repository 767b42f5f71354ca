"""A tokenizer that is a list of tokens and a regular expression: enough for SMILES and for residues."""

from __future__ import annotations

import re
from collections.abc import Sequence


class RegexTokenizer:
    """Splits text with `pattern` and looks each piece up in `tokens` (index = id).

    `cls` and `sep` are put around every input where given. A piece outside the vocabulary becomes `unk`, or raises
    ValueError naming it where the vocabulary has none; so does text that the pattern cannot split without loss.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        pattern: str,
        *,
        pad: str,
        cls: str | None = None,
        sep: str | None = None,
        mask: str | None = None,
        unk: str | None = None,
        other_special: Sequence[str] = (),
    ) -> None:
        self.tokens = tuple(tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self._pattern = re.compile(pattern)
        special = [t for t in (pad, cls, sep, mask, unk, *other_special) if t is not None]
        missing = [t for t in special if t not in self._ids]
        if missing:
            raise ValueError(f"special tokens {missing} are not in the vocabulary")
        self.vocabulary_size = len(self.tokens)
        self.pad_id = self._ids[pad]
        self.unk_id = None if unk is None else self._ids[unk]
        self.mask_id = None if mask is None else self._ids[mask]
        self.special_ids = frozenset(self._ids[t] for t in special)
        self.before = [] if cls is None else [self._ids[cls]]
        self.after = [] if sep is None else [self._ids[sep]]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with special tokens around it."""
        pieces = self._pattern.findall(text)
        if "".join(pieces) != text:
            raise ValueError(f"cannot be split into tokens without loss: {text!r}")
        ids = []
        for piece in pieces:
            token = self._ids.get(piece, self.unk_id)
            if token is None:
                raise ValueError(f"{piece!r} is not in the vocabulary")
            ids.append(token)
        return [*self.before, *ids, *self.after]
