# make demo and make test set themselves up; a second run finds .venv as it is.
PYTHON ?= python3.11
EXTRAS ?= examples,test
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all lint format bench docs clean

demo: $(READY)  ## a minute: a table and a picture in outputs/
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.start.demo

test: $(READY)  ## what CI runs, by two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: $(READY)  ## with the slow checks
	$(BIN)/python -m pytest -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## ratios against hand-written PyTorch and stock Pyro, one table
	$(BIN)/python -m tests.benchmarks

docs: $(READY)  ## pages and reference, into outputs/docs
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -q -b html .docs outputs/docs

clean:
	rm -rf .venv outputs build *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $(READY)
