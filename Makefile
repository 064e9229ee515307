# make demo    the whole flow on embedded real data: some minutes on two cores
# make check   linter, formatter, type checker, and the tests that are not marked slow
# make test    the same with all tests: what CI runs
# make docs    the pages below docs/ as HTML in docs/build; warnings are errors
# make setup   the isolated environment in .venv that all need; a second call returns at once

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/understudy.stamp
UV_VERSION := 0.13.9

# Without bytecode every start compiles torch's source again and takes twice as long.
unexport PYTHONDONTWRITEBYTECODE
# Packages of the surrounding environment must not reach into the isolated one.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help setup demo check test lint format docs lock clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)

# Written last: an interrupted set-up is begun again.
$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Understudy needs Python 3.11 or newer, and '$(PYTHON)' is not. Name another: make PYTHON=python3.12"; exit 1; }
	@echo "Installing the pinned packages into .venv (PyTorch makes it about 6 GB; once)."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-uv.lock
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/understudy demo

# A worker takes whole files, because their tests share what was trained for them; slow ones come first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python docs/architecture.py

docs: setup
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --quiet docs docs/build

# The only way to change a pinned version: edit pyproject.toml or UV_VERSION, then this, then commit all. The three files
# hold the hash of every archive: what development needs, what the package alone needs, and the tool that installs both.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
  --custom-compile-command "make lock"

lock: setup
	$(COMPILE) --extra dev --upgrade --output-file requirements.lock pyproject.toml
	echo "hatchling>=1.27" | $(COMPILE) --no-annotate --upgrade --constraint requirements.lock \
	  --output-file requirements-run.lock pyproject.toml -
	echo "uv==$(UV_VERSION)" | $(COMPILE) --no-annotate --upgrade --output-file requirements-uv.lock -

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist docs/build docs/generated
