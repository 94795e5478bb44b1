# Everything runs in .venv, or in .venvs/<name>, which each target makes and fills by itself.
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
EVERYDAY := -m pytest -n 2 --dist worksteal -p no:hypothesispytest -q -m "not slow" --ignore tests/upstream
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-fast test-versions test-lowest test-torchvision lint constraints clean

## Trains on the emoji data, evaluates, and draws outputs/emoji-demo/answers.png, in twelve minutes at most on two cores.
demo: .venv/demo
# For a model this small, each core computes by itself: two threads would wait for each other.
	OMP_NUM_THREADS=1 .venv/bin/python scripts/demo.py

## All tests, transformers' own among them.
test: .venv/dev lint
	.venv/bin/python -m pytest -n 2 --dist loadgroup -q

## The everyday tests.
test-fast: .venv/dev lint
	.venv/bin/python $(EVERYDAY)

## The everyday tests on the lowest versions that pyproject.toml allows, and on the newest PyTorch, with torchvision.
test-versions: test-lowest test-torchvision

test-lowest test-torchvision: test-%: .venvs/%/dev
	.venvs/$*/bin/python $(EVERYDAY)

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

.venvs/lowest/dev: PYTHON := python3.11
.venvs/torchvision/dev: BESIDE := torchvision
.venvs/%/dev: pyproject.toml constraints-%.txt
	$(PYTHON) -m venv --clear .venvs/$*
	.venvs/$*/bin/python -m pip --disable-pip-version-check install -q -c constraints-$*.txt -e ".[dev]" $(BESIDE)
	touch $@

## Looks the versions up anew: the newest, the newest beside torchvision, and the lowest that pyproject.toml allows.
COMPILE := .venv/bin/uv pip compile pyproject.toml --all-extras --universal --no-annotate --quiet --custom-compile-command "make constraints"
constraints: .venv/bin/python
	$(PIP) install -q uv
	$(COMPILE) --upgrade --upgrade-package torch==2.13.0 -o constraints.txt
	printf "torch==2.14.1\ntorchvision==0.29.1\n" | $(COMPILE) --upgrade - -o constraints-torchvision.txt
	$(COMPILE) --upgrade --resolution lowest-direct --fork-strategy fewest -o constraints-lowest.txt

clean:
	rm -rf .venv .venvs outputs build *.egg-info .pytest_cache .ruff_cache
