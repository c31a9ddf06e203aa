# `make run` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPT2 := $(BIN)/gpt2

.DEFAULT_GOAL := help
.PHONY: help install run demo-monitor up test test-slow chaos lint bench notebooks clean-state

help:  ## Show this.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The stamp holds the interpreter's and the requirements' state: nothing is installed twice.
STAMP := $(VENV)/.installed
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): some minutes the first time."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make run PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## Make .venv with everything, under constraints.txt.

run: $(STAMP)  ## Run the whole pipeline on the sample data: PRESET=laptop.
	@$(GPT2) run --preset $(or $(PRESET),laptop)

demo-monitor: $(STAMP)  ## After `make run`: the sample posts replayed, with a planted surge, as the monitor sees them.
	@$(GPT2) monitor --demo

up: $(STAMP)  ## Start Prefect with its UI, MLflow and Ray on this machine, until Ctrl-C.
	@$(GPT2) up

test: $(STAMP)  ## Run the tests (15 to 30 minutes on 2 cores).
	@$(BIN)/python -m pytest -m "not slow and not chaos"

test-slow: $(STAMP)  ## Run the tests that take minutes each.
	@$(BIN)/python -m pytest -m slow

chaos: $(STAMP)  ## Break training on purpose in every way that we promise to survive (about an hour).
	@$(BIN)/python -m pytest -m chaos

lint: $(STAMP)  ## Style, types and the direction of imports.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(STAMP)  ## Measure against named peers; see BENCHMARKS.md.
	@$(BIN)/python -m tests.benchmarks

notebooks: $(STAMP)  ## Execute the notebooks in place, each in a clean kernel.
	@GPT2_HOME="$${GPT2_HOME:-$(CURDIR)/.gpt2}" $(BIN)/python -m notebooks.execute notebooks/*.ipynb

clean-state:  ## Remove the local state (GPT2_HOME, default .gpt2) and nothing else.
	@$(if $(wildcard $(GPT2)),$(GPT2) clean --yes,rm -rf -- "$${GPT2_HOME:-.gpt2}")
