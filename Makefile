# Thin names over the real tools. Each makes .venv where it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
CHECKED := src tests benchmarks

.PHONY: demo test lint types imports generated check
.DEFAULT_GOAL := demo

demo: .venv/installed
	$(BIN)/allyouneed run alibi

test: .venv/triton
	$(BIN)/python tests/fetch_assets.py
	$(BIN)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

types: .venv/installed
	$(BIN)/basedpyright

imports: .venv/installed
	$(BIN)/lint-imports

generated: .venv/installed
	$(BIN)/python -m allyouneed.library

check: lint types imports
	$(BIN)/python -m allyouneed.library --check

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "allyouneed needs Python 3.11 to 3.13, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Large, and needed by the tests of one kernel alone.
.venv/triton: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[triton]'
	touch $@
