# Everything from a fresh clone: `make quickstart` shows the zoo at work, `make test` checks it. Each sets up `.venv` itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# What it depends on would replace torchvision, and with it PyTorch; zoo/meteorology/aurora.py does without.
AURORA := microsoft-aurora>=2.0.1,<3
# Without compiling: Python compiles what is used when it is used, which for torch is a small part; and keeps it, for else
# every command would spend ten seconds on that.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# Threads that wait for each other leave their core to others: several times faster on a machine that is shared.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: quickstart test bench bench-search bench-fits bench-pairs bench-peers pictures lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	$(INSTALL) --editable ".[biology,chemistry]"
	$(BIN)/python -c "import peft, zoo.training.run"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable ".[biology,chemistry,grib,maps,meteorology,aurora,prithvi,dev]"
	$(INSTALL) --no-deps "$(AURORA)"
	touch $@

# Fine-tunes a pretrained chemistry model on measured solubilities inside 2 GiB, beside the floors that it has to beat;
# then predicts the solubility of a few everyday molecules with it.
quickstart: $(VENV)/.installed
	rm -rf runs/quickstart
	$(BIN)/zoo train recipes/chemistry/solubility.yaml --output runs/quickstart --baselines
	$(BIN)/zoo predict runs/quickstart recipes/chemistry/example_molecules.csv -o runs/quickstart/example_predictions.csv
	cat runs/quickstart/example_predictions.csv

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Slower checks; each writes its table of docs/benchmarks.md. The first takes minutes, the second and third about twenty, the
# fourth an hour (these two go on from runs/*.jsonl, which are to be deleted when code has changed); the last asks other
# estimators about published runs: make bench-peers FILES="t4_lora_runs.csv ...".
bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.cpu_memory --write docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.time_ranking --write docs/benchmarks.md

bench-search: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.plan_seconds --write docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.search_choice --write docs/benchmarks.md

bench-fits: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.false_fits --pairs 200 --seed 0 --results runs/false_fits.jsonl --write docs/benchmarks.md

bench-pairs: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.every_pair --results runs/every_pair.jsonl --write docs/benchmarks.md

bench-peers: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.peers $(FILES) --write docs/benchmarks.md

# Draws docs/pictures from plans made anew.
pictures: $(VENV)/.installed-dev
	$(BIN)/python docs/pictures/draw.py

clean:
	rm -rf $(VENV) runs build dist
