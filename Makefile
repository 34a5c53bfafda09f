# make demo: pictures in about two minutes.  make test, make check: what CI runs.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(shell command -v $(python))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow faults check clean

demo: $(STAMP)
	$(BIN)/python -m jobs demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu and not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu and slow"

# Hours: every hostile input, every crash point, a hundred campaigns, what a resume asks for. Writes docs/faults.md.
faults: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu" $(wildcard tests/test_faults_*.py)
	$(BIN)/python -m tests.campaign --seeds 0:100
	$(BIN)/python -m tests.resume_cost --shards 2000

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Again whenever a requirement changes; the stamp is written only after pip has succeeded.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
