# `make` prints the verbs. Each makes the environment first if it is missing, and never twice.
# EXP   experiments and overrides, as in EXP="rfnet medmap"      DATA  the data set's folder
# RUN   a run folder (evaluate: or the newest of EXP)            ARGS  more words for the command
# PYTHON  what makes the environment, as in `make setup PYTHON=python3.12`
# CONSTRAINTS  which versions: constraints.txt (torch alone is pinned), -lowest or -newest
.DEFAULT_GOAL := help
.PHONY: help setup check format test test-all test-gpu docs demo phantom prepare train evaluate predict view compare \
	sweep agent study bench clean

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
BTS := $(BIN)/bts
EXP ?= a2fseg
DATA ?=
RUN ?=
ARGS ?=
empty :=
space := $(empty) $(empty)
ROOT = $(if $(DATA),'data.root=$(DATA)')
# A run is named by the experiments without the overrides.
OVERRIDES = $(foreach word,$(EXP),$(if $(findstring =,$(word)),$(word)))
NAME = $(subst $(space),+,$(strip $(filter-out $(OVERRIDES),$(EXP))))

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

# A verb that cannot do without a variable says so before it makes an environment for minutes.
need-%:
	@$(if $($*),,$(error $* is empty; give it, as in: make $(MAKECMDGOALS) $(EXAMPLE)))
prepare: EXAMPLE := DATA=/data/BraTS2020
predict: EXAMPLE := RUN=runs/a2fseg/DATE ARGS="--t1c A.nii.gz --out seg.nii.gz"
view: EXAMPLE := RUN=runs/demo/DATE
compare: EXAMPLE := RUN="runs/a2fseg/DATE runs/rfnet/DATE"
agent: EXAMPLE := SWEEP=entity/project/id

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13; name one, as in: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "making $(VENV): PyTorch and what else pyproject.toml names; minutes, once, mostly download"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable .
	@touch $@

# What runs needs no linters, peers or notebook kernel; the verbs of contributors do.
$(VENV)/.dev: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

setup: $(VENV)/.dev ## make the environment in .venv, contributors' tools too
	@echo "ready: source $(BIN)/activate, or go on with make; make demo shows all"

check: $(VENV)/.dev ## lint, format and types, without changing a file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## lint and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.dev ## the tests of every commit, minutes
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.dev ## these and the slow ones
	$(BIN)/python -m pytest -n 2

test-gpu: $(VENV)/.dev ## what must hold on a GPU: minutes on a card (BTS_GPU_TWIN=cpu: on the processor)
	$(BIN)/python -m pytest -m gpu tests/gpu

docs: $(VENV)/.docs ## build the site in site/ from docs/
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[docs]'
	@touch $@

demo: $(VENV)/.ready ## phantom, training, 15 subsets and report, in minutes, without data or GPU
	$(BTS) demo $(ARGS)

phantom: $(VENV)/.ready ## make a phantom data set: DATA=folder
	$(BTS) phantom $(or $(DATA),scratch) $(ARGS)

prepare: need-DATA $(VENV)/.ready ## check and cache a data set: DATA=folder
	$(BTS) prepare '$(DATA)' $(ARGS)

train: $(VENV)/.ready ## train EXP on DATA, or continue RUN
	$(BTS) train $(or $(RUN),$(EXP)) $(ROOT) $(ARGS)

evaluate: $(VENV)/.ready ## score all 15 subsets: RUN, or the newest run of EXP
	$(BTS) evaluate $(or $(RUN),$(NAME) $(OVERRIDES)) $(ROOT) $(ARGS)

predict: need-RUN $(VENV)/.ready ## segment a patient: RUN=folder ARGS="--t1c A.nii.gz --out seg.nii.gz"
	$(BTS) predict $(RUN) $(ARGS)

view: need-RUN $(VENV)/.view ## see patients in the browser, and switch modalities off: RUN=folder
	$(BTS) view $(RUN) $(ARGS)

$(VENV)/.view: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[view]'
	@touch $@

compare: need-RUN $(VENV)/.ready ## compare evaluated runs: RUN="runs/a/1 runs/b/1"
	$(BTS) compare $(RUN) $(ARGS)

sweep: $(VENV)/.ready ## a sweep over EXP; LOCAL=1 without an account, AGENTS=4
	$(BTS) sweep $(EXP) $(ROOT) $(if $(filter-out 0,$(LOCAL)),--local) $(if $(AGENTS),--agents $(AGENTS)) $(ARGS)

agent: need-SWEEP $(VENV)/.ready ## join a sweep from another machine: SWEEP=entity/project/id
	$(BTS) agent $(SWEEP) $(ARGS)

study: $(VENV)/.ready ## experiments × seeds × folds: EXP="rfnet a2fseg" ARGS="--seeds 3"
	$(BTS) study "$(EXP)" $(ROOT) $(ARGS)

bench: $(VENV)/.ready ## measure against the peers and write docs/benchmarks.md
	$(BTS) bench $(ARGS)

clean: ## remove the environments and what tools left; data and runs stay
	rm -rf $(VENV) .venv-bench build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find bts_lightning tests -name __pycache__ -type d -prune -exec rm -rf {} +
