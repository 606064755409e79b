# Every target makes the virtual environment it needs, and reuses it.
#   PYTHON=   interpreter for a new environment (3.11, 3.12 or 3.13)
#   VENV=     where the environment lies
#   WORKDIR=  where the demo writes, and finds a finished run again
#   TESTFLAGS=  more arguments for pytest
VENV ?= .venv
WORKDIR ?= runs/ising_cpu
TESTFLAGS ?=

# A name on PATH need not run (version managers leave stubs), so each is tried.
# An environment that exists comes first: it is kept until another is asked for.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell \
  for p in $(VENV)/bin/python python3.11 python3.12 python3.13 python3; do \
    "$$p" -c "$(NEW_ENOUGH)" 2>/dev/null && { echo "$$p"; break; }; done)
PRINT_VERSION := import sys; print("%d.%d" % sys.version_info[:2])
VERSION := $(shell "$(PYTHON)" -c '$(PRINT_VERSION)' 2>/dev/null)
CONSTRAINTS := constraints/$(if $(filter 3.11,$(VERSION)),py311,py312).txt
STAMP := $(VENV)/.made-$(or $(VERSION),unknown)
RUN := $(VENV)/bin/python

.PHONY: venv demo test test-quick test-thorough test-faults lint docs notebooks
venv: $(STAMP)

demo: venv
	@$(RUN) -m experiments.main --config=experiments/mdns/ising.py:cpu \
	  --workdir="$(WORKDIR)"

# A worker that crashes ends the run: what it had left would not be tested.
PYTEST := -m pytest -n 2 --dist loadfile --max-worker-restart 0

test: venv
	@$(RUN) $(PYTEST) $(TESTFLAGS)

test-quick: venv
	@$(RUN) $(PYTEST) -m "not slow and not thorough and not faults" $(TESTFLAGS)

# With the cases that test leaves out: every variant of every config.
test-thorough: venv
	@$(RUN) $(PYTEST) -m "not faults" $(TESTFLAGS)

# Real runs, killed at random moments.
test-faults: venv
	@$(RUN) -m pytest -n 2 -m faults -rP $(TESTFLAGS)

lint: venv
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy jdiff

# Into build/docs. Warnings are errors, all of them shown.
docs: venv
	@JAX_PLATFORMS=cpu $(RUN) -m sphinx -q -E -W --keep-going -b html \
	  docs build/docs

# Each one once, shortened: from the root, as a reader runs it.
notebooks: venv
	@$(RUN) -m pytest -n 2 -m "" -k root tests/test_notebooks.py $(TESTFLAGS)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@"$(PYTHON)" -c "$(NEW_ENOUGH)" 2>/dev/null || { \
	  echo "PYTHON='$(PYTHON)' does not run as Python 3.11 or newer;" \
	    "pass one that does: make PYTHON=/path/to/python3.12"; exit 1; }
	@if [ -e "$(VENV)" ] && [ ! -e "$(VENV)/pyvenv.cfg" ]; then \
	  echo "VENV=$(VENV) exists and is no virtual environment;" \
	    "pass another path."; exit 1; fi
	@if [ "$$("$(RUN)" -c '$(PRINT_VERSION)' 2>/dev/null)" = "$(VERSION)" ]; \
	  then echo "Updating $(VENV) (Python $(VERSION), $(CONSTRAINTS))."; \
	  else echo "Making $(VENV) with Python $(VERSION) and $(CONSTRAINTS)" \
	    "(a few minutes, once)."; "$(PYTHON)" -m venv --clear "$(VENV)"; fi
	@rm -f "$(VENV)"/.made-*
	@$(RUN) -m pip install -qq --disable-pip-version-check \
	  -c $(CONSTRAINTS) -e ".[dev]"
	@touch "$@"
