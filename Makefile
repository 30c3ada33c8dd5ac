# The two commands are `sudo make try` and `sudo make test`; everything else is for developers.
PYTHON ?= /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
PREFIX ?= /usr/local
NICE   ?=

.PHONY: help setup try test check bench man proto install clean distclean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done src/insula/_guest/.done  ## install what is missing: packages, a virtual environment, the agent
	@true

$(VENV)/.done: pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) tools/setup.sh $(VENV)
	@touch $@

src/insula/_guest/.done: $(VENV)/.done $(wildcard guest/*/*.[ch]) guest/build.py
	@$(BIN)/python guest/build.py
	@touch $@

try: setup  ## the main job: one image, one command, both isolations, and what they cost
	@tools/try.sh $(BIN)/insula

test: setup  ## everything: linters, unit, contract, integration and security tests
	@tools/test.sh $(BIN)

check: $(VENV)/.done  ## linters, types, layering, house rules (also part of `make test`)
	@$(BIN)/ruff check src tests guest tools
	@$(BIN)/ruff format --check src tests guest tools
	@$(BIN)/mypy
	@PYTHONPATH=src $(BIN)/lint-imports --no-cache >/tmp/insula-lint-imports.$$$$ 2>&1 || { cat /tmp/insula-lint-imports.$$$$; rm -f /tmp/insula-lint-imports.$$$$; exit 1; }; rm -f /tmp/insula-lint-imports.$$$$
	@$(BIN)/python -m pytest -q tests/style

bench: setup  ## speed and memory as ratios; AGAINST=unix:///… adds another engine
	@$(BIN)/python tests/performance/bench.py --insula $(BIN)/insula $(if $(AGAINST),--against $(AGAINST))

man: $(VENV)/.done  ## the man pages, made from the command line's own tables
	@$(BIN)/python tools/man.py docs/man

proto: $(VENV)/.done  ## what protoc makes of BuildKit's messages, after a change of wire.proto
	@$(BIN)/python -m venv build/protoc && build/protoc/bin/pip install -q 'grpcio-tools==1.74.*'
	@cd src && ../build/protoc/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. insula/api/buildkit/wire.proto

install: setup  ## into PREFIX (default /usr/local), with the systemd units
	@tools/install.sh $(BIN) $(PREFIX)

clean:  ## what was built here
	rm -rf build dist guest/build src/insula/_guest .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
