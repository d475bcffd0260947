# make demo: set up everything and run the main job on examples/.   make test: set up everything and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test torture check results bench-reading bench-rereading bench-cost bench-prompting bench-methods \
	bench-estimate docs clean

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

# The tests that kill processes at random moments, ten times as often: about two minutes.
torture: $(VENV)/.dev
	INSTRUCTREC_KILLS=200 $(BIN)/python -m pytest tests/torture

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Within an hour on two cores; needs ../shared/data. The table is docs/results.md.
results: $(VENV)/.dev
	$(BIN)/python bench/results.py

# Ways of reading compared, hours on two cores (SIZE=tiny: a minute, SIZE=gpu: see bench/reading.py).
bench-reading: $(VENV)/.dev
	$(BIN)/python bench/reading.py --size $(or $(SIZE),cpu)

# What reading again costs: about ten minutes on two quiet cores.
bench-cost: $(VENV)/.dev
	$(BIN)/python bench/cost.py

# Memory as estimated beside memory as measured: about ten minutes.
bench-estimate: $(VENV)/.dev
	$(BIN)/python bench/estimate.py

# What reading again does to untuned models; both need ../shared/data.
bench-rereading: $(VENV)/.dev
	$(BIN)/python bench/rereading.py

# Every tuning method on the same rows: learning rates, then the tables of docs/methods.md; two hours on two cores.
bench-methods: $(VENV)/.dev
	$(BIN)/python bench/methods.py --search
	$(BIN)/python bench/methods.py

# Asked, shown examples, searched and tuned on four sets of ../shared/data.
bench-prompting: $(VENV)/.dev
	$(BIN)/python bench/prompting.py

docs: $(VENV)/.dev
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_drawings.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
