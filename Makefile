# Two commands for everybody: `make quickstart` and `make test`. The rest serves those who change the code;
# docs/development.md describes the tests.
PYTHON ?= python3
# Where torch comes from, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu; empty: pip's own index.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart example label test test-all test-slow test-rest test-numerics test-gpu coverage mutants install dev lint types docs site clean

quickstart: install
	$(BIN)/burnish quickstart

# A real model and real preferences: SmolLM2-135M on AI feedback, about an hour on two cores. Fetches 94 MB.
example: install
	$(BIN)/python examples/fetch_smollm2.py
	$(BIN)/burnish run examples/smollm2_ai_feedback.yaml

# The labelling page with questions to try it on. Without an environment it makes one of what the page needs alone: no
# model, no torch, in a fraction of the time.
PAGE := alembic argon2-cffi crowd-kit fastapi filelock jinja2 limits markdown-it-py numpy pandas plotly psutil pydantic \
  python-multipart pyyaml rich scipy sqlalchemy statsmodels typer uvicorn
label: $(if $(wildcard $(VENV)/installed),$(VENV)/installed,.venv-label/installed)
	$(<D)/bin/burnish label serve --example

.venv-label/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Burnish needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv-label
	.venv-label/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt $(PAGE)
	.venv-label/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
	touch $@

# Two workers: tests of a group (those of a file, or all that start processes) run on one of them, long groups first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
QUICK := not (e2e or browser or slow or realdata or gpu)
SLOW ?= due

# All tests without a marker; one whole run from prompts to report is among them.
test: dev
	$(PYTEST) -m "$(QUICK)"

# All tests but those that need a GPU. What passes of the slow groups is recorded in tests/slow_passed.json.
test-all: dev
	$(PYTEST) -m "not gpu" --record-slow

# The slow groups whose code has changed since they last passed; SLOW=all: every one.
test-slow: dev
	$(PYTEST) -m slow --slow-groups $(SLOW) --record-slow

# What CI runs after `make test`: whole runs, second processes, browsers, and slow groups as above.
test-rest: dev
	$(PYTEST) -m "(e2e or browser or slow) and not (realdata or gpu)" --slow-groups $(SLOW)

# What depends on the kernels of a processor, and one run that is stopped and continued.
test-numerics: dev
	$(PYTEST) -m "$(QUICK)" tests/models tests/objectives tests/policy tests/reward
	$(BIN)/python -m pytest tests/pipeline/test_fingerprint.py

# What only an NVIDIA GPU can show; skips without one.
test-gpu: dev
	$(BIN)/python -m pytest -m gpu tests/gpu

# Line coverage of `make test`, or with MARKERS="not gpu" of `make test-all`; the short run is made anew.
MARKERS = $(QUICK)
coverage: dev
	$(PIP) install --quiet --constraint constraints.txt pytest-cov
	rm -rf .pytest_cache/short-run
	$(PYTEST) -m "$(MARKERS)" --cov burnish --cov-report term

# Which small changes to guard, controller and detectors no test notices: minutes; docs/results/mutation_tests.md says which may live.
mutants: dev
	$(PIP) install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

install: $(VENV)/installed
dev: $(VENV)/installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Burnish needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that its index is asked for nothing else; what it needs comes with the rest. On
# Linux, PyPI's torch is the CUDA build with gigabytes of libraries; without an NVIDIA GPU, PyTorch's CPU index has
# the same version in a tenth of that.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

# The generated reference pages, and the site in docs/_build/html; a warning is an error.
docs: dev
	$(BIN)/python -m burnish.cli.docs docs/reference
	$(MAKE) site

site: dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) .venv-label .pytest_cache .mypy_cache .ruff_cache build docs/_build *.egg-info
