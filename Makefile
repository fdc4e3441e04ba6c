# Two commands are all one needs: `make demo` and `make test`. Both install what they use into .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test test-fast test-long lint docs bench lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: install
	$(BIN)/viewalign demo

test: lint
	$(BIN)/python -m pytest -n auto -m "not long"

test-fast: install
	$(BIN)/python -m pytest -n auto -q -m "not long and not slow"

test-long: lint
	$(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict

bench: install
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

lock:
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean:
	rm -rf .venv site dist demo-run
