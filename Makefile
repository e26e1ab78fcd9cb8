# The front door. Everything runs in .venv, made once from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-gpu check bench bench-full grid docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train six ways on handwritten digits; writes demo-report/index.html"
	@echo "                five times, four minutes; once: make demo SEEDS=1"
	@echo "make test       the tests, five minutes on two cores"
	@echo "make test-slow  those that take longer: spawned workers, several ranks, benchmark pages, CIFAR-10"
	@echo "make test-gpu   on a machine with an NVIDIA GPU, in ten minutes: tests, compute-sanitizer where it is"
	@echo "                installed, figures of augmentation"
	@echo "make check      format, lint, types"
	@echo "make bench      selection's ratios at a small size, held to those on record;"
	@echo "                augmentation at 32 pixels; the loader on few images"
	@echo "make bench-full every figure, half an hour: make bench-full DATA=path OUT=folder"
	@echo "make grid       training runs, stopped and continued at will: make grid GRID=small-steps DATA=path"
	@echo "make docs       tables and pictures in docs/ anew, then the site, docs/_site/index.html;"
	@echo "                no network: make docs DATA=path"

# Rebuilt when the pins or the requirements change.
.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/python -m augsubset demo $(if $(SEEDS),--seeds $(SEEDS))

# A file's tests share a worker and its fixtures; one thread each, as there is a worker per core.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# Tests that start ranks run one after the other: these have cores and timeouts of their own.
test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m 'slow and not distributed'
	$(BIN)/python -m pytest -m distributed

# Python starts anew under each tool, whose instrumented kernels take a minute.
test-gpu: .venv/installed
	$(BIN)/python -c "import torch; print(torch.cuda.get_device_name())"
	OMP_NUM_THREADS=4 timeout 300 $(BIN)/python -m pytest -q -m 'cuda and not slow'
	for tool in memcheck racecheck; do \
	  if command -v compute-sanitizer > /dev/null; then \
	    timeout 90 compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	      $(BIN)/python -m pytest -q -m cuda tests/test_delivery.py -k sanitizer || exit 1; \
	  else echo "no compute-sanitizer: $$tool is left out"; fi; done
	timeout 110 $(BIN)/python -m benchmarks.augmentation --device cuda --quick \
	  $(if $(OUT),--out $(OUT)/augmentation-gpu.json)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks.selection --quick $(if $(OUT),--out $(OUT)/selection-quick.json)
	$(BIN)/python -m benchmarks.augmentation --quick $(if $(OUT),--out $(OUT)/augmentation-quick.json)
	$(BIN)/python -m benchmarks.loader --quick $(if $(OUT),--out $(OUT)/loader-quick.json)

bench-full: .venv/installed
	$(BIN)/python -m benchmarks.selection $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT)/selection.json)
	$(BIN)/python -m benchmarks.augmentation $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT)/augmentation.json)
	$(BIN)/python -m benchmarks.loader $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT)/loader.json)

grid: .venv/installed
	$(BIN)/python -m benchmarks.train $(or $(GRID),smoke) $(if $(DATA),--data $(DATA)) $(if $(MINUTES),--budget-minutes $(MINUTES))

SITE := $(or $(OUT),docs)/_site

docs: .venv/installed
	$(if $(OUT),,$(BIN)/python -m benchmarks.tables)
	$(if $(OUT),,$(BIN)/python -m benchmarks.explain --draw docs)
	$(if $(OUT),,$(BIN)/python -m benchmarks.results_page)
	$(if $(OUT),,$(BIN)/python -m benchmarks.way)
	$(if $(OUT),,$(BIN)/python -m benchmarks.selection --plot benchmarks/results/selection-curves.json)
	$(BIN)/python -m benchmarks.gallery $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT))
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs $(SITE)

clean:
	rm -rf .venv demo-report .pytest_cache .mypy_cache .ruff_cache .hypothesis
