# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Most tests wait for processes and sockets, so there are three at a time for each core. To see one at work:
# make test PYTEST_PARALLEL= PYTEST_ARGS="-s -k name"
PYTEST_PARALLEL ?= -n $(shell expr 3 \* $$(getconf _NPROCESSORS_ONLN)) --maxprocesses 8 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test test-full check bench docs clean

help:
	@echo "make demo        analyse the standard library's sources: threads, coroutines, a process pool, a worker service"
	@echo "make test        run every test that this machine can run, and name those it cannot"
	@echo "make test-full   the same, with ten times the fuzzing, restarts and jobs"
	@echo "make check       ruff, mypy --strict, pyright, import contracts"
	@echo "make bench       the benchmarks"
	@echo "make docs        build the documentation, check links, spelling and how readable the guides are"
	@echo "make clean       remove .venv and what the other targets built"

demo: $(VENV)/.with-worker
	$(PY) -m examples.stdlib_report

test: $(VENV)/.with-test,dev
	$(PY) -m pytest $(PYTEST_PARALLEL) --durations=25 $(PYTEST_ARGS)

test-full:
	WOVE_TEST_VOLUME=full $(MAKE) --no-print-directory test

check: $(VENV)/.with-test,dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports --no-logo

bench: $(VENV)/.with-test
	$(PY) -m benchmarks

docs: $(VENV)/.with-test,docs
	$(PY) -m sphinx -q -W --keep-going -E -b html docs build/docs
	$(VENV)/bin/codespell --ignore-words-list redict,thirdparty --skip '*.png,*.svg' README.md CHANGELOG.md docs examples
	$(PY) docs/_ext/readability.py > build/readability.txt || { cat build/readability.txt; exit 1; }
	@echo "built build/docs/index.html"

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Wove needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras. The last line makes sure that it is this checkout which gets tested.
$(VENV)/.with-%: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@cd / && "$(CURDIR)/$(PY)" -c 'import sys, wove; sys.exit(not wove.__file__.startswith(sys.argv[1]) and f"wove comes from {wove.__file__}, not from this checkout")' "$(CURDIR)/src/"
	@touch "$@"
