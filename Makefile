# Two commands matter: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
DLEN := $(VENV)/bin/dlen
STAMP := $(VENV)/.installed
COMPILED := bundle/compiled.pyx bundle/operators/native.pyx fusion/compiled.pyx service/compiled_tally.pyx service/wire/compiled_json.pyx service/wire/compiled_arrow.pyx training/compiled.pyx
URL ?= http://127.0.0.1:8080

.PHONY: help install run test check fuzz sanitize sbom lock clean

help:
	@echo "make run      set up everything, train on a simulated feed, serve it, rank one request"
	@echo "make test     set up everything and pass every check and test"
	@echo "make install  the environment only (.venv)"
	@echo "make check    lint, types and import contracts"
	@echo "make fuzz     send generated requests to the service at URL (http://127.0.0.1:8080) for long"
	@echo "make sanitize tests of the compiled loops under address and undefined-behaviour sanitizers"
	@echo "make sbom     list what the service image holds into sbom.json (CycloneDX)"
	@echo "make lock     resolve the dependencies again into requirements/"
	@echo "make clean    remove what make run made; keeps .venv"

install: $(STAMP)

# torch goes first, by pip and by name, so that the build for this machine is chosen once and kept.
$(STAMP): requirements/dev.lock requirements/torchrec-cpu.txt pyproject.toml setup.py $(COMPILED) $(wildcard bundle/operators/*.[ch])
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

# A file's tests stay in one process, on a core each: half the time on two cores. The longest files go first (conftest.py).
test: check
	$(VENV)/bin/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fuzz: install
	$(VENV)/bin/schemathesis run $(URL)/openapi.json --checks all --max-examples 500

# In a copy, so that what is served stays as it is. Python's own memory comes from malloc, which the sanitizers watch.
sanitize: install
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r bundle fusion service simulator training model_export loadtest tests configs cli.py setup.py pyproject.toml build/sanitize
	find build/sanitize -name '*.so' -delete
	cd build/sanitize && DLEN_SANITIZE=1 $(CURDIR)/$(VENV)/bin/python setup.py --quiet build_ext --inplace
	cd build/sanitize && PYTHONPATH=. PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0,abort_on_error=1 \
	  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	  $(CURDIR)/$(VENV)/bin/python -m pytest -p no:cacheprovider --timeout 3000 \
	  tests/service/test_arrow.py tests/service/test_typed_json.py tests/service/test_write_items.py tests/service/test_tally.py tests/bundle/test_encode.py tests/bundle/test_encode_row.py tests/bundle/test_items.py tests/fusion/test_formulas.py tests/model_export/test_operators.py tests/model_export/test_operator_refusals.py

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
