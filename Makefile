# `make repro` and `make test` set everything up by themselves in a fresh clone.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, not all 9,000 of them on installation.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup setup-dev repro test lint clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(BIN)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(BIN)/.dev: $(BIN)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(BIN)/.run  ## Virtual environment with what the pipeline needs
setup-dev: $(BIN)/.dev  ## The same with what the tests need

repro: setup  ## The whole pipeline on the bundled corpus
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

test: setup-dev  ## Every test that needs no GPU
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup-dev  ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## Remove everything that can be made again, but not the DVC cache
	rm -rf artifacts scratch dvc_plots report.html submission $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
