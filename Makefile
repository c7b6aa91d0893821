# `make help` lists the targets. Everything is installed in .venv, nothing outside of it.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
PINNED := $(PY) tools/setup/pinned.py
DONE := $(VENV)/done
hash = $(shell printf '%s' '$(1)' | cksum | cut -d' ' -f1)
pin = $(shell sed -n 's/^\($(1)==[^; ]*\).*/\1/p' constraints.txt)

# TORCH is any requirement that pip takes, options included. Once given, it holds for later runs.
TORCH_PIN := $(call pin,torch)
ifeq ($(origin TORCH),undefined)
TORCH := $(or $(shell cat $(VENV)/torch-requirement 2>/dev/null),$(TORCH_PIN))
endif

# MMCV is lite, or compiled: built from source. Once given, it holds for later runs. Before there was a choice it was built.
ifeq ($(origin MMCV),undefined)
MMCV := $(or $(shell cat $(VENV)/mmcv-choice 2>/dev/null),$(if $(wildcard $(DONE)/mmcv-*),compiled,lite))
endif
MMCV_PIN := $(call pin,mmcv)
LITE_PIN := $(call pin,mmcv-lite)

# One empty file for each finished step. A hash in a name stands for the exact requirements.
TORCH_DONE := $(DONE)/torch-$(call hash,$(TORCH))
ifeq ($(MMCV),lite)
MMCV_DONE := $(DONE)/lite-$(call hash,$(LITE_PIN))
else ifeq ($(MMCV),compiled)
MMCV_DONE := $(DONE)/mmcv-$(call hash,$(MMCV_PIN) $(TORCH))
COMPILER := --compiler
else
$(error MMCV is lite or compiled, not "$(MMCV)")
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo run-demo test test-all lint benchmark clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo '  PYTHON=python3.12  another Python for .venv;  TORCH="torch==... --index-url ..."  another torch'
	@echo '  MMCV=compiled  mmcv built from source, with its compiled operators;  VENV=.venv-2  another environment'

setup: $(DONE)/checked $(DONE)/adapters ## make .venv: torch, mmcv-lite, mmdet, mmsegmentation, this package

$(DONE)/venv:
	@command -v $(PYTHON) >/dev/null || { echo 'error: there is no $(PYTHON): apt-get install python3 python3-venv' >&2; exit 1; }
	@$(PYTHON) tools/setup/check_host.py $(COMPILER)
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(TORCH_DONE): | $(DONE)/venv
	@! ls $(DONE)/torch-* >/dev/null 2>&1 || $(PIP) uninstall --yes torch # otherwise another build of the same version stays
ifeq ($(TORCH),$(TORCH_PIN))
	@echo 'Installing $(TORCH)'
	@$(PINNED) torch --as-found
	@$(PINNED) needs
	@$(PINNED) cuda --wanted-by torch
	@rm -f $(VENV)/torch-requirement
else
	$(PY) -m pip --disable-pip-version-check install $(TORCH)
	@echo '$(TORCH)' > $(VENV)/torch-requirement
endif
	@! ls $(DONE)/mmcv-* >/dev/null 2>&1 || echo compiled > $(VENV)/mmcv-choice # with the files below it would be forgotten
	@rm -f $(DONE)/torch-* $(DONE)/mmcv-* && touch $@

# What both kinds of mmcv need, and all others up to the peers. The file is complete, so pip resolves no dependencies.
$(DONE)/requirements: constraints.txt $(TORCH_DONE)
	@echo 'Installing what constraints.txt lists'
	@$(PINNED) needs rest
	@$(PINNED) kernels --unless-wanted-by torch
	@touch $@

# The choice is kept before anything is changed: after an interruption the next run goes on with it.
$(MMCV_DONE): | $(DONE)/requirements
	@$(PY) tools/setup/check_host.py $(COMPILER)
	@echo '$(MMCV)' > $(VENV)/mmcv-choice && rm -f $(DONE)/mmcv-* $(DONE)/lite-*
	@$(PY) tools/setup/leave_mmcv.py --for '$(MMCV)'
ifeq ($(MMCV),lite)
	@echo 'Installing $(LITE_PIN)'
	@$(PINNED) lite
else
	@$(PINNED) build
	@$(PY) tools/setup/build_mmcv.py '$(MMCV_PIN)' $(VENV)/mmcv-build.log $(if $(filter-out $(TORCH_PIN),$(TORCH)),--no-cache)
endif
	@touch $@

$(DONE)/package: pyproject.toml $(DONE)/requirements $(MMCV_DONE)
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DONE)/checked: $(DONE)/package
ifeq ($(MMCV),lite)
	@$(PY) -m mm_vitbackbones ops --install
endif
	@$(PY) -m mm_vitbackbones doctor
	@touch $@

$(DONE)/adapters: constraints.txt | $(DONE)/package
	@echo 'Installing peft, for the tests of adapters, into $(VENV)/adapters'
	@$(PINNED) adapters --target $(VENV)/adapters
	@touch $@

$(DONE)/peers: constraints.txt $(DONE)/package
	@echo 'Installing timm, transformers and peft, to compare with, into $(VENV)/peers'
	@$(PINNED) adapters peers --target $(VENV)/peers
	@touch $@

$(DONE)/export: constraints.txt | $(DONE)/package
	@echo 'Installing onnx, onnxscript and onnxruntime, for exported files, into $(VENV)/export'
	@$(PINNED) export --target $(VENV)/export
	@touch $@

demo: setup ## detection on photographs of trees, then segmentation of drawn scenes: train, evaluate, draw
	$(PY) tools/prepare_data.py trees
	$(PY) tools/prepare_data.py mini
	@$(MAKE) --no-print-directory run-demo CONFIG=retinanet_pvt_v2_b0_trees
	@$(MAKE) --no-print-directory run-demo CONFIG=segformer_mit_b0_mini

run-demo:
	@set -eu; out=work_dirs/demo-$(CONFIG)-$$(date +%Y%m%d-%H%M%S); config=configs/$(CONFIG).py; set -x; \
	$(PY) tools/train.py $$config --work-dir $$out; \
	$(PY) tools/test.py $$config "$$(cat $$out/last_checkpoint)" --work-dir $$out/test --show-dir $$out/drawings --analyze; \
	set +x; echo; echo "Drawings, ground truth next to predictions: $$out/drawings"; \
	echo "Curves of losses and metrics: $$out/curves.png"; \
	echo "What the model gets wrong, for a browser: $$(ls $$out/test/*/analysis/analysis.html)"; echo

# A process for each core; the tests of an xdist_group stay in one of them.
PARALLEL := -n auto --maxprocesses 8 --dist loadgroup

# They build timm's and transformers' networks in their own process.
OF_PEERS := tests/backbones/test_peer_counts.py tests/backbones/test_peer_memory.py

test: setup ## run the tests, except those that take long or need a GPU
	$(PY) -m pytest $(PARALLEL)

test-all: setup $(DONE)/peers $(DONE)/export lint ## run all tests, the linter and the type checker
	PYTHONPATH=$(VENV)/export $(PY) -m pytest $(PARALLEL) -m '' $(addprefix --ignore=,$(OF_PEERS))
	PYTHONPATH=$(VENV)/peers $(PY) -m pytest -m '' $(OF_PEERS)

lint: setup ## ruff, mypy and codespell
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m codespell_lib

benchmark: setup $(DONE)/peers ## time and memory against mmdet, mmseg, timm and transformers; takes an hour or more
	PYTHONPATH=$(VENV)/peers $(PY) tools/benchmark.py

clean: ## remove caches and builds; .venv, data and work_dirs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find mm_vitbackbones configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
