# make demo: set up everything and run the main job on examples/.   make test: set up everything and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check results docs clean

$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + " (make PYTHON=python3.12 ... takes another)") if sys.version_info < (3, 11) else None'
	@echo "Setting up $(VENV) (a minute or two: torch is large)"
	@mkdir -p $(VENV) && date +%s > $(VENV)/setup-started
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@echo $$(( $$(date +%s) - $$(cat $(VENV)/setup-started) )) > $(VENV)/setup-seconds
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.core
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Within an hour on two cores; needs ../shared/data. The table is docs/results.md.
results: $(VENV)/.dev
	$(BIN)/python bench/results.py

docs: $(VENV)/.dev
	$(BIN)/python docs/make_settings.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
