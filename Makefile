# Every target sets up what it needs by itself and can be repeated. `make` alone explains them.
.DEFAULT_GOAL := help
SHELL := bash
BIN := .venv/bin
BUDGET ?= 3m
BROKER ?= kafka
CHAOS = $(if $(filter pubsub,$(BROKER)),tools.chaos.pubsub,tools.chaos --duration $(LENGTH))
CONTROLS = $(if $(filter pubsub,$(BROKER)),tools.chaos.pubsub.controls,tools.chaos.controls tools.chaos.link tools.chaos.reload)
# What decides alone, without a service: every branch of it is tested.
PURE := connectors.records connectors.codec connectors.relay connectors.loop fmnist_images fmnist_wire

.PHONY: help
help: ## say what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## virtual environment, Java, data set; quick when they are there
	@tools/setup.sh

.PHONY: train
train: setup ## train a classifier on Fashion-MNIST; BUDGET=3m, 15m, …
	$(BIN)/python -m training train --budget $(BUDGET)

.PHONY: archive
archive: setup ## model_store/fmnist.mar of the latest run; trains first when there is none
	$(BIN)/python -m tools.archive

model_store/fmnist.mar: | setup
	$(BIN)/python -m tools.archive

.PHONY: serve
serve: setup model_store/fmnist.mar ## TorchServe in the foreground; Ctrl-C ends it
	@$(BIN)/python -m tools.serve

.PHONY: maven
maven:
	@tools/setup.sh maven

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
test: setup maven archive ## format, lint, types and all tests, with real services: what CI runs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PURE:%=--cov=%) --cov-branch --cov-report=term-missing --cov-fail-under=100

chaos: LENGTH ?= 1200
.PHONY: chaos
chaos: setup maven model_store/fmnist.mar ## kills, zombies, broken servers; BROKER=kafka, pubsub LENGTH=1200 SEED=…
	$(BIN)/python -m $(CHAOS) $(if $(SEED),--seed $(SEED))

.PHONY: chaos-controls
chaos-controls: setup maven model_store/fmnist.mar ## relays with known bugs: each must be noticed; 15 minutes; BROKER=kafka, pubsub
	$(foreach each,$(CONTROLS),$(BIN)/python -m $(each) &&) true

.PHONY: bench
bench: setup maven model_store/fmnist.mar ## the daemon beside the library's plain subscriber; BROKER=pubsub
	$(BIN)/python -m tools.bench $(BROKER)

.PHONY: outage
outage: setup maven model_store/fmnist.mar ## TorchServe away for a minute under load; RATE=240
	$(BIN)/python -m tools.chaos.outage $(if $(RATE),--rate $(RATE))

.PHONY: killer
killer: setup maven archive ## an image that kills the worker, in a full pack
	$(BIN)/python -m tools.chaos.killer

soak: LENGTH ?= 600
.PHONY: soak
soak: setup maven model_store/fmnist.mar ## the memory of a relay at full speed, 10 minutes; LENGTH=600
	$(BIN)/python -m tools.chaos.soak --length $(LENGTH)

.PHONY: mutants
mutants: setup ## plant bugs in the connectors, one at a time: the fast tests notice each
	$(BIN)/python -m tools.mutants

.PHONY: format
format: setup ## format the code and mend what the linter can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: lock
lock: setup ## pin the dependencies of pyproject.toml anew, with hashes, in requirements.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --generate-hashes --universal \
	  --python-version 3.11 --no-emit-index-url --custom-compile-command "make lock" \
	  --upgrade --output-file requirements.txt

.PHONY: clean
clean: ## remove what was made, but for the environment, the data and the runs
	rm -rf build run logs .pytest_cache .mypy_cache .ruff_cache .hypothesis model_store/*.mar
