# Two commands are all one needs: `make demo` and `make test`. Both install what they use into .venv first.
# The newest Python that the lock is held to. Another one: make PYTHON=/path/to/python
PYTHON ?= $(shell for v in 3.13 3.12 3.11; do python$$v -c "import venv, ensurepip" 2>/dev/null && echo python$$v && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
# Each test process would compile the whole package again: a third of the time to collect the tests.
unexport PYTHONDONTWRITEBYTECODE
# Tests run in a process per core: more threads than one in each, and in the processes they start, only wait for a core.
test test-fast test-long test-minimum: export OMP_NUM_THREADS = 1

.PHONY: install demo test test-fast test-long test-minimum lint docs bench lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv was found. Install one (on Debian and Ubuntu:" \
		"apt install python3.12 python3.12-venv) or name it: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: install
	$(BIN)/viewalign demo

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long"

test-fast: install
	$(BIN)/python -m pytest -n auto --dist worksteal -q -m "not long and not slow"

test-long: lint
	$(BIN)/python -m pytest -n auto --dist worksteal
	$(MAKE) test-minimum

test-minimum:
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet -r requirements-minimum.txt \
		"pytest>=8.3" "pytest-timeout>=2.3" "pytest-xdist>=3.6" "hypothesis>=6.115" \
		scikit-learn scipy torchmetrics pooch huggingface_hub httpx surface-distance-based-measures build hatchling editables
	.venv-minimum/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	.venv-minimum/bin/python -m pytest -n auto --dist worksteal -q -m "not long and not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/python -m pip_audit -r requirements.lock --no-deps --disable-pip --strict --progress-spinner off \
		|| echo "Known weaknesses: pip-audit found one, or could not look every package up; see the lines above."

docs: install
	$(BIN)/zensical build --strict

bench: install
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

lock:
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean:
	rm -rf .venv .venv-minimum site dist demo-run
