PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Compiling, which is most of a test's time, keeps one core busy. A file stays on one worker, with what it has built.
PARALLEL = -n 2 --dist loadfile

.PHONY: setup demo test test-newest lint clean

setup: $(VENV)/.ready

# torch first and pinned: the tests' oracle, and an unpinned one would bring its CUDA packages along.
$(VENV)/.ready: setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	-$(RUN) -m pip install --quiet torch==2.13.0
	$(RUN) -m pip install --quiet -e '.[test,eval]'
	touch $@

demo: setup
	$(RUN) -m seedstory_jax.demo

test: setup
	$(RUN) -m pytest $(PARALLEL)

# The tests that need no torch, on the newest jax that Python 3.12 gets.
test-newest:
	$(PYTHON312) -m venv .venv312
	.venv312/bin/python -m pip install --quiet -e '.[test-torch-free,eval-torch-free]'
	.venv312/bin/python -m pytest $(PARALLEL)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf runs/toy out/demo
