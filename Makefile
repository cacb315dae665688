# Two commands matter: `make demo` shows the main job, `make test` passes the tests.
# Both install what they need on a fresh Debian 12 machine, as root.
PY := .venv/bin/python
PYTEST := .venv/bin/pytest -q --durations 25 --durations-min 1

# How many labs of the system tests stand at a time; each wants a core and 4 GiB.
LANES ?= 2
export LANES

.PHONY: demo test quick lint types imports unit simulation collection contract system exclusive faults bench docs setup venv clean

# QUICK=1 plays the main job only: no Ansible, no Jenkins.
demo: setup venv
	$(PY) -m demo $(if $(QUICK),--quick)

test: setup venv
	tools/stages lint types imports simulation '&' collection '&' unit contract system simulation \
	  collection exclusive

quick: unit simulation

lint: venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Tests that pytest keeps apart by their folders have modules of one name, which one run cannot check:
# those of tests/system come after all else, and the last is a conftest beside another one.
types: venv
	.venv/bin/mypy
	.venv/bin/mypy --exclude faults/conftest tests/system
	MYPYPATH=tests/system .venv/bin/mypy tests/system/faults/conftest.py

imports: venv
	.venv/bin/lint-imports

unit: venv
	$(PYTEST) -n 2 tests/unit tests/property

# Its time is virtual: it may wait for processors as long as it must.
simulation: venv
	$(PYTEST) -n 2 --timeout 1800 tests/simulation

# Ansible's own checks of the collection, which may wait for processors, too.
collection: venv
	$(PYTEST) --timeout 1800 -m collection tests/contract

# Each module on one worker: its servers are started once.
contract: setup venv
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder -m 'not collection and not faults' tests/contract

system: setup venv
	$(PYTEST) -n $(LANES) -m 'not faults and not exclusive' tests/system

# What judges times has the machine for itself.
exclusive: setup venv
	$(PYTEST) -m 'exclusive and not faults' tests/system

# All system tests, the long ones included. What is measured goes to docs/faults.md and has the machine for itself.
faults: setup venv
	$(PYTEST) -m faults tests/contract
	$(PYTEST) -n $(LANES) -m '' --ignore tests/system/faults tests/system
	mkdir -p dist
	PANNIER_FAULT_NOTES=$(CURDIR)/dist/faults.json $(PYTEST) -m '' tests/system/faults
	tools/fault_table dist/faults.json >docs/faults.md

bench: setup venv
	$(PY) -m bench

docs: venv
	$(PY) -m pannier.cli.reference docs/reference

setup:
	tools/setup

venv: .venv/.made

.venv/.made: pyproject.toml tools/setup
	tools/setup
	test -x .venv/bin/python || /usr/bin/python3 -m venv .venv
	.venv/bin/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
