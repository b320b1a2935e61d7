# Every target uses .venv in this folder and makes it when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types coverage slow ui clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv with the package and its exact dependencies

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## Simulate, train, rank, register and predict, in about three minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh $(DEMO)

test: install  ## Run the default tests
	$(BIN)/python -m pytest -n 2

slow: install  ## Run the tests that take longer
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types  ## Lint, types, all tests and coverage: what continuous integration runs
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n 2 --cov -m 'not gpu' --cov-report=term --cov-fail-under=90

ui: install  ## Open the MLflow page of the runs
	$(BIN)/snpdeconv ui

clean:  ## Remove what the other targets made
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
