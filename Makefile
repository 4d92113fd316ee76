# Every target sets up what it needs; `make setup` alone prepares .venv.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-all lint results clean

setup: $(READY)

$(READY): pyproject.toml requirements/constraints.txt scripts/setup
	bash scripts/setup $(VENV)
	touch $(READY)

demo: setup
	$(BIN)/ebt-policy demo --out runs/demo

lint: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 -m "not slow"

test-all: lint
	$(BIN)/pytest -n 2

# Render the tables of docs/results.md from the files under results/.
results: setup
	$(BIN)/python scripts/render_results

clean:
	rm -rf $(VENV) runs/demo build .pytest_cache .mypy_cache .ruff_cache
