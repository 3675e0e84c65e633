# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
USERS := examples/from_python.py tests/typed_surface.py  # read as a user's scripts, without plugins

.PHONY: docs demo corrections-study training-study spectral-study fitted-study rivals-study test faults check bench gpu-check format clean

.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'snrkit needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test,photos]'
	touch $@

demo: .venv/installed
	$(BIN)/snrkit run --config snrkit/starters/digits.yaml

corrections-study: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh studies/corrections/run.sh

training-study: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh studies/training/run.sh

fitted-study: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh studies/fitted/run.sh

rivals-study: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh studies/rivals/run.sh

spectral-study: .venv/installed-test
	PATH="$(CURDIR)/$(BIN):$$PATH" sh studies/spectral/run.sh

docs: .venv/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/assemble.py build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: .venv/installed-test
	$(BIN)/pytest -n 2 --dist worksteal

check: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file= --strict --follow-imports=silent --cache-dir=.mypy_cache/users $(USERS)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

faults: .venv/installed-test
	$(BIN)/pytest -m slow -s tests/test_faults.py

bench: .venv/installed-test
	$(BIN)/pytest tests/bench -o norecursedirs=".*" -s --benchmark-disable-gc --benchmark-columns=median

gpu-check: .venv/installed-test
	$(BIN)/python -m tests.gpu_check

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache
