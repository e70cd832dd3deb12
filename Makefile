# The whole set-up: `make demo` from nothing to a Pareto front, `make test` for the tests
# (those of numbers a second time, as on a processor without AVX-512).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

# Tests of numbers. Without AVX-512 other kernels compute them; oneDNN and torch are told to be on such a processor.
NUMERICAL := $(addprefix tests/test_,training.py precision.py conflict.py objectives.py granularity.py rows.py nets.py \
    masks.py widths.py)
WITHOUT_AVX512 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2

.PHONY: demo search test test-without-avx512 test-slow lint install clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# What jobs need.
$(STAMP): pyproject.toml constraints.txt .ci/install.py | $(BIN)/python
	$(BIN)/python .ci/install.py
	touch $@

# What the tests need, too.
$(DEV_STAMP): pyproject.toml constraints.txt .ci/install.py | $(BIN)/python
	$(BIN)/python .ci/install.py dev
	touch $@ $(STAMP)

install: $(DEV_STAMP)

demo: $(STAMP)
	$(BIN)/python sweeps/capacity.py --recipe sweeps/recipes/demo.yaml

search: $(STAMP)
	$(BIN)/python sweeps/search.py --recipe sweeps/recipes/search_demo.yaml

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal
	if grep -q avx512f /proc/cpuinfo; then $(MAKE) test-without-avx512; fi

test-without-avx512: $(DEV_STAMP)
	$(WITHOUT_AVX512) $(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal $(NUMERICAL)

# Two files at a time: a job is waiting for processes to start for much of its time. The longest come first, so that
# both end at the same time.
LONGEST := $(addprefix tests/test_,search_jobs.py jobs.py nodes.py method_jobs.py fault_jobs.py campaign.py data_jobs.py)
test-slow: $(DEV_STAMP)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder $(LONGEST) \
	    $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

clean:
	rm -rf $(VENV) runs
