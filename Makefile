# Every target uses .venv in this folder and makes it when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
STAMP  := $(VENV)/.installed
# Containers. BUILD_ARGS: further options of docker build; GPUS=all: give run-container the GPUs.
DOCKER     ?= docker
IMAGE      ?= snpdeconv:latest
BUILD_ARGS ?=
ENV_FILE   ?= .env
UNPACKED   ?= build/charliecloud
VERSION     = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' snpdeconv/version.py)
REVISION    = $(shell git describe --always --dirty 2>/dev/null || echo unknown)
export DOCKER_BUILDKIT = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types fuzz slow bench bench-gpu bench-ranking container-tests ui submit retrain status logs cancel slurm-tests clean image lock run-container sif charliecloud mlflow-up mlflow-down

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv with the package and its exact dependencies

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## Simulate, train, rank, register and predict, in about three minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh $(DEMO)

test: install  ## Run the default tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: install  ## Damaged inputs for every reader, INPUTS=150 of each, fixed and fresh
	SNPDECONV_FUZZ_INPUTS=$(or $(INPUTS),150) $(BIN)/python -m pytest -n 2 --dist worksteal tests/fuzz

slow: install  ## Run the tests that take longer
	$(BIN)/python -m pytest -m slow

bench: install  ## What this machine trains and imports a second, against its floors, in ten minutes; fills the README
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/two_ranks.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/tables.py

bench-gpu:  ## The same of a GPU, in ten minutes; needs torch, numpy, scipy, scikit-learn, psutil and safetensors only [PYTHON=...]
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --budget 400
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_statistics.py --device cuda --scale full --json benchmarks/results/gpu_statistics.json
	$(PYTHON) benchmarks/tables.py

bench-ranking: install  ## Rank simulated cohorts with every method, for hours; fills the README's tables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/ranking.py --workers 2
	$(BIN)/python benchmarks/ranking.py --seconds-cell --seeds 1000-1002
	$(BIN)/python benchmarks/ranking.py --report
	$(BIN)/python benchmarks/tables.py

slurm-tests: install  ## Real jobs on a SLURM cluster that is started here and stopped again; as root [KILLS=4]
	SNPDECONV_KILLS=$(or $(KILLS),4) $(BIN)/python -m pytest -m 'slurm and not container' --durations=10 tests/slurm

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types  ## Lint, types, the tests that need nothing but Python, and coverage
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov -m 'not gpu and not slurm and not container and not browser' --cov-report=term --cov-fail-under=90

submit: install  ## A job: PRESET=... DATA=folder-or-cohort [CLUSTER=... TRAIT=... NAME=... MODEL=... ARGS=...]
	@: $(if $(and $(PRESET),$(DATA)),,$(error say what: make submit PRESET=small_cpu DATA=folder [CLUSTER=name]))
	$(BIN)/snpdeconv submit $(PRESET) --data $(DATA) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(TRAIT),--trait $(TRAIT)) \
	  $(if $(NAME),--name $(NAME)) $(if $(MODEL),--model $(MODEL)) $(ARGS)

retrain: install  ## Retrain in a job: NAME=model DATA=folder-or-cohort [CLUSTER=... EVERY=7days PRESET=... ARGS=...]
	@: $(if $(and $(NAME),$(DATA)),,$(error say what: make retrain NAME=model DATA=folder [CLUSTER=name EVERY=7days]))
	$(BIN)/python jobs/retrain.py --cluster $(or $(CLUSTER),local) --name $(NAME) --data $(DATA) \
	  $(if $(EVERY),--every $(EVERY)) $(if $(PRESET),--preset $(PRESET)) $(ARGS)

status: install  ## The jobs: state, progress, last metrics, why one failed [JOB=...]
	$(BIN)/snpdeconv status $(JOB)

logs: install  ## What a job wrote [JOB=... ARGS=--follow]
	$(BIN)/snpdeconv logs $(JOB) $(ARGS)

cancel: install  ## End a job: JOB=...
	@: $(if $(JOB),,$(error say which: make cancel JOB=..., see make status))
	$(BIN)/snpdeconv cancel $(JOB)

container-tests: install  ## Build the image and run it, also on SLURM; MLflow on PostgreSQL; a browser; as root on Debian
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m 'container or browser' --durations=15 tests/container tests/ui tests/slurm

ui: install  ## Open the MLflow page of the runs
	$(BIN)/snpdeconv ui

image:  ## Build the container image
	$(DOCKER) build $(BUILD_ARGS) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
	    --build-arg CREATED=$$(date --utc +%Y-%m-%dT%H:%M:%SZ) --tag $(IMAGE) .

