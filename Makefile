# `make help` lists what there is. Needs Python 3.11 or later (choose one with PYTHON=...) and nothing else.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNEL := $(VENV)/.kernel
TESTERS ?= 3

# PostgreSQL's files may lie elsewhere than in .durabill, when root made them: remove() knows where.
define STOP_STACK
from pathlib import Path
from durabill.deploy.local.kafka import LocalKafka
from durabill.deploy.local.postgres import LocalPostgres
from durabill.stream_processors.settings import Settings
data_dir = Path(Settings().data_dir)
LocalKafka(data_dir).stop()
LocalPostgres(data_dir).remove()
endef
export STOP_STACK

.DEFAULT_GOAL := help
.PHONY: help venv check test lint demo chaos sim bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

venv: $(KERNEL) ## .venv with everything that Durabill and its tests need

# Brought up to date when pyproject.toml changed; made when it is not there, or its Python is gone by then.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Durabill needs Python 3.11 or later, $(PYTHON) is %d.%d. Choose one with: make PYTHON=..." % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "No virtual environment could be made. On Debian: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Beforehand, for else each process that is started meanwhile compiles it for itself.
$(KERNEL): $(STAMP) $(wildcard stream_processors/engine/kernel/*.py)
	@echo "compiling the kernel (once, about half a minute)"
	@$(BIN)/python -c 'from durabill.stream_processors.engine.columns import compile_kernel; compile_kernel()'
	@touch $@

# Without what starts servers, and without tests marked slow.
check: lint $(KERNEL) ## the inner loop, about three minutes: lint, unit and property tests, 20 s of simulation
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests/unit tests/property $(ARGS)
	PYTHONHASHSEED=0 $(BIN)/python -m tests.sim --seconds 20

# One tester more than two cores: most tests wait for a broker. The longest files come first, so that
# none is left alone at the end; the order is that of testpaths in pyproject.toml.
test: $(STAMP) ## lint, then every test, against a real Kafka and PostgreSQL
	+@$(MAKE) --no-print-directory --output-sync=target -j 2 $(KERNEL) lint
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p durabill -p tests

demo: $(KERNEL) ## the whole engine with a fleet of faulty clients; ARGS="--json" and so on
	$(BIN)/durabill demo $(ARGS)

chaos: $(KERNEL) ## kills, freezes and cuts off everything, then audits (tests/chaos); ARGS="--seed 7" and so on
	$(BIN)/python -m tests.chaos $(ARGS)

sim: $(KERNEL) ## the engine on simulated brokers (tests/sim): histories for a minute; SEED=17 prints one, ARGS=--mutations
	PYTHONHASHSEED=0 $(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(KERNEL) ## measurements beside Kafka Streams and others (tests/bench); ARGS="--quick" and so on
	$(BIN)/python -m tests.bench $(ARGS)

clean: ## stops the local stack, then removes its data, .venv and caches
	@if [ -x $(BIN)/python ] && [ -d .durabill ]; then $(BIN)/python -c "$$STOP_STACK"; fi
	rm -rf .durabill $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
