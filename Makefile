PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all check coverage lab report bench clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { echo "venv is missing: install your system's python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train on generated mammograms, through papermill
	$(BIN)/papermill notebooks/03_train.ipynb out.ipynb -f notebooks/params/demo.json

test: check  ## all checks but the tests marked slow
	$(BIN)/python -m pytest -m "not slow"

test-all: check  ## the slow tests too: several machines, killed processes, whole networks
	$(BIN)/python -m pytest

coverage: setup  ## lines that no test runs, in the processes that tests start too
	$(BIN)/python -m pytest --cov --cov-report=term

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --package rsna_nb

lab: setup
	$(BIN)/jupyter lab notebooks

report: setup  ## one HTML page of a run: RUN=<id or path>, the newest where left out; COMPARE=<id>, PICTURES=0
	$(BIN)/python -m rsna_nb.evaluation.report $(RUN) $(if $(COMPARE),--compare $(COMPARE)) $(if $(PICTURES),--pictures $(PICTURES))

bench: setup  ## with the libraries that reading is compared with, one of them under the GPL
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for file in tests/bench/bench_*.py; do echo "== $$file" && $(BIN)/python $$file || exit 1; done

clean:  ## what can be made again; run folders and data stay
	rm -rf .venv out.ipynb .mypy_cache .pytest_cache .ruff_cache *.egg-info
