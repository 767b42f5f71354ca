"""The house keeps its order: who may import whom, what stays light, what lies where."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOMAINS = sorted(PROJECT["entry-points"]["zoo.domains"])
TECHNIQUES = "zoo.techniques.*"
HEAVY = ("torch", "transformers", "peft", "pandas", "sklearn", "scipy", "rdkit", "biotite", "huggingface_hub")

FACTS = ("zoo.errors", "zoo.units", "zoo.resources", "zoo.places")
SHAPES = ("zoo.card", "zoo.domain", "zoo.strict_yaml", "zoo.explain", "zoo.recipe", "zoo.recipe_file")
DATA = ("zoo.data", "zoo.data.*")
TASKS = ("zoo.tasks", "zoo.tasks.*")
MEMORY = ("zoo.memory", "zoo.memory.*")
WEIGHTS = ("zoo.weights", "zoo.weights.*")
PLANS = ("zoo.resolve", "zoo.plans", "zoo.planner", "zoo.combinations", "zoo.search", "zoo.tracer", "zoo.sweep")
TRAINING = ("zoo.training", "zoo.training.*")
SURFACE = ("zoo", "zoo.api", "zoo.cli", "zoo.console", "zoo.program")


@dataclass(frozen=True)
class Room:
    """Modules of one kind: which modules of the zoo they may import, and which libraries (None: any).

    Patterns are those of `fnmatch`. Imports inside functions count; those under TYPE_CHECKING are held elsewhere.
    """

    layer: int
    modules: tuple[str, ...]
    may: tuple[str, ...]
    libraries: tuple[str, ...] | None


ROOMS = (
    Room(0, FACTS, FACTS, ()),
    Room(1, SHAPES, (*FACTS, *SHAPES), ("pydantic", "yaml")),
    Room(2, ("zoo.techniques",), ("zoo.errors", "zoo.card"), ()),
    Room(2, ("zoo.host",), (), ("torch",)),
    Room(2, ("zoo.step",), ("zoo.errors", "zoo.card", "zoo.domain", "zoo.host", "zoo.techniques"), ("torch",)),
    Room(2, DATA, (*FACTS, "zoo.card", "zoo.domain", *DATA), ("numpy", "pandas", "pyarrow")),
    Room(
        2, TASKS, (*FACTS, "zoo.card", "zoo.domain", *DATA, *TASKS),
        ("numpy", "pandas", "scipy", "sklearn", "torch"),
    ),
    Room(
        3, (TECHNIQUES,), (*FACTS, "zoo.card", "zoo.host", "zoo.techniques", "zoo.techniques._*", "zoo.step"),
        ("pydantic", "torch", "peft", "bitsandbytes"),
    ),
    Room(
        3, MEMORY, (*FACTS, "zoo.card", "zoo.domain", "zoo.strict_yaml", "zoo.host", "zoo.step", *MEMORY),
        ("numpy", "psutil", "pydantic", "torch"),
    ),
    Room(
        3, WEIGHTS, (*FACTS, "zoo.card", *WEIGHTS),
        ("filelock", "huggingface_hub", "rich", "safetensors", "torch", "transformers"),
    ),
    *(
        Room(
            3, (f"zoo.{domain}", f"zoo.{domain}.*"),
            (*FACTS, "zoo.card", "zoo.domain", *DATA, *TASKS, *WEIGHTS, f"zoo.{domain}", f"zoo.{domain}.*"), None,
        )
        for domain in sorted({*DOMAINS, "meteorology"})  # which is no entry point yet
    ),
    Room(
        4, PLANS, (*FACTS, *SHAPES, *DATA, *TASKS, "zoo.techniques", "zoo.step", *MEMORY, *WEIGHTS, *PLANS),
        ("numpy", "pydantic", "torch"),
    ),
    Room(
        4, TRAINING, (*FACTS, *SHAPES, *DATA, *TASKS, "zoo.step", *MEMORY, *WEIGHTS, *PLANS, *TRAINING),
        ("numpy", "pandas", "peft", "safetensors", "torch", "transformers"),  # three of them to save and load models
    ),
    Room(
        5, SURFACE,
        (*FACTS, *SHAPES, *DATA, *TASKS, "zoo.techniques", "zoo.step", *MEMORY, *WEIGHTS, *PLANS, *TRAINING, *SURFACE),
        ("rich", "torch", "typer"),
    ),
)  # fmt: skip

NEVER_IN_A_DOMAIN = ("peft", "bitsandbytes")
"""Libraries of techniques: a domain brings science, not memory."""

TYPES_FROM_ABOVE = {
    ("zoo.domain", "zoo.data.prepare"),  # Task.prepare returns Data, whose fields domains fill
    ("zoo.techniques", "zoo.step"),  # a technique's methods take the Setup, which lists the techniques applied
    ("zoo.weights.hf", "zoo.domain"),  # builders take the Head that a task asks for
}
"""Imports for type checkers alone that a room's own list would not allow, each with its reason."""


