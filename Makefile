# make demo     installs what is missing, then runs the study of degradation on the embedded digits (about two minutes)
# make test     installs what is missing, then runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
LOCK ?= requirements.lock
UV_PIP = --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --python-version 3.11

.PHONY: install prepare-env demo test test-slow lint format lock clean

install: $(VENV)/installed

$(VENV)/installed: $(LOCK) pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'deepjax needs Python 3.11 or newer; this is ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# TensorFlow, which only preparing a data set needs, in an environment of its own: .venv-prepare.
prepare-env:
	$(MAKE) install VENV=.venv-prepare LOCK=requirements-all.lock

demo: install
	$(BIN)/python experiments/degradation.py --out runs/degradation

test: install
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -q -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Both lock files from one resolution, so that they agree; needs uv.
lock:
	uv pip compile $(UV_PIP) --quiet --all-extras pyproject.toml requirements-build.in -o requirements-all.lock
	uv pip compile $(UV_PIP) --quiet --extra test --extra dev --extra tensorboard -c requirements-all.lock pyproject.toml requirements-build.in -o requirements.lock

clean:
	rm -rf .venv .venv-prepare .pytest_cache .ruff_cache build dist