lock:  ## Write requirements-image.txt anew: what the image installs, with hashes; needs uv
	uv pip compile pyproject.toml $(foreach one,simulate server search,--extra $(one)) --constraint constraints.txt \
	    --generate-hashes --python-version 3.11 --python-platform linux --no-annotate --no-config --quiet \
	    --no-emit-package torch --custom-compile-command 'make lock' --output-file build/lock.txt
	@# Which torch, and which libraries of CUDA with it, the build says.
	awk '/^[a-z]/ {skip = /^(nvidia-|cuda-|triton)/} !skip' build/lock.txt >requirements-image.txt

run-container: image  ## The demo in a container without network and rights; files in demo/container [ARGS=--set ...]
	@mkdir -p $(DEMO)/container
	@# As whoever calls, so that the files are theirs; root becomes the image's own user.
	@user=$$(id -u):$$(id -g); [ $${user%:*} != 0 ] || { user=10001:10001; chown $$user $(DEMO)/container; }; set -x; \
	$(DOCKER) run --rm --init --user $$user --network none --read-only --tmpfs /tmp --cap-drop ALL \
	    --security-opt no-new-privileges $(if $(GPUS),--gpus $(GPUS) --shm-size 1g) \
	    --volume "$(abspath $(DEMO))/container:/data" --entrypoint bash $(IMAGE) \
	    /opt/snpdeconv/examples/demo.sh /data/demo $(ARGS)
	@echo "/data of the container is $(DEMO)/container here."

sif:  ## Make snpdeconv.sif of the image, for Apptainer
	@type apptainer >/dev/null 2>&1 || { echo "apptainer is not installed here. Where it is, there may be no docker; in two steps:"; \
	    echo "  make image && docker save $(IMAGE) --output snpdeconv.tar      here"; \
	    echo "  apptainer build snpdeconv.sif docker-archive:snpdeconv.tar     there"; exit 1; }
	$(MAKE) image
	mkdir -p build
	$(DOCKER) save --output build/snpdeconv.tar $(IMAGE)
	apptainer build --force snpdeconv.sif docker-archive:build/snpdeconv.tar
	rm build/snpdeconv.tar

charliecloud: image  ## Unpack the image into a folder, for Charliecloud [UNPACKED=build/charliecloud]
	@[ ! -e "$(UNPACKED)" ] || [ -e "$(UNPACKED)/ch/environment" ] || rmdir "$(UNPACKED)" 2>/dev/null || \
	    { echo "$(UNPACKED) is no unpacked image and not empty: give another folder, UNPACKED=..."; exit 2; }
	rm -rf "$(UNPACKED)" && mkdir -p "$(UNPACKED)"
	@# Files lack the environment, and of a pipe make sees the last end only: an end of tar is an end of the export.
	container=$$($(DOCKER) create $(IMAGE)); $(DOCKER) export "$$container" | tar --extract --directory "$(UNPACKED)"; \
	    end=$$?; $(DOCKER) rm "$$container" >/dev/null; exit $$end
	mkdir -p "$(UNPACKED)/ch"
	$(DOCKER) inspect --format '{{range .Config.Env}}{{println .}}{{end}}' $(IMAGE) >"$(UNPACKED)/ch/environment"

# The containers' users must be able to read it; the folder keeps others on this machine from it.
PASSWORD_FILE = $(abspath $(ENV_FILE)).secrets/postgres_password
COMPOSE = SNPDECONV_IMAGE=$(IMAGE) POSTGRES_PASSWORD_FILE=$(PASSWORD_FILE) $(DOCKER) compose --env-file $(ENV_FILE)

mlflow-up: $(PASSWORD_FILE) image  ## Start an MLflow server on PostgreSQL; passwords in .env
	$(COMPOSE) up --detach --wait --wait-timeout 600 mlflow
	@echo "MLflow is at http://$$($(COMPOSE) port mlflow 5000); log in as admin with MLFLOW_ADMIN_PASSWORD of $(ENV_FILE)"

mlflow-down:  ## Stop it; runs and models are kept
	$(COMPOSE) down

$(ENV_FILE):
	@umask 077; while IFS= read -r line; do \
	    case $$line in *=) line=$$line$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n');; esac; echo "$$line"; \
	done <.env.example >$@.new && mv $@.new $@ && echo "wrote $@ with passwords drawn at random"

$(PASSWORD_FILE): $(ENV_FILE)
	@mkdir -p -m 700 $(@D) && rm -f $@ && umask 333 && sed -n 's/^POSTGRES_PASSWORD=//p' $(ENV_FILE) | tr -d '\n' >$@

clean:  ## Remove what the other targets made
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
