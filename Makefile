# Folder of the programs that the demo and the benchmarks run.
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help setup build dist demo test parity lint fmt bench clean

help: ## Show this.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## Get what is not built from source (nats-server), into .tools.
	@scripts/setup.sh

build: ## Build dunlin and dunlin-agent, optimised.
	cargo build --release -p agent -p broker-api

dist: ## Build the static agent that is copied to devices of this architecture.
	@scripts/dist.sh

demo: setup build ## Three agents learn digits together and answer; KEEP=1 leaves them running.
	@PROGRAMS=$(RELEASE) KEEP=$(KEEP) scripts/demo.sh

test: ## Run every test.
	@scripts/setup.sh tests
	cargo build --workspace --bins --quiet
	cargo nextest run --workspace
	cargo test --workspace --doc --quiet

parity: ## Train beside PyTorch's figures on 64-bit and 32-bit ARM, emulated.
	@scripts/parity.sh

lint: ## Check formatting, lints and documentation.
	@scripts/lint.sh

fmt: ## Format the code.
	cargo fmt --all

bench: ## Measure every promise of the README; WHAT="train round" chooses.
	@scripts/setup.sh
	@scripts/bench.sh $(WHAT)

clean: ## Remove what was built and fetched.
	cargo clean
	rm -rf .tools
