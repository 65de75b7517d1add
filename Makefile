# Two commands: `make demo` and `make test`. `make help` lists the rest.
SHELL := bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
AREAS := $(wildcard tests/services/*/)
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo test check unit flows services e2e image drill up down ui pools schema clean

help: ## list the verbs
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/ready ## from recipe to a gated, served model on this machine
	@$(PY) -m flows.release recipes/quickstart.yaml

test: check ## everything that can run on this machine; the longest areas begin first
	@.ci/areas tests/e2e tests/services/training tests/flows $(filter-out tests/services/training/,$(AREAS)) tests/unit

check: $(VENV)/dev ## lint, types, layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

unit: $(VENV)/dev ## no network, no Prefect, seconds
	$(PY) -m pytest tests/unit -q

flows: $(VENV)/dev ## a real Prefect server
	$(PY) -m pytest tests/flows -q

services: $(VENV)/dev ## real servers, each skipped only with a printed reason
	@.ci/areas $(AREAS)

e2e: $(VENV)/dev ## the quickstart, killed and rerun, canaried and rolled back
	$(PY) -m pytest tests/e2e -q

image: $(VENV)/dev ## build the Dockerfile's cpu target on a Debian made here, and run it: root, Docker, minutes
	TRAINYARD_TEST_BASE_IMAGE=$${TRAINYARD_TEST_BASE_IMAGE:-debootstrap} $(PY) -m pytest tests/e2e/test_image.py -q

drill: $(VENV)/dev ## roll out seven candidates, five of them bad, under live traffic
	@$(PY) -m bench.drill

up: $(VENV)/ready ## Prefect server, workers, pools and deployments on this machine
	@$(PY) -m deployments.up

down: $(VENV)/ready ## end exactly what `make up` and `make demo` left running
	@$(PY) -m deployments.down

ui: $(VENV)/ready ## Prefect's UI on the runs of this folder, until Ctrl-C
	@PREFECT_HOME=$(CURDIR)/.trainyard/prefect $(VENV)/bin/prefect server start

pools: $(VENV)/ready ## create or update the work pools of the server at PREFECT_API_URL
	@$(PY) -m deployments.pools

schema: $(VENV)/ready ## write the recipe's JSON Schema
	@$(PY) -m trainyard schema > recipes/recipe.schema.json

clean: down ## remove the environment; models and runs in .trainyard stay
	rm -rf $(VENV)

# torch first and alone: the rest must not draw another build of it. xformers and torchvision are
# left out: beside a CPU build of torch they stop Unsloth from importing.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(f"Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: make PYTHON=python3.12")' || exit 2
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV): several minutes and about 4 GB, once"
	@$(PIP) torch
	@$(PIP) --editable ".[train,unsloth,wandb,signing,docker,kubernetes]"
	@$(PIP) --no-deps unsloth unsloth_zoo
	@touch $@

$(VENV)/dev: $(VENV)/ready
	@$(PIP) --editable ".[dev]"
	@touch $@
