# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUT ?= build/demo
DICOM ?=
# Test files that run side by side; each worker starts its own Triton (1 GB) and PostgreSQL. Empty: one after the other.
WORKERS ?=

.PHONY: help demo test test-kills browser chaos fuzz check bench bench-ingest bench-study bench-results bench-destinations bench-queue conformance format clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(VENV)/.demo ## Run the main job: C-STORE in, results back. DICOM=<folder>[ <folder>…] OUT=<folder>
	$(BIN)/pacsnode demo --out "$(OUT)" $(foreach folder,$(DICOM),--dicom "$(folder)")

test: $(VENV)/.dev ## Run everything that a developer's machine can check; WORKERS=<number> files side by side
	$(BIN)/pytest $(if $(WORKERS),-n $(WORKERS) --dist loadfile)

test-kills: $(VENV)/.dev ## kill -9 the listener 100 times under load
	PACSNODE_KILLS=100 $(BIN)/pytest tests/integration/test_receive_kills.py

browser: $(VENV)/.dev ## Only the workstation: OHIF in Chromium shows the results; screenshots in build/browser
	$(BIN)/pytest tests/browser

chaos: $(VENV)/.dev ## kill -9 of everything, at every step too; bad networks, full disks; SEED=<number> KILLS=<number>
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS))

fuzz: $(VENV)/.dev ## 10,000 mutated associations; SEED=<number> repeats a run
	$(BIN)/python -m tests.integration.fuzz_receive $(if $(SEED),--seed $(SEED))

check: $(VENV)/.dev ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-ingest bench-study bench-results bench-destinations bench-queue ## Run the benchmarks; figures go to build/bench

bench-ingest: $(VENV)/.dev ## Receiving, against DCMTK's storescp and Orthanc in the same run
	$(BIN)/python -m tests.benchmarks.ingest

bench-study: $(VENV)/.dev ## A study from its last instance to its last result, against bare ONNX Runtime
	$(BIN)/python -m tests.benchmarks.study

bench-destinations: $(VENV)/.dev ## A healthy destination beside a dead and a slow one, against it alone
	$(BIN)/python -m tests.benchmarks.destinations

bench-results: $(VENV)/.dev ## Encoding the results of 300 slices: seconds, and bytes of the segmentation
	$(BIN)/python -m tests.benchmarks.results

bench-queue: $(VENV)/.dev ## Handing jobs over with 10,000 queued; lists and a scrape with 100,000 done
	$(BIN)/python -m tests.benchmarks.queue

conformance: $(VENV)/.dev ## Write the conformance statement's tables from the code
	$(BIN)/python -m node.conformance docs/conformance-statement.md

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove build results and the virtual environment
	rm -rf build $(VENV)

$(VENV)/.demo: pyproject.toml deploy/install-system.sh
	deploy/install-system.sh demo
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[validate]'
	touch $@

$(VENV)/.dev: pyproject.toml deploy/install-system.sh
	deploy/install-system.sh test
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,validate,dev]'
	touch $@ $(VENV)/.demo
