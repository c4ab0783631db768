# One target a result. `make help` lists them; MODEL, SEED and ARGS go to the run.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= gpt2-medium
SEED ?= 1
ARGS ?=
WORKERS ?= 2

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)

DATASETS := $(sort $(notdir $(basename $(wildcard configs/dataset/*.yaml))))
METHODS := $(sort $(notdir $(basename $(wildcard configs/method/*.yaml))))
TABLES := $(sort $(notdir $(basename $(wildcard configs/table/*.yaml))))
MODELS := $(sort $(notdir $(basename $(wildcard configs/model/*.yaml))))

.DEFAULT_GOAL := help
.PHONY: help setup demo tables report latency test check lint types

help:
	@echo 'make setup    a virtual environment in $(VENV) with the pinned versions'
	@echo 'make demo     the embedded model on the embedded data, every stage; its table, and a page to look at'
	@echo 'make tables   every table from the records that there are, into results/tables/'
	@echo 'make report   a page of all that there is, results/report/index.html'
	@echo 'make latency  time of methods beside their multiply-accumulates, as LoRA Table 1 and Figure 5; for a GPU'
	@echo 'make test     the tests, WORKERS=$(WORKERS) files at a time (at most 10 minutes on 2 cores)'
	@echo 'make check    lint, types, and the slow tests and those that need reference material'
	@echo
	@echo 'make DATASET-METHOD[-rRANK] [MODEL=...] [SEED=...] [ARGS="KEY=VALUE ..."]     one cell, as in'
	@echo '  make e2e-lora-r4'
	@echo '  make dart-lora-r8 MODEL=gpt2-large SEED=2'
	@echo '  make webnlg-ft ARGS="data.root=FOLDER model.path=FOLDER"'
	@echo
	@echo 'make table-NAME [ARGS="KEY=VALUE ..."]     the missing cells of a table, then the table, as in'
	@echo '  make table-loda-1'
	@echo '  make table-lora-3 ARGS="hydra/launcher=parallel hydra.launcher.n_jobs=4"'
	@echo
	@echo 'tables    $(TABLES)'
	@echo 'datasets  $(DATASETS)'
	@echo 'methods   $(METHODS)'
	@echo 'models    $(MODELS) (default: $(MODEL))'

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'lodarepro needs Python 3.11 or 3.12; set PYTHON=...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/lodarepro table mini --run --seeds 1 results.root=demo hydra/launcher=parallel $(ARGS)
	@$(BIN)/lodarepro analyze errors $$(dirname demo/runs/*/record.json) > /dev/null
	@$(BIN)/lodarepro analyze amplification $$(dirname demo/runs/*_loda-*/record.json demo/runs/*_lora-*/record.json) > /dev/null
	@$(BIN)/lodarepro report mini --seeds 1 results.root=demo $(filter-out -%,$(ARGS))

tables: setup
	@$(BIN)/lodarepro table $(TABLES) $(ARGS)

report: setup
	@$(BIN)/lodarepro report $(ARGS)

latency: setup
	@$(BIN)/lodarepro analyze latency --paper model=$(MODEL) $(ARGS)

table-%: setup
	@$(BIN)/lodarepro table $* --run $(ARGS)

test: setup
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m 'not slow and not browser and not needs_mount and not gpu'

check: setup lint types
	$(BIN)/pytest -m 'slow or browser or needs_mount or gpu'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# DATASET-METHOD[-rRANK]: the rank is what follows the last -r, if that is a number.
cell = $(shell echo '$(1)' | sed -E 's/^(.*)-r([0-9]+)$$/method=\1 method.rank=\2/; t; s/^/method=/')

define cells_of
$(1)-%: setup
	@$$(BIN)/lodarepro run dataset=$(1) model=$$(MODEL) $$(call cell,$$*) seed=$$(SEED) $$(ARGS)
endef
$(foreach dataset,$(DATASETS),$(eval $(call cells_of,$(dataset))))
