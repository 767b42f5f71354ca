# Everything from a fresh clone: `make quickstart` shows the zoo at work, `make test` checks it. Each sets up `.venv` itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: quickstart test bench lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[biology,chemistry]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[biology,chemistry,dev]"
	touch $@

# Fine-tunes a pretrained chemistry model on measured solubilities inside 2 GiB; then predicts with it.
quickstart: $(VENV)/.installed
	rm -rf runs/quickstart
	$(BIN)/zoo train recipes/chemistry/solubility.yaml --output runs/quickstart --baselines
	$(BIN)/zoo predict runs/quickstart datasets/example_molecules.csv -o runs/quickstart/example_predictions.csv

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

# Slower checks; writes the tables of docs/benchmarks.md.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.cpu_memory --write docs/benchmarks.md

clean:
	rm -rf $(VENV) runs build dist
