# Two commands do everything: `make demo` and `make test`. Both set up their own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint format setup clean

demo: setup
	$(BIN)/pivotal demo --output out/demo --force

# One process a core, one thread each: the networks are too small to share out. Sorted by how many
# tests they hold, files of one long test would come last, and one core would wait.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[onnx]' --group dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps open_clip_torch
	touch $(STAMP)

clean:
	rm -rf $(VENV) out
