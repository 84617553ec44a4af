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

# Many tests wait for a process or a server: one more worker than cores, at most four.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$(( cores < 4 ? cores + 1 : 4 )))

.PHONY: help install repro test faults fuzz mutants lint format ui server bench bench-gpu routing-study year clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(INSTALLED) ## Create .venv and install Textmill with pinned packages

repro: $(INSTALLED) ## Rebuild what changed, from raw text to the registered model
	@# DVC wants to be told that there is no git, as after the download of an archive.
	@at=$$PWD; until [ -e "$$at/.git" ] || [ "$$at" = / ]; do at=$$(dirname "$$at"); done; \
	if [ ! -e "$$at/.git" ]; then dvc config --local core.no_scm true; \
	elif grep -qs no_scm .dvc/config.local; then dvc config --local --unset core.no_scm; fi
	@dvc repro || { status=$$?; dvc checkout --quiet || true; exit $$status; }
	@textmill summary

test: $(INSTALLED_TEST) ## Run all tests, slow ones too; fail if over a tenth of src/ is not executed
	@coverage erase
	@coverage run -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --strict-skips --durations=40
	@coverage combine --quiet
	@printf 'Percentage of the lines of src/ that were executed: '; coverage report --format=total

faults: $(INSTALLED_TEST) ## Plant every fault at full length, into docs/reliability.md
	@rm -f .faults.jsonl
	@TEXTMILL_NIGHTLY=1 TEXTMILL_FAULTS_REPORT=$(CURDIR)/.faults.jsonl pytest -m fault --timeout 3600 --strict-skips
	@python -m bench.reliability .faults.jsonl

mutants: $(INSTALLED_TEST) ## Change gate, bootstrap, lock, lineage and resume; list changes that no test notices
	@python -m bench.mutants

lint: $(INSTALLED_TEST) ## Check style, types, words, deploy/, insecure code and known vulnerabilities
	@ruff check .
	@ruff format --check .
	@mypy
	@python tools/words.py
	@python tools/deployment.py
	@bandit --quiet --recursive src --configfile pyproject.toml --severity-level medium
	@python tools/audit.py

fuzz: $(INSTALLED_TEST) ## Try many times as many random inputs and requests as `make test`, others in each run
	@TEXTMILL_NIGHTLY=1 pytest -n auto --maxprocesses 4 --dist worksteal --timeout 0 tests/code/test_fuzz_inputs.py tests/pipeline/test_fuzz_serving.py

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

year: $(INSTALLED) ## Live twelve months of changing data in a temporary copy, into docs/year.md
	@python -m bench.year

clean: ## Remove .venv and the pipeline's outputs; tracked runs and DVC's cache stay
	@rm -rf $(VENV) data/resolved.yaml data/code.yaml data/raw data/pretrained data/prepared data/trained data/evaluation data/exported data/registered

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found. Install one, or run make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt tools/textmill_environment.py
	@echo "Installing Textmill and its pinned packages into $(VENV) ..."
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@# Also for `mlflow` and `dvc` when they are called directly: no telemetry, and a user without a name or a home.
	@python -c "import shutil, sysconfig, pathlib; site = pathlib.Path(sysconfig.get_paths()['purelib']); shutil.copy('tools/textmill_environment.py', site); (site / 'textmill_environment.pth').write_text('import textmill_environment\n')"
	@touch $@

$(INSTALLED_SERVER): $(INSTALLED)
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[server]'
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[server,test]'
	@touch $@
