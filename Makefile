# The everyday jobs. `make quickstart` on a fresh machine, `make test lint` before a commit.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
WORKSPACE ?= quickstart
MINUTES ?= 12
SOAK_MINUTES ?= 10
FAULTS ?= kill full random bad gone
FUZZ_SECONDS ?= 600
RESULTS ?= gpu-results
BIN := $(VENV)/bin
CMPAGL := $(BIN)/cmpagl --workspace $(WORKSPACE)

.PHONY: help quickstart test test-slow faults soak fuzz lint bench gpu docs licences vulnerabilities clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart  an image search from nothing: draw scenes, train, evaluate, search (about 5 minutes)"
	@echo "make test        the test suite (make test-slow: the long tests)"
	@echo "make faults      kill every command at everything it does to a file, and four more faults (hours; POINTS=20 for some)"
	@echo "make soak        update indexes and ask a server with 64 clients (SOAK_MINUTES=10)"
	@echo "make fuzz        any bytes in place of files and requests, with atheris (FUZZ_SECONDS=600 for each of 9 targets)"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make bench       one JSON line per measurement (one compares with faiss-cpu)"
	@echo "make gpu         on a GPU: its tests, encoders against timm's, Swin-T distilled and trained (MINUTES=12 RESULTS=gpu-results)"
	@echo "make docs        regenerate docs/cli.md, docs/recipe.md and docs/benchmarks.md"
	@echo "make licences    list the licences of all dependencies in docs/licences.md"
	@echo "make vulnerabilities  compare installed packages with the known vulnerabilities (needs the network)"
	@echo "make clean       remove everything that these targets created"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -e '.[offline,plots]' -c constraints.txt
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -e '.[dev]' -c constraints.txt
	touch $@

# The search is over the test scenes, which the model has not seen in training.
quickstart: $(VENV)/.quickstart
	$(CMPAGL) prepare synthetic --count 800
	$(CMPAGL) train quickstart
	$(CMPAGL) evaluate
	$(CMPAGL) export --split test --out $(WORKSPACE)/test.safetensors
	$(CMPAGL) retrieve "airport near sea" -k 5 --features $(WORKSPACE)/test.safetensors \
		--gallery $(WORKSPACE)/airport-near-sea.html
	@echo "figure:  $$(ls -t $(WORKSPACE)/runs/*/curves.png | head -n 1)"

# Each parallel worker computes on one thread, which tests/conftest.py sets.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# One line per command and kind of fault on stderr, all results in build/faults.json (docs/reliability.md).
faults: $(VENV)/.dev
	mkdir -p build
	cc -O1 -Wall -shared -fPIC -o build/counter.so tests/faults/counter.c -ldl
	LD_PRELOAD=$(CURDIR)/build/counter.so PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
		$(BIN)/python tests/faults/sweep.py build/counter.so build/faults.json \
		$(FAULTS:%=--fault %) $(if $(POINTS),--points $(POINTS))

# 64 clients at a server, some of them malformed, while indexes are updated; results in build/soak.json.
soak: $(VENV)/.dev
	mkdir -p build
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(BIN)/python tests/soak/soak.py build/soak.json --minutes $(SOAK_MINUTES)

# FUZZ_SECONDS for each target; results in build/fuzz.json, what was found in build/findings.
fuzz: $(VENV)/.dev
	mkdir -p build
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install -q 'atheris>=3.0'
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/fuzz/fuzz.py build/fuzz.json --seconds $(FUZZ_SECONDS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Results alone on stdout: `make bench > docs/results/bench-MACHINE.jsonl`. All are run, then the first miss fails the target.
bench: $(VENV)/.dev
	@$(BIN)/python -c 'import faiss' 2>/dev/null || $(BIN)/pip install -q -e '.[bench]' -c constraints.txt >&2 || true
	@missed=; for file in benchmarks/[!_]*.py; do echo "$$file" >&2; $(BIN)/python $$file || missed="$$missed $$file"; done; \
	if [ -n "$$missed" ]; then echo "missed:$$missed" >&2; exit 1; fi

# With the environment that is there, since torch for CUDA is the user's: nothing is installed. UCM and RSICD are those of
# CMPAGL_WORKSPACE, or of this folder. An interrupted or partial run goes on when it is started again.
gpu:
	@PYTHONPATH=. $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) gpu/run.py --minutes $(MINUTES) --results $(RESULTS)

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

licences: $(VENV)/.dev
	$(BIN)/python docs/licences.py

# Asks the vulnerability database of PyPI about every installed package.
vulnerabilities: $(VENV)/.dev
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --local --skip-editable

clean:
	rm -rf $(VENV) $(WORKSPACE) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
