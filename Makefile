# make demo   create .venv, install jamgym, run the demonstration
# make test   the same with the developer tools, then lint, type check and tests
# make lint   ruff and mypy only
# make clean  remove .venv and what the tools leave behind (runs/ stays)
#
# PYTHON chooses the interpreter (3.10 or newer). TORCH chooses the torch build, for instance
#   make demo TORCH="torch --index-url URL_OF_A_WHEEL_INDEX"
#   make demo TORCH=./torch-2.13.0-local-build.whl

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test lint install install-dev clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -8

demo: install
	$(BIN)/jamgym demo

test: lint
	$(BIN)/python -m pytest

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# Stamps: a second call installs nothing, a changed pyproject.toml does.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "jamgym needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(PIP) install --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
