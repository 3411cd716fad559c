# Two commands set everything up: `make demo` and `make test`.  Both create .venv and install from pyproject.toml.
PYTHON ?= python3
# Processes that share the tests, one thread each.
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install check test demo clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[offline,dev]'
	touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=scripts $(BIN)/mypy -p benchmarks -p field -p peers
	$(BIN)/python -m pytest -q tests/test_rules.py

# Bytecode is kept whatever the environment says: each process would compile all modules, checks of types and all, anew.
check test: export PYTHONDONTWRITEBYTECODE =

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

clean:
	rm -rf demo .mypy_cache .pytest_cache .ruff_cache
