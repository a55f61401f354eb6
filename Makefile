# Everything from a bare Python 3.11: `make demo`, `make test`.
PYTHON ?= python3
# The CPU build; plain `torch` would pull gigabytes of CUDA packages.
TORCH := torch==2.13.0
PIP := -m pip --disable-pip-version-check install --quiet
# Two processes on two cores: one thread each. A process that is done takes tests of the other.
PYTEST := OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
PARALLEL := -n 2 --dist worksteal
QUICK := not slow and not nightly
NIGHT := -m 'nightly or hypothesis' --hypothesis-profile nightly

.PHONY: demo test test-slow test-nightly mutants lint clean

# e3nn 0.6 with SevenNet; MACE, which pins e3nn 0.4.4; and NequIP with Allegro.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) $(TORCH)
	.venv/bin/python $(PIP) -e '.[sevennet,dev]'
	touch $@

.venv-mace/ready: pyproject.toml
	$(PYTHON) -m venv .venv-mace
	.venv-mace/bin/python $(PIP) $(TORCH)
	.venv-mace/bin/python $(PIP) -e '.[mace,test]' cuequivariance-torch
	touch $@

.venv-nequip/ready: pyproject.toml
	$(PYTHON) -m venv .venv-nequip
	.venv-nequip/bin/python $(PIP) $(TORCH)
	.venv-nequip/bin/python $(PIP) -e '.[nequip,test]' nequip-allegro
	touch $@

# Nine atoms do not feed two threads.
demo: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/e3sparse demo --out runs/demo --overwrite

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint .venv-mace/ready .venv-nequip/ready
	$(PYTEST) .venv-mace/bin/python -m pytest $(PARALLEL) -m '$(QUICK) and not any_e3nn' \
	    tests/core tests/symmetry tests/mace_torch
	$(PYTEST) .venv-nequip/bin/python -m pytest $(PARALLEL) -m '$(QUICK)' tests/nequip_torch
	$(PYTEST) .venv/bin/python -m pytest $(PARALLEL) -m '$(QUICK)'

# Compiled training and compiled packages of NequIP and Allegro, a large MACE, the wheel: about 7 minutes.
test-slow: .venv/ready .venv-nequip/ready .venv-mace/ready
	$(PYTEST) .venv/bin/python -m pytest -m slow tests/test_wheel.py
	$(PYTEST) .venv-nequip/bin/python -m pytest $(PARALLEL) -m slow tests/nequip_torch
	$(PYTEST) .venv-mace/bin/python -m pytest $(PARALLEL) -m slow tests/mace_torch

# Every state of every model, other cases each night, 1,000 elements of O(3) a case: about an hour.
test-nightly: .venv/ready .venv-mace/ready .venv-nequip/ready
	$(PYTEST) .venv-mace/bin/python -m pytest $(PARALLEL) $(NIGHT) tests/core tests/symmetry tests/mace_torch
	$(PYTEST) .venv-nequip/bin/python -m pytest $(PARALLEL) $(NIGHT) tests/nequip_torch
	$(PYTEST) .venv/bin/python -m pytest $(PARALLEL) $(NIGHT)

# Breaks our code in many ways, one at a time, and writes which test catches each.
mutants: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python tests/mutants.py

clean:
	rm -rf .venv .venv-mace .venv-nequip runs
