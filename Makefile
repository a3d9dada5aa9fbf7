# Folder of the programs that the demo and the benchmarks run.
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
# Where scripts/setup.sh puts cargo-nextest.
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.PHONY: help setup build dist agent-rpi agent-rpi32 agent-jetson agent-pc deploy demo test test-emulated parity gpu-check service-check lint fmt bench clean

help: ## Show this.
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## Get what is not built from source (nats-server), into .tools.
	@scripts/setup.sh

build: ## Build dunlin, dunlin-agent and its engine tract, optimised.
	cargo build --release -p agent -p broker-api -p tract-helper

dist: ## Build everything that is copied to machines, into dist/, with checksums and SBOMs.
	@scripts/dist.sh

agent-rpi: ## Build the agent for Raspberry Pi 3 and later with a 64-bit system.
	@scripts/dist.sh dunlin-agent-aarch64

agent-rpi32: ## Build the agent for Raspberry Pi 2 and later with a 32-bit system.
	@scripts/dist.sh dunlin-agent-armv7

agent-jetson: ## Build the agent for Jetson, with its GPU.
	@scripts/dist.sh dunlin-agent-accel-aarch64

agent-pc: ## Build the agent for a PC, with its GPU.
	@scripts/dist.sh dunlin-agent-accel-x86_64

deploy: ## Put the agent on a device and start it: HOST=user@host NATS=URL ARGS="--label a=b".
	@scripts/deploy.sh "$(HOST)" $(if $(NATS),--nats "$(NATS)") $(ARGS)

demo: setup build ## Three agents learn digits together and answer; KEEP=1 leaves them running.
	@PROGRAMS=$(RELEASE) KEEP=$(KEEP) scripts/demo.sh

test: ## Run every test.
	@scripts/setup.sh tests
	cargo build --workspace --bins --quiet
	cargo nextest run --workspace
	cargo test --workspace --doc --quiet

test-emulated: ## Agents of 64-bit and 32-bit ARM learn and answer beside this machine's, in QEMU.
	@scripts/setup.sh tests
	cargo build --workspace --bins --quiet
	programs=$$(scripts/emulated.sh) && DUNLIN_EMULATED=$$programs cargo nextest run --workspace emulated

parity: ## Train beside PyTorch's figures on 64-bit and 32-bit ARM, emulated.
	@scripts/parity.sh

gpu-check: ## On a machine with an NVIDIA GPU: run the CUDA and Vulkan engines on it.
	@scripts/gpu-check.sh

service-check: ## As root: deploy to a container with a real systemd, and check the service there.
	@scripts/service-check.sh

lint: ## Check formatting, lints and documentation.
	@scripts/lint.sh

fmt: ## Format the code.
	cargo fmt --all

# All that scripts/bench.sh measures, the shortest first.
BENCHES := start answer round memory aggregate takeover attack bytes scale privacy infer train secagg accuracy reference

bench: ## Measure start, answer, round, infer and train; WHAT="bytes scale" chooses, WHAT=all is every promise of the README, in hours. BENCH_STRICT=1 fails where a bar is missed.
	@scripts/setup.sh bench
	@scripts/bench.sh $(if $(filter all,$(WHAT)),$(BENCHES),$(WHAT))

clean: ## Remove what was built and fetched.
	cargo clean
	rm -rf dist .tools
