# `make help` lists what there is. Everything runs in .venv, which `make` creates.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: help quickstart install install-dev check test test-crash test-data clean
.DEFAULT_GOAL := help

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

quickstart: install  ## Install, then run the smallest experiment: no GPU, no hub, minutes.
	$(BIN)/python ray_jobs/run.py experiment=quickstart $(ARGS)

install: .venv/installed  ## What a run on a machine without a GPU needs.

install-dev: .venv/installed-dev  ## And what tests need.

# torch first and by its exact version: the CPU build satisfies what the other packages ask for.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[cpu,offline]'
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[cpu,offline,dev]'
	touch $@

check: install-dev  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pipeline ray_jobs

test: install-dev  ## The default tier: unit, contract, Ray and quickstart tests, under 8 minutes.
	$(BIN)/python -m pytest -m 'not crash and not data'

test-crash: install-dev  ## Kills real processes and compares what is left; minutes.
	$(BIN)/python -m pytest -m crash

test-data: install-dev  ## Against the real benchmarks under RAYSTILL_TEST_DATA.
	@test -n "$(RAYSTILL_TEST_DATA)" || { echo 'set RAYSTILL_TEST_DATA to the folder that holds clariq/ and ambignq/'; exit 1; }
	$(BIN)/python -m pytest -m data

clean:  ## Delete the environment and caches; runs/ stays.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
