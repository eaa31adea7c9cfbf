# Every target sets up what it needs: a virtual environment in .venv, with the versions pinned in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Most of the modules are never imported: Python compiles those that are.
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup quick conformance test everything check fixtures format benchmarks studies clean

help: ## Say what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(VENV)/.installed ## Set up the virtual environment, .venv

quick: $(VENV)/.installed ## Judge impl_torch and impl_jax, JIT-compiled, by the quick cases
	$(BIN)/conformance run --quick

conformance: quick ## Judge them by the quick cases, then by all, in every dtype
	$(BIN)/conformance run

test: check ## Run the tests, a sample of those that ask the same of many; includes check
	$(BIN)/python -m pytest -n 2 --dist worksteal

everything: check ## Run the tests without sampling
	$(BIN)/python -m pytest -n 2 --dist worksteal --every

check: $(VENV)/.installed-test ## Lint, types, and the import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/runner/test_imports.py

fixtures: $(VENV)/.installed ## Regenerate the golden fixtures, then check them
	$(BIN)/conformance fixtures generate
	$(BIN)/conformance fixtures check

format: $(VENV)/.installed-test ## Format the code and sort its imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmarks: $(VENV)/.installed-test ## Measure the kit and the layers against their peers
	$(BIN)/python -m benchmarks all

studies: $(VENV)/.installed-test ## Measure what the source notes claim; rewrites docs/studies
	$(BIN)/python -m studies all

clean: ## Remove the virtual environment and every cache
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	$(MAKE) --silent -C ports/c clean

$(VENV)/.pip: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.pip pyproject.toml
	$(PIP) --editable '.[all]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[studies]' --group test
	@touch $@
