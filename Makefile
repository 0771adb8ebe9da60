# Each target does all of its own set-up: a virtual environment in .venv, and the packages that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DELETE_ON_ERROR:
.PHONY: help demo test test-interop test-pythons lint bench clean

help:
	@echo "make demo   real work on two local servers that verify every batch, then a forged and a replayed one refused"
	@echo "make test   ruff, mypy --strict, every test"
	@echo "make test-interop   Kerberos with Heimdal and with Samba's domain controller (root, Debian)"
	@echo "make test-pythons   every test with each of $(PYTHONS) that is here"
	@echo "make lint   ruff and mypy only"
	@echo "make bench  speed beside concurrent.futures and dask.distributed"
	@echo "make clean  remove .venv and caches"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "secfarm needs Python 3.11 or later; try: make PYTHON=python3.12" >&2; exit 1; }
	@PYTHON="$(PYTHON)" .ci/apt venv
	$(PYTHON) -m venv $(VENV)

# The stamps say what is installed; a change of pyproject.toml installs again.
$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

# gssapi has no wheel: it is compiled against the system's Kerberos, without optimizing, which takes most of the time.
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@.ci/apt gcc krb5-config python-headers
	CFLAGS="-O0 -g0" $(PIP) --editable '.[dev,gssapi]'
	@touch $@ $(VENV)/.core

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/secfarm demo

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict

test: lint
	@.ci/apt ssh-keygen sshd krb5kdc kadmin.local kinit pkinit systemd-analyze
	KERBEROS_TESTS=required $(BIN)/python -m pytest -n $(WORKERS)

$(VENV)/.interop: .ci/interop | $(VENV)/.dev
	.ci/interop $(VENV)/interop $(BIN)/python
	@touch $@

test-interop: $(VENV)/.interop
	@.ci/apt krb5kdc kadmin.local kinit unshare
	KERBEROS_TESTS=required KERBEROS_INTEROP=$(CURDIR)/$(VENV)/interop $(BIN)/python -m pytest tests/interop -m interop

test-pythons:
	@.ci/apt ssh-keygen sshd systemd-analyze
	@set -e; for python in $(PYTHONS); do \
		if ! $$python -c '' 2>/dev/null; then echo "$$python: not on this machine, skipped"; continue; fi; \
		test -x $(VENV)/$$python/bin/python || $$python -m venv $(VENV)/$$python; \
		$(VENV)/$$python/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[dev]'; \
		$(VENV)/$$python/bin/python -m pytest -n $(WORKERS); \
	done

bench: $(VENV)/.bench
	$(BIN)/python bench/run.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
