# make demo: pictures in about two minutes.  make check, make test: what CI runs.  docs/tests.md has the times.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(shell command -v $(python))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROCESSES ?= 2
PYTEST := -m pytest --numprocesses $(PROCESSES) --dist loadfile
QUICK := "not gpu and not slow and not hours"

.PHONY: demo test test-all faults coverage check clean

demo: $(STAMP)
	$(BIN)/python -m jobs demo

test: $(STAMP)
	$(BIN)/python $(PYTEST) -m $(QUICK)

test-all: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not gpu and not hours"

# Hours: all hostile inputs and mutated checkpoints, the campaigns, what a resume asks. Writes docs/faults.md.
faults: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not gpu and hours"
	$(BIN)/python -m tests.campaign --kind every --seeds 0:10
	$(BIN)/python -m tests.campaign --seeds 0:100
	$(BIN)/python -m tests.resume_cost --shards 2000

# Lines and branches by folder, in the tests' own processes, in theirs and in Ray's.
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage
coverage: $(STAMP)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(PYTEST) -m $(QUICK)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m tests.coverage_by_room

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Again whenever a requirement changes; the stamp is written only after pip has succeeded.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo 'Installing into $(VENV). On Linux pip downloads about 3.1 GB, 2.7 GB of it PyTorch for NVIDIA GPUs.'
	@echo 'Without a GPU 0.6 GB are enough: the README says how, under "Try it".'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python .ci/elsewhere.py
	touch $@
	@echo "installed; to type commands yourself: . $(BIN)/activate"

clean:
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
