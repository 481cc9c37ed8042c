# Python 3.11 or newer and make are all a machine needs. `make` alone lists the commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STAMP := $(VENV)/.installed
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup sweep test lint bench lock ui cluster-check clean
help:
	@echo "make sweep    set up, simulate a data set if there is none, search encoders on it (about 6 minutes)"
	@echo "make ui       open MLflow on what was run"
	@echo "make cluster-check  could runs go to the cluster of RAY_ADDRESS (else this machine), could strangers get in?"
	@echo "make test     set up, then lint, types and tests"
	@echo "make bench    every benchmark at a size for 2 cores, one table (under 30 minutes)"
	@echo "make setup    only set up: $(VENV) with the locked packages"
	@echo "make lock     resolve requirements.lock anew from pyproject.toml"
	@echo "make clean    remove $(VENV) and caches; data sets and results stay"

setup: $(STAMP)
	@echo "set up in $(VENV)"

$(UV):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	@echo "creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"

# Compiled once here, or each of the many processes of a sweep that may not write there would compile it for itself.
# The lock holds a hash for every file that may be installed. Written to the stamp only when all of it succeeded.
$(STAMP): requirements.lock pyproject.toml | $(UV)
	@echo "installing the locked packages (several GB the first time) ..."
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

sweep: setup
	@$(BIN)/python jobs/local.py -- python jobs/sweep.py $(ARGS)

# Written bytecode is asked for: the tests start processes by the hundred, which compile our own modules otherwise.
test: lint
	@test ! -e platform/__init__.py || { echo "platform/__init__.py shadows the standard library's platform: remove it"; exit 1; }
	@env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs --durations 12 --numprocesses 2 --dist loadscope --no-loadscope-reorder $(ARGS)

lint: setup
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyrefly check --summary=none --min-severity=error

bench: setup
	@$(BIN)/python benchmarks/run_all.py $(ARGS)

lock: $(UV)
	@$(UV) pip compile --quiet --no-header --universal --generate-hashes --group test --group lint --group build --python-version 3.11 pyproject.toml -o requirements.lock
	@! grep -nE '(^| )--(index|extra-index|find-links)|https?://' requirements.lock || { echo "requirements.lock names a registry host"; exit 1; }

ui: setup
	@$(BIN)/python jobs/ui.py

cluster-check: setup
	@$(BIN)/python jobs/cluster_check.py $(ARGS)

clean:
	@rm -rf $(VENV) .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	@echo "removed $(VENV) and caches; data sets and results stay in $${EEGVISION_HOME:-$$HOME/eegvision}"