def modules() -> dict[str, Path]:
    """Every module of the package by name."""
    found = {}
    for path in sorted((ROOT / "zoo").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@dataclass(frozen=True)
class Import:
    """`name` as imported: a module, or something in one. `kind`: ``module`` level, in a ``function``, or ``types``."""

    name: str
    line: int
    kind: str


def imports_of(source: str, package: str) -> list[Import]:
    return list(_imports(ast.parse(source), package, "module"))


def _imports(node: ast.AST, package: str, kind: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, kind) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            base = ".".join([*above, *([child.module] if child.module else [])])
            yield from (Import(f"{base}.{alias.name}", child.lineno, kind) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), package, "types")
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), package, kind)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, package, "function" if function and kind != "types" else kind)


def imported_module(name: str) -> str:
    """The module behind an imported name: ``zoo.card.ModelCard`` is ``zoo.card``."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def rooms_of(module: str) -> list[Room]:
    return [room for room in ROOMS if matches(module, room.modules)]


def complaints(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Everything that a module imports and may not."""
    room = rooms_of(module)[0]
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for imported in imports_of(source, package):
        top = imported.name.partition(".")[0]
        where = f"{module}:{imported.line} ({imported.kind})"
        if top == "zoo":
            target = imported_module(imported.name)
            above = imported.kind == "types" and (module, target) in TYPES_FROM_ABOVE
            if not matches(target, room.may) and not above:
                found.append(f"{where} imports {target}, which layer {room.layer} may not")
        elif imported.kind != "types" and top not in sys.stdlib_module_names:
            forbidden = top in NEVER_IN_A_DOMAIN if room.libraries is None else top not in room.libraries
            if forbidden:
                found.append(f"{where} imports the library {top}, which layer {room.layer} may not")
    return found


def test_every_module_has_exactly_one_room() -> None:
    homeless = {module: len(rooms_of(module)) for module in MODULES if len(rooms_of(module)) != 1}
    assert not homeless, f"give each a place in ROOMS: {homeless}"


def test_rooms_allow_imports_only_from_their_own_layer_and_below() -> None:
    for room in ROOMS:
        for pattern in room.may:
            for target in (m for m in MODULES if fnmatch.fnmatchcase(m, pattern)):
                assert rooms_of(target)[0].layer <= room.layer, f"{room.modules} may import {target} from above"


