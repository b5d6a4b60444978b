# Everything here runs from the project folder with Python (3.11 or newer) and make; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test coverage examples lint docs bench bench-peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

$(STAMP): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "constrain needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Try: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv."; exit 1; }
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## train on UCI Adult under fairness constraints, two ways (examples/adult.py)
	$(BIN)/python examples/adult.py

test: $(STAMP) ## run the tests, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

coverage: $(STAMP) ## run the tests with branch coverage
	$(BIN)/python -m pytest --cov --cov-report=term

examples: $(STAMP) ## run every example but the demo, on all cores, and print what it measured
	@ls examples/*.py | grep -v -e /adult.py -e /adult_data.py | OMP_NUM_THREADS=1 xargs -n 1 \
	  -P $$(getconf _NPROCESSORS_ONLN) sh -c \
	  'out=$$($(BIN)/python -W error "$$0" 2>&1); code=$$?; printf "== %s\n%s\n" "$$0" "$$out"; exit $$code'

lint: $(STAMP) ## style, format, types, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/typos

docs: $(STAMP) ## build the documentation into site/ (warnings are errors)
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP) ## measure step overhead, scaling in groups, and the routes on one convex problem
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP) ## measure against other libraries and write the tables of docs/benchmarks.md
	$(BIN)/python -m benchmarks.peers --write

clean: ## remove what the other targets make
	rm -rf $(VENV) site dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
