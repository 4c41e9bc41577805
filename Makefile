# The only commands a person must know. Each sets up what it needs.
#
#   make run        set up, start the server, with something to look at
#   make test       set up, run every test that this machine can run
#   make check      formatting, lint, types
#   make bench      measure, side by side with plain services and peers (10 minutes; BENCH=quick: 5)
#   make bench-peers  set up the peers in .venv-peers, measure side by side with them
#   make contract   regenerate contract/openapi.json and the generated pages of docs/
#   make install    only set up
#   make clean      remove what the others made
#   make lock       (maintainers) resolve the dependencies anew; needs uv

.DEFAULT_GOAL := help
.PHONY: help install run test check bench bench-peers contract clean lock
MAKEFLAGS += --no-print-directory

IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	$$each -c "$(IS_SUPPORTED)" 2>/dev/null && echo $$each && break; done)
# PyTorch from another index, e.g. the CPU-only one: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
HOST ?=
PORT ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Measured against: in an environment of their own, because they need other versions.
PEERS := .venv-peers/.installed
PEERS_PIP := .venv-peers/bin/python -m pip --disable-pip-version-check --quiet
BENCH ?= standard

help:
	@sed -n 's/^#   //p' Makefile

$(INSTALLED): requirements.lock pyproject.toml
	@"$(PYTHON)" -c "$(IS_SUPPORTED)" || { \
		echo "Pellucid needs Python 3.11 to 3.13: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@echo "Installing into .venv (about 2 GB with PyTorch; a few minutes the first time) ..."
	@# PyTorch first and with its own dependencies: which ones differs by platform (CUDA or not).
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements.lock)"
	@# The lock is complete, so nothing needs to be resolved again.
	@$(PIP) install --no-deps -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(INSTALLED)

install: $(INSTALLED)

run: install
	@$(BIN)/pellucid serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

test: install
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: install
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: install
	@$(BIN)/python -m benchmarks.attention_over_http
	@$(BIN)/python -m benchmarks.embedding --size $(BENCH)
	@$(BIN)/python -m benchmarks.report

$(PEERS): benchmarks/peers.txt
	@test -x .venv-peers/bin/python || "$(PYTHON)" -m venv .venv-peers
	@echo "Installing the peers into .venv-peers (about 1 GB) ..."
	@$(PEERS_PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' benchmarks/peers.txt)"
	@$(PEERS_PIP) install --no-deps -r benchmarks/peers.txt
	@touch $(PEERS)

# A peer that can't be installed is named in the table; the others are measured.
bench-peers: install
	-@$(MAKE) $(PEERS)
	@$(BIN)/python -m benchmarks.embedding --size $(BENCH) --suite peers --parts bulk single
	@$(BIN)/python -m benchmarks.report

contract: install
	@$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .venv-peers dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch's CUDA parts are left out: they are PyTorch's own business, see `install`. OpenVINO's
# telemetry is left out: nothing here reports to anybody.
lock:
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--no-annotate --no-header --quiet \
		| grep -vE '^(triton|nvidia-|cuda-|openvino-telemetry)' > requirements.lock
