# Two commands matter: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
DLEN := $(VENV)/bin/dlen
STAMP := $(VENV)/.installed
COMPILED := bundle/compiled.pyx service/wire/compiled.pyx training/compiled.pyx
URL ?= http://127.0.0.1:8080

.PHONY: help install run test check fuzz sbom lock clean

help:
	@echo "make run      set up everything, train on a simulated feed, serve it, rank one request"
	@echo "make test     set up everything and pass every check and test"
	@echo "make install  the environment only (.venv)"
	@echo "make check    lint, types and import contracts"
	@echo "make fuzz     send generated requests to the service at URL (http://127.0.0.1:8080) for long"
	@echo "make sbom     list what the service image holds into sbom.json (CycloneDX)"
	@echo "make lock     resolve the dependencies again into requirements/"
	@echo "make clean    remove what make run made; keeps .venv"

install: $(STAMP)

# torch goes first, by pip and by name, so that the build for this machine is chosen once and kept.
$(STAMP): requirements/dev.lock requirements/torchrec-cpu.txt pyproject.toml setup.py $(COMPILED)
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^torch==' requirements/dev.lock)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/torchrec-cpu.txt
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@ls $(COMPILED:.pyx=.*.so) >/dev/null 2>&1 \
	  || echo "no C compiler, or no headers of Python: requests will take about a fifth more CPU time (docs/serving.md)"
	@touch $@

run: install
	@$(DLEN) demo

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# A file's tests stay in one process, on a core each: half the time on two cores.
test: check
	$(VENV)/bin/pytest -n auto --maxprocesses 4 --dist loadfile

fuzz: install
	$(VENV)/bin/schemathesis run $(URL)/openapi.json --checks all --max-examples 500

sbom: install
	$(VENV)/bin/cyclonedx-py requirements requirements/service.lock --pyproject pyproject.toml \
	  --output-reproducible --output-format JSON --validate --output-file sbom.json

lock:
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check pip-tools
	$(VENV)/bin/pip-compile --quiet --extra service,loadtest,train,otel,dev --strip-extras --no-header \
	  --no-emit-options --no-emit-find-links --no-emit-index-url --no-emit-trusted-host \
	  --output-file requirements/dev.lock pyproject.toml
	sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/' requirements/dev.lock
	$(VENV)/bin/pip-compile --quiet --extra service --strip-extras --generate-hashes --no-header --no-emit-options \
	  --no-emit-find-links --no-emit-index-url --no-emit-trusted-host --output-file requirements/service.lock pyproject.toml
	$(VENV)/bin/pip-compile --quiet --build-deps-for wheel --only-build-deps --strip-extras --generate-hashes --allow-unsafe \
	  --no-header --no-emit-options --no-emit-find-links --no-emit-index-url --no-emit-trusted-host \
	  --output-file requirements/build.lock pyproject.toml

clean:
	rm -rf .run data/demo runs/demo models/demo
