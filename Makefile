# Set up, run and check the project: what CI runs is what a person runs.
PYTHON ?= python3
VENV ?= .venv
# Expanded where it is used only: asking the driver takes up to a second.
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --retries 10
LOG = $(VENV)/install.log

.PHONY: setup demo test test-faults bench check-data lint clean

setup: $(VENV)/installed

demo: setup
	@$(VENV)/bin/vlcp-ray run jobs/digits.toml

test: lint
	@$(VENV)/bin/python -m pytest

# Workers, drivers, machines and stores of real runs fail; README.md says how long it takes.
test-faults: $(VENV)/installed-dev
	@$(VENV)/bin/python -m pytest -m faults tests

# Every stage against the way it is done today; README.md says what comes out.
bench: $(VENV)/installed-dev
	@$(VENV)/bin/python -m tests.benchmarks

# Three real image sets of ../shared/data through the chain; README.md says what comes out.
check-data: $(VENV)/installed-dev
	@$(VENV)/bin/python -m tests.check_data

lint: $(VENV)/installed-dev
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

# Results under runs/ stay: they are the user's.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps make a second call free; doctor is what repairs the environment after pip has filled it.
$(VENV)/installed: pyproject.toml vlcp_ray/doctor.py vlcp_ray/torchvision_hook.py vlcp_ray/repair.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed: name one, as in 'make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11'."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "This Python has no venv module: install it (on Debian and Ubuntu the package python3-venv)."; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV), extra '$(EXTRA)': a few minutes; pip writes to $(LOG)."
	@$(PIP) --editable '.[$(EXTRA)]' >$(LOG) 2>&1 || { $(FAILED); exit 1; }
	@$(VENV)/bin/python -c "from vlcp_ray.doctor import main; raise SystemExit(main(root='runs', fix=True))"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[dev]' >$(LOG) 2>&1 || { $(FAILED); exit 1; }
	@touch $@

# CPU builds of torch live in an index of their own, which only the user can name.
define FAILED
if grep -q 'No matching distribution found for torch==.*+cpu' $(LOG); then \
	echo "pip finds no CPU build of torch: set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (its install page gives the address) and run make again."; \
else \
	grep -v '^WARNING: Location' $(LOG) | tail -n 20; echo "Installation failed; the whole log is $(LOG)."; fi
endef
