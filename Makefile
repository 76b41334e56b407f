# Two commands on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export HF_HUB_OFFLINE := 1

.PHONY: install system-packages demo test test-all lint bench clean

install: $(VENV)/.installed

# torch first and pinned: a range would pull CUDA builds of several gigabytes.
$(VENV)/.installed: constraints.txt requirements-dev.txt busgen_core/pyproject.toml privacy/pyproject.toml client/pyproject.toml server/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt \
		--editable "busgen_core[train]" --editable privacy --editable client --editable server
	touch $@

# What tests need beside Python packages: a browser, for the pages; a PACS with DICOMweb, for intake (the tests start their own).
SYSTEM_FILES := /usr/bin/chromium /usr/sbin/Orthanc /usr/share/orthanc/plugins/libOrthancDicomWeb.so
SYSTEM_PACKAGES := chromium orthanc orthanc-dicomweb

system-packages:
	@if ! ls $(SYSTEM_FILES) > /dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) > /dev/null; \
		else echo "The tests need these packages: run 'sudo apt-get install $(SYSTEM_PACKAGES)'"; exit 1; fi; fi

demo: install
	$(BIN)/python -m deploy.local.demo $(if $(IMAGES),--images $(IMAGES)) $(if $(STAY),--stay)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests sync thousands of small files. Where there is room in memory for their folders, no disk is waited for.
TMP := $(shell [ "$$(df -k --output=avail /dev/shm 2> /dev/null | tail -1)" -gt 8000000 ] 2> /dev/null && echo /dev/shm || echo "$${TMPDIR:-/tmp}")

# Three workers: the journey, which mostly waits, and two beside it. One torch thread each.
PYTEST := TMPDIR=$(TMP) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: install system-packages lint
	$(PYTEST) -m "not slow"

test-all: install system-packages lint
	$(PYTEST)

bench: install
	@test -n "$(NAME)" || { echo "make bench NAME=…, one of: $$(cd bench && ls *.py | sed 's/\.py//' | tr '\n' ' ')"; exit 2; }
	$(BIN)/python -m bench.$(NAME)

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache
