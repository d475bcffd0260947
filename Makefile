# make demo: set up everything and run the main job on examples/.   make test: set up everything and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test torture fuzz check results bench-reading bench-rereading bench-cost bench-prompting bench-methods \
	bench-estimate bench-train bench-growth bench-answer bench-encoders bench-comparing bench-scale bench-suites bench-harness bench-first-step docs clean

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

# Broken files by chance, ten times as many as in the tests and other ones each time: about ten minutes.
fuzz: $(VENV)/.dev
	INSTRUCTREC_FUZZ=10 $(BIN)/python -m pytest tests/data/test_fuzz.py

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

# Reports with all suites on three sets, an hour; docs/results/suites.md.
bench-suites: $(VENV)/.dev
	$(BIN)/python bench/suites.py

# The same rows through lm-evaluation-harness, which lies in a Python of its own (lm-eval 0.4.13).
bench-harness: $(VENV)/.dev
	$(BIN)/python bench/harness.py $(if $(HARNESS),--harness-python $(HARNESS))

# Every tuning method on the same rows: learning rates, then the tables of docs/methods.md; two hours on two cores.
bench-methods: $(VENV)/.dev
	$(BIN)/python bench/methods.py --search
	$(BIN)/python bench/methods.py

# Asked, shown examples, searched and tuned on four sets of ../shared/data.
bench-prompting: $(VENV)/.dev
	$(BIN)/python bench/prompting.py

# Speed and memory of tuning beside TRL's trainer: --trl-python VENV/bin/python of an environment that has trl 1.16.0, without
# which only our side is measured. Half an hour on two quiet cores (SIZE=gpu: on a CUDA device, SIZE=tiny: a minute).
bench-train: $(VENV)/.dev
	$(BIN)/python bench/train.py --size $(or $(SIZE),cpu)

# How time and memory of a step grow, five minutes.
bench-growth: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python bench/growth.py

# Answering and ranking beside plain loops over the library.
bench-answer: $(VENV)/.dev
	$(BIN)/python bench/answer.py

# Encoders on label rows: nearest label, logistic regression, tuned; needs ../shared/data.
bench-encoders: $(VENV)/.dev
	$(BIN)/python bench/encoders.py

# How often equal settings are told apart, on made-up scores.
bench-comparing: $(VENV)/.dev
	$(BIN)/python bench/comparing.py

# A file of a gigabyte and five million rows: memory and time of check, splitting and the order of training.
bench-scale: $(VENV)/.dev
	$(BIN)/python bench/scale.py

# The first step of a million rows once all are rendered: five minutes on two quiet cores.
bench-first-step: $(VENV)/.dev
	$(BIN)/python bench/scale.py --rows 1000000 --render --out docs/results/scale-first.json

docs: $(VENV)/.dev
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_matrix.py
	$(BIN)/python docs/make_perturbations.py
	$(BIN)/python docs/make_drawings.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
