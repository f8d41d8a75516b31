# One short command for each thing a developer does; CI calls the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-$(shell cat requirements/dev.txt pyproject.toml | sha256sum | cut -c1-12)
SETUP_DEMO := $(VENV)/.setup-demo-$(shell cat requirements/demo.txt pyproject.toml | sha256sum | cut -c1-12)
PROTOS := $(wildcard proto/*.proto)
CODE := cli components dag frontdoor inferlog rpc shared sidecar workers demo bench tests

.PHONY: setup build plain up demo demo-up tools test test-fast test-full lint bench proto clean

setup: $(SETUP)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Inferflow needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(SETUP): | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
# Where PYTHONDONTWRITEBYTECODE is set nobody else does this, and each process would compile all libraries anew.
	$(BIN)/python -m compileall -q -x '/tests?/' $(VENV)/lib
	@echo "compiling kernels …"
	$(BIN)/python -c 'import workers.service, inferlog.kernels'
	@touch $@

$(SETUP_DEMO): $(SETUP)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/demo.txt
	@touch $@

# Compiles the request path to C, in place: a third less CPU per request. Needs a C compiler.
NATIVE := $(shell sed -n '/^MODULES/,/^"""/p' setup.py | grep -o '[a-z_]*/[a-z_]*\.py')
build: setup shared/native.json

shared/native.json: setup.py $(NATIVE) | $(SETUP)
	$(MAKE) --no-print-directory plain
	INFERFLOW_NATIVE=1 $(BIN)/python setup.py -q build_ext --inplace --parallel 2
	@touch $@

plain:
	rm -f shared/native.json *__mypyc.*.so $(wildcard $(addsuffix /*.so,$(CODE)))

up: setup
	$(BIN)/python -m cli.up

demo: $(SETUP_DEMO)
	$(BIN)/python -m demo

demo-up: $(SETUP_DEMO)
	$(BIN)/python -m demo --keep

# What tests start besides Python; what is installed already is not fetched.
tools:
	tests/get_etcd.sh
	PYTHON=$(PYTHON) tests/get_log_reader.sh

# Tests run what is deployed, the compiled modules, wherever there is a compiler; test-fast what it finds.
test: setup tools $(if $(shell command -v cc),build)
	$(BIN)/python -m pytest -m "not full"

test-fast: setup tools
	$(BIN)/python -m pytest -m "not slow and not full"

test-full: $(SETUP_DEMO) tools
	bench/get_h2load.sh
	tests/interop/get_tools.sh
	tests/interop/get_kafka.sh
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: setup
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --pyi_out=proto $(PROTOS)

bench: build
	bench/get_h2load.sh
	$(BIN)/python -m bench.run --docs docs/performance.md

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache run state
