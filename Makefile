# Every target works on a machine with only Python 3.11+ and make; all tools live in .venv.

PYTHON ?= python3
WORKERS ?= auto
# How much of what is promised `make test-long` does: 1 is all of it.
SCALE ?= 1

ON_EVERY_PYTHON := tests/unit tests/contract tests/property tests/integrations

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
PINS := tests/constraints.txt
EXTRAS := anthropic,celery,cli,console,crypto,kafka,langchain,litellm,mcp,openai,openai-agents,otel,postgres,prices,pydantic-ai,re2,redis,temporal,workers
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test test-long test-pythons check lint format types bench compare coverage constraints clean

help:
	@echo "make demo         watch a run hit its budget and its kill switch"
	@echo "make test         run the tests (WORKERS=$(WORKERS) processes)"
	@echo "make test-long    run the tests marked long, in full (SCALE=$(SCALE); 0.1 is a tenth)"
	@echo "make test-pythons run the tests that need no server on other Pythons, where they are found ($(PYTHONS))"
	@echo "make check        ruff, import-linter, mypy and pyright"
	@echo "make format       let ruff rewrite the code"
	@echo "make bench        measure the figures"
	@echo "make compare      measure the packages that people would pick instead, from the package index"
	@echo "make coverage     run the tests and report the lines they miss"
	@echo "make setup        make or refresh .venv (the others do it by themselves)"
	@echo "make constraints  pin the newest versions in $(PINS)"
	@echo "make clean        remove .venv, caches and builds"

setup: $(STAMP)

# 25.3 is the first pip that knows both --group and --build-constraint.
$(STAMP): pyproject.toml $(PINS)
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		$(MAKE) --no-print-directory check-python && \
		echo "Making $(VENV) with $$($(PYTHON) --version)" && \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "Installing agentguard and its tools into $(VENV)"
	@$(PY) $(PIP_INSTALL) --constraint $(PINS) "pip>=25.3"
	@$(PY) $(PIP_INSTALL) --constraint $(PINS) --build-constraint $(PINS) \
		--editable ".[$(EXTRAS)]" --group dev
	@touch $@

.PHONY: check-python
check-python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "agentguard needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: its venv or ensurepip module is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }

demo: $(STAMP)
	@$(BIN)/agentguard demo

test: $(STAMP)
	$(PY) -m pytest -n $(WORKERS) --durations=15

test-long: $(STAMP)
	AGENTGUARD_LONG=$(SCALE) $(PY) -m pytest -n $(WORKERS) -m long --timeout 1800

# Each in an environment of its own, .venv-3.12 and so on; from the PATH, else of pyenv.
PYTHONS ?= 3.12 3.13
test-pythons:
	@for version in $(PYTHONS); do \
		python=$$(for found in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
			"$$found" -c 'import sys; print(sys.executable)' 2>/dev/null && break; done); \
		if [ -z "$$python" ]; then echo "Python $$version not found"; continue; fi; \
		$(MAKE) --no-print-directory setup VENV=.venv-$$version PYTHON="$$python" || exit 1; \
		echo "$$python -m pytest $(ON_EVERY_PYTHON)"; \
		.venv-$$version/bin/python -m pytest -q -n $(WORKERS) $(ON_EVERY_PYTHON) || exit 1; \
	done

# Parts of their own, so that `make -k check` shows every complaint.
check: lint types
lint: ruff imports
types: mypy pyright

.PHONY: ruff imports mypy pyright
ruff: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

imports: $(STAMP)
	$(BIN)/lint-imports --no-logo

# mypy refuses a folder without Python files; these may have none.
CHECKED = $(sort $(dir $(wildcard integrations/*/__init__.py tests/typing/*.py)))

mypy: $(STAMP)
	$(PY) -m mypy agentguard $(CHECKED)

pyright: $(STAMP)
	$(PY) -m pyright

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)
	$(PY) -m benchmarks

compare: $(STAMP)
	$(PY) -m benchmarks.peers --json benchmarks/peers/found.json

coverage: $(STAMP)
	$(PY) -m pytest -n $(WORKERS) --cov --cov-report=term --cov-report=html

# Resolved in a fresh environment, so that nothing left over in .venv is pinned.
constraints: check-python
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(PYTHON) -m venv "$$fresh" && \
	"$$fresh/bin/python" $(PIP_INSTALL) --upgrade pip && \
	"$$fresh/bin/python" $(PIP_INSTALL) --editable ".[$(EXTRAS)]" --group dev && \
	{ echo "# What the tests run with. Written by \`make constraints\`."; \
	  "$$fresh/bin/python" -m pip freeze --all --exclude-editable --exclude setuptools; \
	} > "$$fresh/pins" && cp "$$fresh/pins" $(PINS)

clean:
	rm -rf $(VENV) .venv-* build dist htmlcov .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
