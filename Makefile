# Everything runs in .venv, which is made once and again whenever pyproject.toml or setup.cfg change.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean

help:  ## Show this list
	@echo "Usage: make TARGET [PYTHON=python3.11]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

demo: $(READY)  ## Train a small model on clips made on the spot and show what it learned
	$(RUN) -m export.demo

test: $(READY)  ## Run the tests
	$(RUN) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

lint: $(READY)  ## Check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: $(VENV)/.docs  ## Build the documentation as a site
	rm -rf .cache/docs
	mkdir -p .cache/docs/source
	TF_CPP_MIN_LOG_LEVEL=3 $(RUN) -m sphinx -W --keep-going -q -c docs .cache/docs/source .cache/docs/html
	@echo "The site begins at .cache/docs/html/index.html"

bench: $(VENV)/.bench  ## Measure speed against peers
	$(RUN) -m benchmarks.run

clean:  ## Remove the environment, builds and caches (never runs/)
	rm -rf $(VENV) .cache/build .cache/docs .pytest_cache .ruff_cache dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml setup.cfg
	@command -v $(PYTHON) > /dev/null || { echo "There is no '$(PYTHON)' here. Name a Python from 3.10 to 3.13: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else "tfvidgen needs Python 3.10 to 3.13, but $(PYTHON) is %d.%d. Name another: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -e '.[dev]'
	@touch $@

$(VENV)/.docs $(VENV)/.bench: $(VENV)/.%: $(READY)
	$(RUN) -m pip install -e '.[$*]'
	@touch $@
