PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
TORCH ?= auto
PARITY := .venv-parity
CLIENTS := .venv-clients
OPEN_WEBUI := .venv-open-webui
PEERS := .venv-peers

.PHONY: help run quick test check docs image-test parity clients fuzz peers
FUZZ_S ?= 180

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

run: $(RUNS)  ## answer test_input.json with the tiny demonstration model and print the JSON
	@$(BIN)/python handler.py

quick: export PYTHONDONTWRITEBYTECODE =
quick: $(READY)  ## run the tests that need no child process, no browser and no slow library
	$(BIN)/python -m pytest -q --quick -p no:schemathesis -p no:hypothesispytest

test: export PYTHONDONTWRITEBYTECODE =
test: $(READY)  ## run all tests, the files of them spread over up to four processes
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

check: $(READY)  ## lint, format, types and dead code; the Dockerfile and the documents too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/hadolint Dockerfile
	@$(MAKE) --no-print-directory docs

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY)  ## build the documentation as a site, into site/
	$(BIN)/mkdocs build --strict --quiet

image-test: $(READY)  ## build the Dockerfile for real and ask the image a question, offline (root on Debian)
	$(BIN)/python -m tests.image

parity: $(PARITY)/.ready  ## compare images and videos with the references, in an environment of their own
	$(PARITY)/bin/python -m pytest -o addopts= -o filterwarnings= -q tests/parity tests/models/test_published.py --all-models

clients: $(READY) $(CLIENTS)/.ready $(if $(WITH_OPEN_WEBUI),$(OPEN_WEBUI)/.ready)  ## run client libraries and gateways against the HTTP server; WITH_OPEN_WEBUI=1: Open WebUI too, 2.9 GB
	$(BIN)/python -m pytest -o addopts= -q tests/clients

peers: $(READY) $(PEERS)/.ready  ## install vLLM's build for CPUs beside, 3.5 GB, for `python -m benchmarks.peers`

fuzz: $(READY)  ## coverage-guided fuzzing of the opening of images and videos, FUZZ_S seconds
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3,<4"
	$(BIN)/python -W ignore -m tests.fuzz -max_total_time=$(FUZZ_S)

# Another build of torch than the one that is there is installed when it is asked for.
ifneq ($(filter-out auto $(shell cat $(VENV)/torch-build 2>/dev/null),$(TORCH)),)
.PHONY: $(RUNS)
endif
$(RUNS): requirements.txt builder/environment.sh
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" builder/environment.sh $(VENV)
	@touch $@

$(READY): $(RUNS) requirements-bitsandbytes.txt requirements-modelscope.txt requirements-dev.txt tests/tools.sh tests/platform/js/package-lock.json
	@echo "setup: what checks and tests need (about 0.3 GB to download, 0.7 GB on disk)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@tests/tools.sh
	@if command -v npm >/dev/null; then npm ci --prefix tests/platform/js --silent --no-audit --no-fund || \
		echo "the clients for JavaScript could not be installed, tests that need them will skip"; fi
	@touch $@

$(PARITY)/.ready: requirements.txt requirements-parity.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	@touch $@

$(CLIENTS)/.ready: requirements-clients.txt requirements-clients-openai2.txt tests/clients/js/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-clients.txt
	$(PYTHON) -m venv $(CLIENTS)-openai2
	$(CLIENTS)-openai2/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-clients-openai2.txt
	npm ci --prefix tests/clients/js --silent --no-audit --no-fund
	@touch $@

$(OPEN_WEBUI)/.ready:
	$(PYTHON) -m venv $(OPEN_WEBUI)
	$(OPEN_WEBUI)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(OPEN_WEBUI)/bin/python -m pip install --quiet --disable-pip-version-check open-webui==0.12.4
	@touch $@

# torchaudio and torchcodec do not load beside torch's CPU build, and nothing here hears or plays.
$(PEERS)/.ready: requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@
