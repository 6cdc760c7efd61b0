PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all test-floor check coverage lab report docs bench clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { echo "venv is missing: install your system's python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@mkdir -p .venv/etc/ipython  # without this, each kernel warns that it talks to its notebook without encryption
	@echo 'c.IPKernelApp.log_level = "ERROR"' > .venv/etc/ipython/ipython_kernel_config.py
	touch $@

demo: setup  ## generate mammograms and train on them through papermill
	@$(BIN)/papermill notebooks/03_train.ipynb out.ipynb -f notebooks/params/demo.json \
		--stdout-file - --no-progress-bar --log-level WARNING

test: check  ## run the linters, the type checker and all tests that are not marked slow
	$(BIN)/python -m pytest -m "not slow"

test-all: check  ## run the slow tests too: several machines, killed processes, large samples
	$(BIN)/python -m pytest

test-floor: .venv-floor/installed  ## run the tests with the lowest versions that pyproject.toml allows; the slow ones too with SLOW=1
	.venv-floor/bin/python -m pytest $(if $(SLOW),,-m "not slow")

.venv-floor/installed: pyproject.toml constraints-floor.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] > (3, 12) and "NumPy 2.0 needs Python 3.11 or 3.12")'
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-floor.txt -e '.[dev]'
	touch $@

coverage: setup  ## run all tests and list the lines that none of them runs, in child processes too
	$(BIN)/python -m pytest --cov --cov-report=term

.venv-mlflow/installed: constraints.txt  # a server for tests/test_mlflow.py; its dependencies conflict with ours
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^mlflow-skinny/mlflow/p' constraints.txt)"
	touch $@

check: setup  ## run the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --package rsna_nb

lab: setup  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

report: setup  ## write an HTML page about a run: RUN=<id or path> (default: the newest), COMPARE=<id>, PICTURES=0
	$(BIN)/python -m rsna_nb.evaluation.report $(RUN) $(if $(COMPARE),--compare $(COMPARE)) $(if $(PICTURES),--pictures $(PICTURES))

docs: .venv/installed-docs  ## build the documentation as a site in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

bench: setup  ## run the benchmarks; installs the libraries to compare with, one of them under the GPL
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for file in tests/bench/bench_*.py; do echo "== $$file" && $(BIN)/python $$file || exit 1; done

clean:  ## remove what can be made again, but no run folders and no data
	rm -rf .venv .venv-floor .venv-mlflow docs/_build out.ipynb .mypy_cache .pytest_cache .ruff_cache *.egg-info
