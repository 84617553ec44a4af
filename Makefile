# Textmill: `make repro` rebuilds everything, `make test` tests everything, `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# Stages are run by DVC as `python -m ...`, so the environment's python must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1

# The first interpreter that is 3.11 or 3.12; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for candidate in python3 python3.12 python3.11 python; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& { echo "$$candidate"; break; }; done)

INSTALLED := $(VENV)/.installed
INSTALLED_SERVER := $(VENV)/.installed-server
INSTALLED_TEST := $(VENV)/.installed-test

.PHONY: help install repro test faults mutants lint format ui server bench bench-gpu routing-study clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(INSTALLED) ## Create .venv and install Textmill with pinned packages

repro: $(INSTALLED) ## Rebuild what changed, from raw text to the registered model
	@dvc repro || { status=$$?; dvc checkout --quiet || true; exit $$status; }
	@textmill summary

test: $(INSTALLED_TEST) ## Run all tests, slow ones too
	@python tools/executed_lines.py pytest -n auto --maxprocesses 4 --dist loadfile --strict-skips

faults: $(INSTALLED_TEST) ## Plant every fault at full length, into docs/reliability.md
	@rm -f .faults.jsonl
	@TEXTMILL_NIGHTLY=1 TEXTMILL_FAULTS_REPORT=$(CURDIR)/.faults.jsonl pytest -m fault --timeout 3600 --strict-skips
	@python -m bench.reliability .faults.jsonl

mutants: $(INSTALLED_TEST) ## Change gate, bootstrap, lock, lineage and resume; list changes that no test notices
	@python -m bench.mutants

lint: $(INSTALLED_TEST) ## Check style, types and words
	@ruff check .
	@ruff format --check .
	@mypy
	@python tools/words.py

format: $(INSTALLED_TEST) ## Format the code
	@ruff check --fix .
	@ruff format .

ui: $(INSTALLED) ## Compare runs in the MLflow UI on http://127.0.0.1:5000
	@mlflow ui

server: $(INSTALLED_SERVER) ## Run MLflow for a team: PostgreSQL, users and passwords (docs/team-server.md)
	@exec textmill server

bench: $(INSTALLED_TEST) ## Compare Textmill with its alternatives, into docs/benchmarks.md
	@python -m bench

bench-gpu: $(INSTALLED) ## Measure language models on a GPU, into docs/benchmarks.md
	@python -m bench gpu

routing-study: $(INSTALLED_TEST) ## Compare all routers with the dense model, into docs/routing.md
	@python -m bench.routing_study

clean: ## Remove .venv and the pipeline's outputs; tracked runs and DVC's cache stay
	@rm -rf $(VENV) data/resolved.yaml data/code.yaml data/raw data/pretrained data/prepared data/trained data/evaluation data/exported data/registered

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found. Install one, or run make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing Textmill and its pinned packages into $(VENV) ..."
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@# `mlflow` and `dvc` send no telemetry in this environment, even when they are called directly.
	@python -c "import sysconfig, pathlib; pathlib.Path(sysconfig.get_paths()['purelib'], 'textmill_no_telemetry.pth').write_text('import os; os.environ.setdefault(\"MLFLOW_DISABLE_TELEMETRY\", \"true\"); os.environ.setdefault(\"DVC_NO_ANALYTICS\", \"1\")\n')"
	@touch $@

$(INSTALLED_SERVER): $(INSTALLED)
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[server]'
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[server,test]'
	@touch $@
