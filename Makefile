# make demo          the quickstart: rows to a tuned, proved, merged model and its report, in a few minutes on two cores
# make test          all tests that need Python packages only
# make test-system   tests that need a browser, Go or lm-eval (installs them where it may)
# make test-kernels  the GPU kernels without a GPU, by Triton's interpreter
# make check         ruff and mypy
#
# PYTHON=python3.12      another Python (3.11 to 3.13) for the environment
# VENV=.venv             another place for it
# WHEELS=DIR             where the compiled llama.cpp is kept for the next time (~/.cache/tunesmith)
# TORCH_SPEC, TRITON_SPEC, LM_EVAL_SPEC, PIP_ARGS   other versions, or other arguments of pip (say, PyTorch's index of CPU builds)

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PIP_ARGS ?=

# torch goes in before anything that depends on it, so that this is the build that stays
ifeq ($(shell command -v nvidia-smi),)
TORCH_SPEC ?= torch==2.13.0
else
TORCH_SPEC ?= torch>=2.11
endif

TRITON_SPEC ?= triton==3.9.0
LM_EVAL_SPEC ?= lm-eval[api]==0.4.13
LLAMA_SPEC ?= llama-cpp-python==0.3.36
# it is compiled for this processor: another one gets a folder of its own
PROCESSOR := $(shell (uname -m; grep -m1 -s '^flags' /proc/cpuinfo) | cksum | cut -d' ' -f1)
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tunesmith/wheels-$(PROCESSOR)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet $(PIP_ARGS)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

.PHONY: demo test test-system test-kernels test-slow check format clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -9

# one stamp for each set of extras: nothing is installed again while pyproject.toml is the same
$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "tunesmith needs Python 3.11 to 3.13; make PYTHON=python3.12 …" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH_SPEC)"
	$(PIP) -e .
	@touch $@

$(VENV)/.serve $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.base
	$(PIP) -e ".[$*]"
	@touch $@

# a few minutes of compiling, once for a machine; without a compiler the tests that run llama.cpp are skipped (not in CI)
$(VENV)/.llamacpp: $(VENV)/.base
	@if [ -z "$${CI:-}" ] && ! command -v c++ >/dev/null; then \
	  echo "no C++ compiler: tests that run llama.cpp will be skipped" >&2; \
	else \
	  mkdir -p "$(WHEELS)"; \
	  $(BIN)/python -m pip wheel --quiet $(PIP_ARGS) --no-deps --find-links "$(WHEELS)" --wheel-dir "$(WHEELS)" "$(LLAMA_SPEC)"; \
	  $(PIP) --find-links "$(WHEELS)" "$(LLAMA_SPEC)"; \
	fi
	@touch $@

demo: $(VENV)/.serve
	$(BIN)/tunesmith run recipes/quickstart.yaml
	@echo "report: $(CURDIR)/runs/quickstart/report/report.html"

# a thread a process: the tests' models are too small to share
test: $(VENV)/.test $(VENV)/.llamacpp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(VENV)/.test $(VENV)/.llamacpp
	$(BIN)/python -m pytest -m slow

# lm-eval in an environment of its own, that borrows what the tests' has (no torch of its own) and adds 25 packages, 130 MB
$(VENV)/.lm-eval: $(VENV)/.test
	rm -rf $(VENV)/lm-eval
	$(BIN)/python -m venv --without-pip $(VENV)/lm-eval
	ls -d $(abspath $(VENV))/lib/python3*/site-packages > "$$(ls -d $(VENV)/lm-eval/lib/python3*/site-packages)/borrowed.pth"
	$(VENV)/lm-eval/bin/python -m pip install --quiet $(PIP_ARGS) "$(LM_EVAL_SPEC)"
	@touch $@

test-system: $(VENV)/.test $(VENV)/.llamacpp $(VENV)/.lm-eval
	scripts/install_programs
	TUNESMITH_REQUIRE_BROWSER=1 TUNESMITH_LM_EVAL=$(VENV)/lm-eval/bin/lm_eval $(BIN)/python -m pytest -m system

# triton lies in a folder of its own: only these tests see it, as everything else chooses its kernels by whether it is there
$(VENV)/.triton: $(VENV)/.test
	rm -rf $(VENV)/triton
	$(PIP) --no-deps --target $(VENV)/triton $(TRITON_SPEC)
	@touch $@

test-kernels: $(VENV)/.triton
	PYTHONPATH=$(VENV)/triton TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/test_fused_kernels.py tests/test_generator_kernels.py

check: $(VENV)/.dev $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet || { echo "make format" >&2; exit 1; }
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
