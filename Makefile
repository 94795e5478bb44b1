# Everything runs in .venv, which each target makes and fills by itself.
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-fast lint clean

## Trains on the emoji data, evaluates, and draws outputs/emoji-demo/answers.png, in twelve minutes at most on two cores.
demo: .venv/demo
# For a model this small, each core computes by itself: two threads would wait for each other.
	OMP_NUM_THREADS=1 .venv/bin/python scripts/demo.py

## All tests, transformers' own among them.
test: .venv/dev lint
	.venv/bin/python -m pytest -n 2 --dist loadgroup -q

## The everyday tests.
test-fast: .venv/dev lint
	.venv/bin/python -m pytest -n 2 -q -m "not slow" --ignore tests/upstream

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e ".[train,audio,plot]"
	touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@ .venv/demo

clean:
	rm -rf .venv outputs build *.egg-info .pytest_cache .ruff_cache
