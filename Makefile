# Every target sets up what it needs; `make setup` alone prepares .venv.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LEROBOT := .venv-lerobot

.PHONY: claims setup demo test test-all test-lerobot lint results bench-objectives bench-cost bench-performance clean

setup: $(READY)

$(READY): pyproject.toml requirements/constraints.txt scripts/setup
	bash scripts/setup $(VENV)
	touch $(READY)

demo: setup
	$(BIN)/ebt-policy demo --out runs/demo

lint: setup
	$(BIN)/ruff check src tests lerobot_policy_ebt
	$(BIN)/ruff format --check src tests lerobot_policy_ebt
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: lint
	$(BIN)/pytest -n 2 --dist loadfile

# With the real lerobot, in an environment of its own: Python 3.12, 6 GB.
test-lerobot: $(LEROBOT)/.ready
	HF_HUB_OFFLINE=1 HF_HOME=$(LEROBOT)/hub $(LEROBOT)/bin/pytest tests/lerobot -W default

$(LEROBOT)/.ready: pyproject.toml lerobot_policy_ebt/pyproject.toml scripts/setup-lerobot
	bash scripts/setup-lerobot $(LEROBOT)
	touch $@

# Render the tables of docs/results.md from the files under results/.
results: setup
	$(BIN)/python scripts/render_results

# Render docs/claims.md, docs/language.md and a table of README.md and of docs/results.md from the files under results/.
claims: setup
	$(BIN)/ebt-policy bench tasks --render docs/claims.md
	$(BIN)/ebt-policy bench tasks --render README.md
	$(BIN)/ebt-policy bench tasks --render docs/results.md
	$(BIN)/ebt-policy bench language --render docs/language.md

# Every objective, descent and baseline compared: many hours; stop it whenever, it goes on later.
bench-objectives: setup
	test -e data/pusht_cchi_v7_replay.zarr || $(BIN)/ebt-policy data get pusht --out data
	test -e results/objectives/cost-tiny.json || $(BIN)/ebt-policy bench cost --preset tiny
	-$(BIN)/ebt-policy bench objectives --jobs 2
	$(BIN)/ebt-policy bench objectives --render docs/objectives.md

# What a training step of each method costs.
bench-cost: setup
	$(BIN)/ebt-policy bench cost --preset tiny --batch-size 128
	$(BIN)/ebt-policy bench cost --preset small --batch-size 128

# Latency, training, loading: each with nothing else running, about an hour together.
bench-performance: setup
	test -e data/pusht_cchi_v7_replay.zarr || $(BIN)/ebt-policy data get pusht --out data
	$(BIN)/ebt-policy bench latency --preset paper --compile --onnx --rounds 9 --json results/latency-paper.json
	$(BIN)/ebt-policy bench train --preset tiny --json results/train-tiny.json
	$(BIN)/ebt-policy bench floor --json results/floor.json
	$(BIN)/ebt-policy bench loading --data data/pusht_cchi_v7_replay.zarr --compile --json results/loading-pusht.json
	$(BIN)/ebt-policy train --data data/pusht_cchi_v7_replay.zarr --policy ebt --preset tiny --budget 10m --compile --out runs/performance --resume
	$(BIN)/ebt-policy bench evaluation runs/performance --task pusht --json results/evaluation-pusht.json
	$(BIN)/ebt-policy bench serve --clients 8 --seconds 120 --json results/serve.json
	$(BIN)/python scripts/render_results

clean:
	rm -rf $(VENV) $(LEROBOT) runs/demo build .pytest_cache .mypy_cache .ruff_cache
