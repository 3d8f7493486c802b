# make quickstart    a first distillation, from nothing to a table (installs on the first call)
# make setup         install into .venv, with the tested versions
# make test          all tests;  make test-fast  leaves out the slow ones
# make lint          style and import rules
# make clean         remove .venv and what tests leave behind (runs/ stays)
#
# Another Python:                       make setup PYTHON=python3.12
# A torch build for your GPU:           make setup TORCH_INDEX=<the index address PyTorch's install page gives>
# Tests in so many processes:           make test WORKERS=8

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TORCH_INDEX ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test

.DEFAULT_GOAL := help
.PHONY: help quickstart setup test test-fast lint clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(INSTALLED)
	$(BIN)/switchkd distill recipes/quickstart.yaml

setup: $(INSTALLED)

test: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# lmms-eval goes in without its own requirements: among them is torchvision, and one that was built for another torch
# makes transformers' LLaVA classes fail to import. What the ten benchmarks need of them is in pyproject.toml.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 3; }
	@echo "installing into $(VENV), one to two minutes ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(INSTALL) torch --index-url $(TORCH_INDEX))
	@$(INSTALL) -e .
	@$(INSTALL) --no-deps lmms-eval
	@$(BIN)/python -c 'from transformers import LlavaForConditionalGeneration; import lmms_eval.evaluator'
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@$(INSTALL) --no-warn-conflicts -e ".[test]"  # lmms-eval lacks requirements on purpose
	@touch $@
