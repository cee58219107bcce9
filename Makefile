# make demo    everything from a fresh machine with Python 3.11 to a compressed network
# make test    the tests       make lint    ruff and mypy
# TRIMTAB_VENV names another virtual environment than .venv, PYTHON another interpreter.

SHELL := /bin/bash
VENV := $(if $(TRIMTAB_VENV),$(TRIMTAB_VENV),.venv)
PYTHON ?= python3.11
RUN := $(VENV)/bin/python
# Nothing of the caller's import path may be taken for ours, nor installed from.
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: demo test lint install clean

demo: install
	$(RUN) -P -m service.demo --out demo-out

test: install
	$(RUN) -m pytest $(PYTEST)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# Installs only when the constraints or pyproject.toml changed, or the environment serves another checkout.
install:
	@command -v $(PYTHON) >/dev/null || { echo "needs $(PYTHON); name another with PYTHON=..." >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@set -e; \
	needed="$$(cat constraints.txt pyproject.toml | sha256sum | cut -c1-16)"; \
	have="$$(cat $(VENV)/.trimtab-dependencies 2>/dev/null || true)"; \
	from="$$(cat $(VENV)/.trimtab-checkout 2>/dev/null || true)"; \
	if [ "$$have" != "$$needed" ]; then \
		rm -f $(VENV)/.trimtab-dependencies; \
		echo "installing into $(VENV) (some minutes the first time)"; \
		$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"; \
		echo "$(CURDIR)" > $(VENV)/.trimtab-checkout; \
		echo "$$needed" > $(VENV)/.trimtab-dependencies; \
	elif [ "$$from" != "$(CURDIR)" ]; then \
		$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
		echo "$(CURDIR)" > $(VENV)/.trimtab-checkout; \
	fi

clean:
	rm -rf demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
