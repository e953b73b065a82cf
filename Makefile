# make demo: the whole of BEiT on built-in data.   make test: the whole test suite.
# Both set up .venv themselves; the second time that costs nothing.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WORKDIR ?= runs/demo
# Test processes beside each other; 0 = one process. Most of the time goes into compiling, which
# uses one core.
WORKERS ?= 2
TEST_ARGS ?=
# 1: the seconds of each file at the end
TIMES ?= 0
MUTANTS_ARGS ?=

.PHONY: demo test mutants lint parity clean help

help:
	@echo "make demo    set up .venv, train on built-in data, write figures/"
	@echo "make test    set up .venv, run every test (TEST_ARGS='-k masking', WORKERS=0, TIMES=1)"
	@echo "make mutants put in deliberate faults, see that tests notice (MUTANTS_ARGS='--only mae')"
	@echo "make lint    ruff"
	@echo "make parity  add the packages that the parity tests compare with"
	@echo "make clean   remove .venv and caches; runs/ and figures/ stay"

$(STAMP): requirements.txt pyproject.toml
	@$(if $(PYTHON),,echo "beit_jax needs Python 3.11 or newer and found none." \
		"Install one, or name it: make PYTHON=/path/to/python3.12 demo" >&2; exit 1)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11;" \
		"name another one: make PYTHON=/path/to/python3.12 demo" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) -m venv failed;" \
		"on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(PY) -m beit_jax.main --config configs/digits/beit.py --workdir $(WORKDIR)
	mkdir -p figures && cp $(WORKDIR)/figures/*.png figures/

test: $(STAMP)
	TIMES=$(TIMES) $(PY) -m pytest $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist worksteal) $(TEST_ARGS)

mutants: $(STAMP)
	$(PY) tests/mutations.py $(MUTANTS_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .

parity: $(STAMP)
	$(PY) -m pip install --quiet --editable '.[dev,parity]'
	$(PY) -m pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31 \
		dall_e==0.1 torchscale==0.3.0 fairscale==0.4.13
	@echo "for the tests alone: import torchvision and timm fail elsewhere, see the end of" \
		"docs/checkpoints.md"

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