def test_nobody_but_the_registry_names_a_technique() -> None:
    assert not [
        room.modules
        for room in ROOMS
        for t in MODULES
        if t.startswith("zoo.techniques.") and not t.startswith("zoo.techniques._")  # what techniques share
        if matches(t, room.may)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_imports_keep_to_the_layers(module: str) -> None:
    path = MODULES[module]
    assert not complaints(module, path.read_text(), is_package=path.name == "__init__.py")


def test_imports_for_types_alone_are_listed_where_they_look_upwards() -> None:
    upwards = {
        (module, target)
        for module, path in MODULES.items()
        for imported in imports_of(path.read_text(), module.rpartition(".")[0])
        if imported.kind == "types" and (target := imported_module(imported.name)).startswith("zoo")
        if not matches(target, rooms_of(module)[0].may)
    }
    assert upwards == TYPES_FROM_ABOVE


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("zoo.techniques.precision", "from zoo.techniques.adapter import LoRA"),
        ("zoo.techniques.precision", "from zoo.techniques import adapter"),
        ("zoo.techniques.precision", "def f():\n    from . import adapter"),
        ("zoo.techniques.precision", "import zoo.memory.ledger"),
        ("zoo.techniques.precision", "from zoo import chemistry"),
        ("zoo.memory.ledger", "import zoo.biology"),
        ("zoo.memory.ledger", "def f():\n    import transformers"),
        ("zoo.memory.ledger", "from zoo.techniques.adapter import LoRA"),
        ("zoo.biology.fasta", "from zoo.chemistry.smiles import parse"),
        ("zoo.biology.fasta", "from zoo.techniques import Technique"),
        ("zoo.biology.fasta", "from zoo.memory.ledger import Ledger"),
        ("zoo.biology.fasta", "import peft"),
        ("zoo.planner", "def f():\n    import zoo.chemistry.smiles"),
        ("zoo.planner", "from zoo.techniques.adapter import LoRA"),
        ("zoo.planner", "from zoo.training.run import train"),
        ("zoo.planner", "def f():\n    import transformers"),
        ("zoo.training.run", "from zoo.console import show_plan"),
        ("zoo.cli", "from zoo.chemistry import DOMAIN"),
        ("zoo.card", "def f():\n    import torch"),
        ("zoo.card", "from zoo.step import Setup"),
        ("zoo.errors", "import pydantic"),
        ("zoo.card", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zoo.planner import Plan"),
    ],
)
def test_a_forbidden_import_is_noticed(module: str, line: str) -> None:
    assert len(complaints(module, line)) == 1


def loaded_by(*command: str) -> set[str]:
    """Top-level modules that a fresh Python holds after running `command`, which must succeed."""
    report = "import sys, atexit; atexit.register(lambda: print('|'.join(sys.modules), file=sys.stderr)); "
    done = subprocess.run([sys.executable, "-c", report + command[0], *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split("|")}


@pytest.mark.parametrize(
    "argument", [["--help"], ["--version"], ["models"], ["models", "--json"], ["schema"]], ids=" ".join
)
def test_light_commands_import_nothing_heavy(argument: list[str]) -> None:
    assert not loaded_by("from zoo.program import main; main()", *argument) & set(HEAVY)


def test_what_everybody_imports_imports_nothing_heavy() -> None:
    everybody = ["zoo", *FACTS, *SHAPES, "zoo.techniques", "zoo.tasks", "zoo.weights"]
    assert not loaded_by(f"import {', '.join(everybody)}") & set(HEAVY)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_and_its_cards_import_nothing_heavy(domain: str) -> None:
    assert not loaded_by(f"import zoo.{domain}") & set(HEAVY)


def test_a_heavy_import_is_noticed() -> None:
    assert "torch" in loaded_by("import zoo.step")


# ----------------------------------------------------------------------------------------------- the repository


def repository_files() -> list[str]:
    """Files of the repository, committed or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(name for name in set(listed) if (ROOT / name).is_file())


def test_top_level_is_what_the_design_lists() -> None:
    top = {name.split("/")[0] for name in repository_files()}
    listed = "pyproject.toml README.md Makefile CHANGELOG.md CITATION.cff LICENSE zoo recipes datasets tests docs .ci"
    assert {name for name in top if not name.startswith(".") or name == ".ci"} == set(listed.split())


def test_no_file_of_the_package_is_longer_than_400_lines() -> None:
    long = {module: n for module, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_datasets_hold_cards_and_data_but_no_python() -> None:
    assert not [name for name in repository_files() if name.startswith("datasets/") and name.endswith((".py", ".pyi"))]


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    home = re.compile(r"(?<![\w.])/(?:work|root|home|Users|mnt|opt)/[A-Za-z0-9_.]")
    naming = []
    for name in repository_files():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture or an archive
            continue
        naming += [f"{name}:{i}: {line.strip()}" for i, line in enumerate(text.splitlines(), 1) if home.search(line)]
    assert not naming
