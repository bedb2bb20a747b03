# Each target sets itself up from nothing; a target whose inputs did not change costs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Compiled where they are first imported, a sixth of the 31,000 files. Containers often set a variable that would have
# each process compile anew what it imports.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check fast test lint format up clean

demo: $(VENV)/.installed          ## raw text to a chat model, 8 to 27 minutes on two cores
	$(BIN)/bessemer run demo

check: $(VENV)/.installed-test    ## style, types and the fast tests, in two minutes on two cores
	$(MAKE) --jobs 2 lint fast

fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest --quiet -m fast

test: $(VENV)/.installed-test     ## every test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test     ## style and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: $(VENV)/.installed            ## Prefect, MLflow and a worker, until Ctrl-C
	$(BIN)/bessemer up

clean:                            ## the environment and caches; never your runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.installed
