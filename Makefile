# What one needs: make and Python 3.11 or newer.  Everything else goes into $(VENV), by the newest releases that fit.
#   make demo     survey a generated town with the bundled model
#   make test     the whole test suite
#   make lint     style, types and the floors of the house
#   make docs     the documentation site, into site/
#   make results  write the figures of benchmarks/results into README.md
#   make clean    remove everything that these made

VENV ?= .venv
# The first Python on the path that is new enough; `make PYTHON=/path/to/python` chooses another one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
WORKERS ?= 2
# Where the demo writes (its survey starts anew each time), and the side of its town in pixels of 0.3 m.
DEMO ?= build/demo
DEMO_SIZE ?= 2000

PIP = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
# A stamp says: this environment holds this checkout, as its pyproject.toml was then.  Its name holds the checkout's
# folder, so that an environment that is shared by several checkouts follows the one that asks.
HERE := $(shell printf '%s' '$(CURDIR)' | cksum | cut -d' ' -f1)
RUN_STAMP = $(VENV)/.negah-run-$(HERE)
DEV_STAMP = $(VENV)/.negah-dev-$(HERE)

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs results clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(RUN_STAMP)
	@rm -rf '$(DEMO)/survey' && mkdir -p '$(DEMO)'
	@echo '== Drawing a town of $(DEMO_SIZE) x $(DEMO_SIZE) pixels of 0.3 m (UTM zone 33N): $(DEMO)/town.tif'
	@$(VENV)/bin/negah scene '$(DEMO)/town.tif' --size-px $(DEMO_SIZE) --overwrite
	@echo '== Surveying it with the bundled model'
	@$(VENV)/bin/negah survey '$(DEMO)/town.tif' --out '$(DEMO)/survey'
	@test -s '$(DEMO)/survey/report.html'
	@echo '== Open the report in a browser: $(abspath $(DEMO))/survey/report.html'

test: $(DEV_STAMP)
	@echo '== Running the test suite in $(WORKERS) processes'
	@$(VENV)/bin/python -m pytest -n $(WORKERS)

lint: $(DEV_STAMP)
	@echo '== ruff: rules'
	@$(VENV)/bin/ruff check .
	@echo '== ruff: format'
	@$(VENV)/bin/ruff format --check .
	@echo '== pyright: types'
	@$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	@echo '== import-linter: floors'
	@$(VENV)/bin/lint-imports --no-cache --no-logo

docs: $(DEV_STAMP)
	@echo '== Building the documentation into site/ (a warning is an error)'
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
	@echo '== Open it in a browser: $(CURDIR)/site/index.html'

results: $(DEV_STAMP)
	@echo '== Writing the figures of benchmarks/results into README.md'
	@$(VENV)/bin/python docs/hooks.py README.md

clean:
	@echo '== Removing $(VENV), build, site and caches'
	@rm -rf '$(VENV)' build site dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or newer on the path: install one, or make PYTHON=/path/to/it' >&2; exit 1; }
	@echo '== Making the environment $(VENV) with $(PYTHON)'
	@'$(PYTHON)' -m venv '$(VENV)'

$(RUN_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo '== Installing negah into $(VENV) (the first time fetches PyTorch: minutes, and gigabytes on Linux)'
	@rm -f '$(VENV)'/.negah-*
	@$(PIP) -e .
	@touch '$@'

$(DEV_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo '== Installing negah and its development tools into $(VENV) (the first time takes minutes)'
	@rm -f '$(VENV)'/.negah-*
	@$(PIP) -e '.[dev]'
	@# A peer of the parity tests. It asks for a requests of 2021, which it does not use in them and nothing else accepts.
	@$(PIP) --no-deps torchattacks
	@touch '$(RUN_STAMP)' '$@'
