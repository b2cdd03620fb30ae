# `make run` does the whole main job, `make test` checks everything; `make help` lists the rest.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help run test test-machines test-all fuzz rehearse lint format lock audit clean

help:
	@awk -F ':.*## ' '/^## / { printf "\n%s\n", substr($$0, 4) } /^[a-z-]+:.*## / { printf "  make %-15s%s\n", $$1, $$2 }' Makefile

## Use it:

run: $(VENV)/ready ## from nothing to a prediction: install, data, train, pack, serve
	@sh run.sh

## DATA_DIR=FOLDER make run takes photos of your own, PORT=5001 make run another port than 5000.

## Work on it:

PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4

test: lint ## install missing packages, then check style, types and behaviour: minutes
	$(PYTEST) --ignore=tests/rehearsal

test-machines: $(VENV)/ready-dev ## real engines, attacks, the README's walk: a quarter of an hour
	$(PYTEST) -p no:randomly tests/rehearsal

test-all: test test-machines ## both, as CI does

lint: $(VENV)/ready-dev ## check style, types and shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck *.sh tests/rehearsal/*.sh tests/rehearsal/hooks/pre-receive .ci/run

format: $(VENV)/ready-dev ## put the code into the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: $(VENV)/ready-dev ## send 20,000 mutated images and bodies to the packed service (needs strace)
	PYTHONPATH=. $(BIN)/python tests/fuzz.py

rehearse: $(VENV)/ready ## deploy the packed service to a Heroku on this machine, with Heroku's CLI (as root)
	@sh tests/rehearsal/rehearse.sh

COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate \
	--custom-compile-command "make lock"

INSTALL_UV = $(BIN)/python -m pip install --disable-pip-version-check --quiet uv==0.13.9
PIP_AUDIT = $(BIN)/uvx -q pip-audit@2.10.1 --disable-pip --no-deps

lock: $(VENV)/ready ## pin the packages in pyproject.toml and all their dependencies
	$(INSTALL_UV)
	$(COMPILE) pyproject.toml -o requirements.txt
	grep -vE '^(cuda|nvidia|triton)' requirements.txt >requirements.new # torch pins them itself
	mv requirements.new requirements.txt
	$(COMPILE) --group serve --generate-hashes -c requirements.txt -o requirements-serve.txt
	$(COMPILE) --group dev -c requirements.txt -o requirements-dev.txt
	$(BIN)/uv run -q --no-project --isolated $$(sed -n 's/^pillow.*/--with &/p' requirements.txt) tests/libraries.py

audit: $(VENV)/ready ## list known vulnerabilities of all pinned packages, and the libraries in wheels
	$(INSTALL_UV)
	$(PIP_AUDIT) -r requirements-serve.txt # alone, as only it has hashes
	$(PIP_AUDIT) -r requirements.txt -r requirements-dev.txt
	$(BIN)/python tests/libraries.py

clean: ## remove the virtual environment and caches; photos, checkpoints and Bentos stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp is made only after everything is installed, so an interrupted install goes on.
$(VENV)/ready: requirements.txt install.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"error: $(PYTHON) is missing or older than 3.11: name a newer one, as in make run PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo \
		"error: $(PYTHON) can't make a virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@VENV=$(VENV) sh install.sh
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	@VENV=$(VENV) sh install.sh requirements-dev.txt
	@touch $@
