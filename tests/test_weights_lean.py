"""What a program that only plans leaves out: what stands for it says the same, or becomes the real thing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx.experimental.symbolic_shapes as real
from torch.utils._sympy import functions

from zoo.weights import lean

KNOWN = lean._of_numbers()
ASKED: dict[str, list[tuple[Any, ...]]] = {
    **{name: [(True,), (False,)] for name in KNOWN if name.startswith(("guard_or", "statically_", "guard_size"))},
    **{name: [(3,), (0,)] for name in ("guard_int", "guarding_hint_or_throw", "is_nested_int", "is_symbolic")},
    **{name: [(3,), (2.5,), ((2, 3),)] for name in ("has_free_symbols", "free_symbols", "free_unbacked_symbols")},
    **{name: [(torch.ones(2, 3),)] for name in ("has_free_unbacked_symbols", "_iterate_exprs", "_iterate_nodes")},
    **{name: [(True, True, False), (True, True), (False, True)] for name in ("sym_and", "sym_or")},
    "expect_true": [(True,)],
    "sym_eq": [(2, 2), (2, 3), ([2, (3, 4)], [2, (3, 4)]), ((2, 3), (2, 4)), ((2,), (2, 3))],
    "has_guarding_hint": [(2,), (True,)],
    "compute_unbacked_bindings": [(None, torch.ones(2))],
}


def _plain(answer: Any) -> Any:
    return list(answer) if hasattr(answer, "__iter__") else answer


@pytest.mark.filterwarnings("ignore:.*guard_size_oblivious:FutureWarning")
@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if not isinstance(known, type)])
def test_sizes_that_are_numbers_are_asked_as_torch_does(name: str) -> None:
    for arguments in ASKED[name]:
        mine, torchs = KNOWN[name](*arguments), getattr(real, name)(*arguments)
        assert _plain(mine) == _plain(torchs), arguments


def test_the_rest_of_what_is_known_is_torchs() -> None:
    assert issubclass(real.GuardOnDataDependentSymNode, RuntimeError)
    assert functions.Max(2, 3) == max(2, 3)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of two modules, which says each time that one of them is executed."""
    name = "standing_library"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("from standing_library.part import runs\nBasic = int\nother = 7\n")
    (tmp_path / name / "part.py").write_text(
        "import sys\nruns = sys.__dict__.setdefault('_runs', [])\nruns.append(1)\n"
    )
    (tmp_path / "standing_user.py").write_text("import standing_library.part\nseen = standing_library.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delattr(sys, "_runs", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for loaded in (name, f"{name}.part", "standing_user"):
        monkeypatch.setitem(sys.modules, loaded, None)  # put back as it was: not there
        del sys.modules[loaded]
    return name


def test_a_stand_in_has_what_is_known_and_becomes_real_when_more_is_asked(library: str) -> None:
    mark = type("Basic", (), {})
    stands = sys.modules[library] = lean._Imported(library, Basic=mark)
    assert importlib.import_module(library).Basic is mark
    assert stands.other == 7
    assert sys.modules[library] is not stands
    assert stands.__dict__["Basic"] is sys.modules[library].Basic is int


def test_a_part_of_what_becomes_real_is_executed_once(library: str) -> None:
    sys.modules[library] = lean._Imported(library)
    assert importlib.import_module(f"{library}.part").runs == [1]
    assert importlib.import_module(library).other == 7


def test_what_a_stand_in_needs_becomes_real_before_it(library: str) -> None:
    user = "standing_user"
    sys.modules[library], sys.modules[user] = lean._Imported(library), lean._Imported(user, needs=library)
    assert sys.modules[user].seen is sys.modules[f"{library}.part"]
    assert sys.modules[user].seen.runs == [1]


def test_names_of_transformers_are_found_when_they_are_asked_for() -> None:
    """As a program that plans has it: in a process of its own."""
    code = """
import zoo.weights.lean as lean
lean.only_plans(); lean.before_traces()
looked = []
file_of = lean._file_of
lean._file_of = lambda name, *rest: looked.append(name) or file_of(name, *rest)
from transformers import BertModel, PreTrainedModel, T5EncoderModel, initialization
from transformers import apply_rotary_pos_emb_flashatt_not_there
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot import name 'apply_rotary_pos_emb_flashatt_not_there'" in done.stderr.splitlines()[-1]
    code = code.rsplit("from", 1)[0] + "print(looked, BertModel.__module__, T5EncoderModel.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = (
        "['BertModel', 'T5EncoderModel'] transformers.models.bert.modeling_bert transformers.models.t5.modeling_t5"
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def test_names_that_do_not_begin_with_their_directory_are_found() -> None:
    import transformers
    from transformers.utils import import_utils

    models = Path(transformers.__file__).parent / "models"
    assert lean._file_of("CLIPModel", models, import_utils.define_import_structure) == "models.clip.modeling_clip"
    assert (
        lean._file_of("OpenAIGPTModel", models, import_utils.define_import_structure) == "models.openai.modeling_openai"
    )
    assert lean._file_of("NoSuchModel", models, import_utils.define_import_structure) is None


MODELS_ASK = {
    "scipy": """
import scipy.stats, scipy.signal, scipy.integrate
from scipy.optimize import OptimizeResult, linear_sum_assignment
assert not isinstance(1, OptimizeResult) and linear_sum_assignment([[1, 0], [0, 1]])[1].tolist() == [1, 0]
assert scipy.optimize.minimize(lambda x: (x**2).sum(), [1.0]).success
""",
    "transformers": """
import transformers
from transformers import models
from transformers.models import BertModel
assert transformers.models.bert.BertModel is models.bert.modeling_bert.BertModel is BertModel
assert hasattr(transformers.models, "t5") and not hasattr(transformers.models, "no_such_model")
assert not hasattr(transformers, "NoSuchModel")
assert {"BertModel", "AutoModel"} < set(dir(transformers))
""",
    "the compiler": """
import torch
import torch._dynamo.utils
from torch._dynamo import OptimizedModule
from torch._dynamo.eval_frame import OptimizedModule as Same
assert not isinstance(torch.nn.Linear(1, 1), (OptimizedModule, Same)) and not torch._dynamo.is_compiling()
""",
    "expressions": """
import sympy.core
from sympy import Symbol
from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_or_false
assert str(Symbol("x") + 1) == "x + 1" and isinstance(Symbol("x"), sympy.Basic) and not guard_or_false(False)
""",
}


@pytest.mark.parametrize("asked", MODELS_ASK)
def test_what_a_strangers_model_asks_of_a_library_is_answered(asked: str) -> None:
    """What stands for a library becomes the library itself, or says the same."""
    code = f"import zoo.weights.lean as lean\nlean.only_plans()\nlean.before_traces()\n{MODELS_ASK[asked]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_libraries_are_themselves_while_a_model_is_built() -> None:
    code = f"from zoo.weights.lean import unhurried\nwith unhurried():\n  exec({MODELS_ASK['scipy']!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
