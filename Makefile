SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

RELEASE ?=
CHANNEL ?= registry
IMAGE ?=
JOBS ?= 2

KILN := .venv/bin/kiln
PYTEST := .venv/bin/python -m pytest
# The tests of a file share what they prepare.
PARALLEL := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
SELECT := $(addprefix --release ,$(RELEASE)) --channel $(CHANNEL) $(addprefix --image ,$(IMAGE))

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what the other targets need, start a Docker engine if none answers
	@scripts/setup

.PHONY: setup-tests
setup-tests: ## The same, and what the tests need: a browser
	@scripts/setup tests

.PHONY: images
images: setup ## Bake the images of RELEASE (default: the newest) on CHANNEL (default registry); IMAGE=cpu for one
	@$(KILN) bake $(SELECT)

.PHONY: plan
plan: setup ## Show what make images would build, and why
	@$(KILN) plan $(SELECT)

.PHONY: lint
lint: setup ## Run the linters alone
	@$(PYTEST) -q tests/test_lint.py

.PHONY: test
test: setup-tests ## Bake the current release, and the one before for upgrades, and run the tests, JOBS (2) at a time
	@$(KILN) bake --inputs
	@$(KILN) bake --release all --image cpu
	@$(PYTEST) -m "alone and not long"
	@$(PYTEST) $(PARALLEL) -m "not alone and not long"

.PHONY: test-all
test-all: setup-tests ## Bake both releases and run every test, the long ones too
	@$(KILN) bake --release all --inputs
	@$(PYTEST) -m alone
	@$(PYTEST) $(PARALLEL) -m "not alone"

.PHONY: mutate
mutate: setup ## Break an image (IMAGE, default cpu) in every known way and show which check finds it
	@$(KILN) mutate $(addsuffix /,$(RELEASE))$(or $(IMAGE),cpu)

.PHONY: guide
guide: setup ## Type every command of the user guide into a node of IMAGE (default cpu)
	@$(KILN) guide --image $(or $(IMAGE),cpu)

.PHONY: docs
docs: setup ## Write docs/guide.*.md anew from the tables
	@$(KILN) guide --docs

.PHONY: upgrade
upgrade: setup ## Rehearse the upgrade of an image (IMAGE, default cpu) to the newest release, /data compared
	@$(KILN) bake --release all --image $(or $(IMAGE),cpu)
	@$(KILN) upgrade --image $(or $(IMAGE),cpu)

.PHONY: benchmark-node
benchmark-node: setup ## Time the frameworks of IMAGE (default cpu) on this processor, beside the platform's published speed
	@.venv/bin/python benchmarks/node.py $(addprefix --image ,$(IMAGE))

.PHONY: clean
clean: setup ## Remove images, stages and products that the tables no longer lead to
	@$(KILN) gc
