# Everything happens in .venv; `make PYTHON=python3.12` makes it with another Python.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up test test-all faults runbooks gpu-check fuzz audit check check-deploy dashboard manifests \
  monitoring-check try-units format lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Newer than what it was installed from: nothing to do.
STAMP := $(VENV)/.installed
# What installs and builds is locked, too; `stt models pull` drives pip as well.
TOOLCHAIN := pip hatchling editables

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "make %-13s %s\n", $$1, $$2}'

demo: $(STAMP)  ## transcribe real speech through both tiers, and show what happened
	@echo "==> Demo"
	@$(BIN)/stt demo

up: $(STAMP)  ## run both tiers until Ctrl-C
	@exec $(BIN)/stt up

define PULL_WEIGHTS
@echo "==> Weights of Whisper base and tiny.en, which some tests use"
@$(BIN)/stt models pull base tiny.en || echo "==> Going on without: the tests that need them are skipped."
endef

# ARGS="-k slots" runs the tests that have this in their names.
test: $(STAMP)  ## run the tests that start no processes and need no engines: 4 minutes on 2 cores
	$(PULL_WEIGHTS)
	@echo "==> Tests: about 4 minutes on 2 cores. make test-all runs the others, too."
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not process and not engines" $(ARGS)

test-all: $(STAMP)  ## run every test, two files at a time: 15 minutes on 2 cores
	$(PULL_WEIGHTS)
	@echo "==> All tests: about 15 minutes on 2 cores"
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(if $(ARGS),$(ARGS),-m "not alone")
	@$(if $(ARGS),,echo "==> Those that need the machine for themselves"; $(BIN)/python -m pytest -m alone)

fuzz: $(STAMP)  ## send N=10000 spoilt audio files through a tier; SEED=1 makes the same ones
	@$(BIN)/python tests/fuzz.py --count $(or $(N),10000) $(if $(SEED),--seed $(SEED))

audit: $(STAMP)  ## ask for known holes in what is locked; SERVICE=osv asks another one
	@$(BIN)/python tests/audit.py $(if $(SERVICE),--service $(SERVICE))

# ARGS="--short" takes two minutes, ARGS="--only kill" one row, ARGS=--help says what else there is.
faults: $(STAMP)  ## try what is promised under overload, faults and hostile input
	@echo "==> Faults"
	@PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

# ARGS="--only breaker-open" follows one page.
runbooks: $(STAMP)  ## make the fault of each page in docs/runbooks, and follow the page out of it
	@echo "==> Runbooks"
	@PYTHONPATH=tests $(BIN)/python -m runbooks $(ARGS)

# Wheels that came along (ARGS="--wheels FOLDER" or "--parts FOLDER") are installed beside .venv, which needs a
# network. ARGS="--device cpu --short" tries the check itself.
gpu-check: $(if $(findstring --wheels,$(ARGS))$(findstring --parts,$(ARGS)),,$(STAMP))  ## check the engine on this machine's GPU, in ten minutes
	@echo "==> GPU check"
	@PYTHONPATH=tests $(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)) -m gpu_check $(ARGS)

check: $(STAMP)  ## lint, check the format and the types
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy

check-deploy: $(STAMP)  ## check what deploys the service with the engines that will read it
	@echo "==> The deployment's files"
	@PYTHONPATH=tests $(BIN)/python -m deploy $(ARGS)

manifests: $(STAMP)  ## render deploy/kubernetes from the chart, and its schema from the settings
	@PYTHONPATH=tests $(BIN)/python -m deploy.kubernetes

# It takes what `make check-deploy` installs.
dashboard:  ## draw the Grafana dashboard anew
	@.engines/python/bin/python -B deploy/grafana/dashboard.py > .engines/dashboard.json
	@mv .engines/dashboard.json deploy/grafana/dashboards/stt-cascade.json

monitoring-check: $(STAMP)  ## see every panel's data and the alerts in a Prometheus on real tiers
	@echo "==> Monitoring"
	@PYTHONPATH=tests $(BIN)/python -m deploy.live $(ARGS)

try-units: $(STAMP)  ## run the units on hosts that systemd has booted, as docs/deploy.md tells
	@echo "==> Units"
	@$(BIN)/python -m pytest tests/deploy/try_units.py $(ARGS)

format: $(STAMP)  ## format the code, mend what ruff can mend
	@echo "==> ruff"
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# Other indexes of this machine must not decide what everybody installs.
COMPILE = env -u UV_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_DEFAULT_INDEX -u UV_FIND_LINKS \
  $(BIN)/uv pip compile --quiet --no-config --no-python-downloads --universal --python-version 3.11 \
  --generate-hashes --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

# The images' packages are some of those that the tests run with: the same versions, the same files.
IMAGE_PACKAGES := --extra server --extra tracing --constraint requirements.txt pyproject.toml -
lock: $(STAMP)  ## write requirements*.txt anew; UPGRADE=1 takes newer versions
	@echo "==> Locking pyproject.toml into requirements.txt"
	@printf '%s\n' $(TOOLCHAIN) | $(COMPILE) --extra dev pyproject.toml - -o requirements.txt
	@echo "==> Of these, what the images have: requirements-cpu.txt, -gpu.txt, and to build them -build.txt"
	@echo pip | $(COMPILE) $(IMAGE_PACKAGES) -o requirements-cpu.txt
	@echo pip | $(COMPILE) --extra gpu $(IMAGE_PACKAGES) -o requirements-gpu.txt
	@printf '%s\n' pip hatchling | $(COMPILE) --constraint requirements.txt - -o requirements-build.txt

clean:  ## remove .venv and all that tools left; models/ stays
	@echo "==> Removing .venv, caches and builds"
	@rm -rf $(VENV) dist .engines .gpu-check .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests -name __pycache__ -prune -exec rm -rf {} +

# pip names each package as it comes to it, so that nobody waits in the dark.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is older than Python 3.11: name a newer one, for example make PYTHON=python3.12")'
	@echo "==> Installing into $(VENV); the first time, some 200 MB are downloaded"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --require-hashes -r requirements.txt \
	  | awk '/^Collecting /{printf "%s ", $$2; fflush()} /^Installing collected/{printf "\n==> Unpacking them\n"; fflush()}'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

include deploy/docker.mk
