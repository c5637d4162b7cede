# Everything a newcomer or a contributor runs. `make demo` works on a bare machine with Python 3.11+ and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two workers and one thread each: figures and bytes do not depend on the number of cores. Files go to the workers in
# the order of tests/conftest.py, the long ones first.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
TEST_ARGS ?= $(WORKERS) -m "not exhaustive"
OUT ?= demo-artifact
LLAVA ?= demo-llava

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup setup-test demo demo-model demo-llava test test-all kernels check fuzz bench clean

help:
	@echo 'make setup       make $(VENV) and install compressor into it'
	@echo 'make demo        compress, export and verify the embedded model; leaves $(OUT)/'
	@echo 'make demo-model  train the embedded model again (about ten minutes, one CPU thread)'
	@echo 'make demo-llava  train a small LLaVA model on generated pictures and questions; leaves $(LLAVA)/'
	@echo 'make test        install the test extras and run the tests, on one model family of each kind'
	@echo 'make test-all    the same on all families and variants'
	@echo 'make kernels     mypy and tests of the native operators in kernels/ (about a minute)'
	@echo 'make check       ruff, mypy --strict, layer order, tests: what a change must pass'
	@echo 'make fuzz        read 10 000 altered recipes, models, data and artifacts (about ten minutes)'
	@echo 'make bench       measure the figures that README and recipes state'
	@echo 'make clean       remove caches and what the demo left behind'

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	@touch $@

setup: $(VENV)/.installed

setup-test: $(VENV)/.installed-test

demo: setup
	OMP_NUM_THREADS=1 $(BIN)/compressor run recipes/demo/llama-ffn-30.yaml -o $(OUT)

demo-model: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m compressor.demo.train

demo-llava: setup
	OMP_NUM_THREADS=2 $(BIN)/python -m compressor.demo.train_llava --out $(LLAVA)

test: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

test-all: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

build/typings:
	mkdir -p $@/compressor
	ln -sfn ../../../exporters $@/compressor/exporters

kernels: setup-test
	cd kernels && $(abspath $(BIN))/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q kernels/tests

check: setup-test build/typings
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

fuzz: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

bench: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(OUT) $(OUT).rejected .$(OUT).work
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
