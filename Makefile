# Set up, run and check the project; CI runs the same targets.
PYTHON ?= python3
VENV ?= .venv
# A recursive variable, expanded only where it is used: nvidia-smi takes up to a second.
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PIP = $(VENV)/bin/python -m pip install --progress-bar off --disable-pip-version-check --retries 10 --constraint constraints.txt
LOG = $(VENV)/install.log
# PyTorch's index of CPU builds, from its install page: asked where pip's own indexes have no CPU build of torch. A copy
# of it: make setup TORCH_CPU_INDEX=ADDRESS
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: setup demo test test-faults bench check-data lint constraints clean

setup: $(VENV)/installed

demo: setup
	@$(VENV)/bin/vlcp-ray run digits

# Two processes, because half of the time a test waits for another process to start.
test: lint
	@$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Kill workers, drivers and machines of real runs, and fill stores: an hour and a half on 2 cores, 34 minutes of it on S3.
test-faults: $(VENV)/installed-dev
	@$(VENV)/bin/python -m pytest -m faults tests

# Measure every stage against a plain reference; results: tests/benchmarks/README.md.
bench: $(VENV)/installed-dev
	@$(VENV)/bin/python -m tests.benchmarks

# Run three real image sets of ../shared/data through the stages with tiny models, and check counts.
check-data: $(VENV)/installed-dev
	@$(VENV)/bin/python -m tests.check_data

lint: $(VENV)/installed-dev
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

# Write the versions that are installed into constraints.txt, below its comments, which say what is left out.
constraints: $(VENV)/installed-dev
	@{ sed -n '/^#/p' constraints.txt; $(VENV)/bin/python -m pip list --format=freeze --exclude-editable \
		$(addprefix --exclude ,pip setuptools wheel triton apache-tvm-ffi torchaudio torchcodec) | sed 's/+cpu$$//'; } >$(LOG)
	@cp $(LOG) constraints.txt

# Results under runs/ are kept: they are the user's.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp files make a second call free. doctor repairs the environment after pip has installed the packages.
$(VENV)/installed: pyproject.toml constraints.txt $(wildcard vlcp_ray/doctor/*.py)
	@test "$$(uname -s)" = Linux || { echo "vlcp_ray runs on Linux only: on Windows use WSL (the Windows Subsystem for" \
		"Linux), on macOS a Linux container or another machine."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed: name one, as in 'make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11'."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "This Python has no venv module: install it (on Debian and Ubuntu the package python3-venv)."; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV), extra '$(EXTRA)': a few minutes; pip writes to $(LOG)."
	@$(PIP) --editable '.[$(EXTRA)]' >$(LOG) 2>&1 || $(FROM_CPU_INDEX) || { $(FAILED); exit 1; }
	@$(VENV)/bin/python -c "from vlcp_ray.doctor.checks import main; raise SystemExit(main('runs', repair_first=True))"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[dev,track]' >$(LOG) 2>&1 || { $(FAILED); exit 1; }
	@touch $@

NO_CPU_BUILD = grep -q -e 'No matching distribution found for torch==.*+cpu' -e '^ *vlcp-ray.* depends on torch==.*+cpu' $(LOG)

# That index has the torchvision of the same build, too, which pip prefers and which needs no repair.
define FROM_CPU_INDEX
{ $(NO_CPU_BUILD) && echo "pip's indexes have no CPU build of torch: trying $(TORCH_CPU_INDEX)." \
	&& $(PIP) --retries 2 --timeout 30 --extra-index-url '$(TORCH_CPU_INDEX)' --editable '.[$(EXTRA)]' >$(LOG) 2>&1; }
endef

define FAILED
if $(NO_CPU_BUILD); then \
	echo "pip finds no CPU build of torch, neither in its own indexes nor in $(TORCH_CPU_INDEX): check the network and run make again, or name a copy of that index: make setup TORCH_CPU_INDEX=ADDRESS."; \
else \
	grep -v '^WARNING: Location' $(LOG) | tail -n 20; echo "Installation failed; the whole log is $(LOG)."; fi
endef
