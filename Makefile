# Everything Sluice needs is installed by these targets on a fresh Debian machine with Rust.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.DEFAULT_GOAL := help
.PHONY: help lab test check unit suite test-lab bench bench-policy build setup setup-test deny

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: setup ## The main job: a cluster of network namespaces, nine policies, real traffic, a truth table
	$(CARGO) build --release --locked -p sluice
	$(SUDO) $(TARGET)/release/sluice lab

test: setup-test check unit suite test-lab ## Everything that CI runs: lints, unit tests, datapath tests, the lab

check: ## Formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet

build: ## A debug build of sluice
	$(CARGO) build --locked -p sluice

unit: build ## Tests of each crate, with real kernels' rules where a crate needs them
	$(CARGO) nextest run --locked --workspace --exclude suite

suite: build ## Datapath tests over real sockets in network namespaces (root)
	$(CARGO) nextest run --locked -p suite

test-lab: build ## The lab with a debug build (root)
	$(SUDO) $(TARGET)/debug/sluice lab

bench: setup ## Direct against through Sluice, interleaved; prints ratios (root)
	$(CARGO) build --release --locked -p sluice -p benches
	$(SUDO) $(TARGET)/release/bench-datapath --sluice $(TARGET)/release/sluice

bench-policy: ## The policy cache in clusters of 1,000 to 150,000 pods: time, memory, targets met or missed
	$(CARGO) build --release --locked -p policy-bench
	$(TARGET)/release/bench-policy

deny: ## Licences, advisories and who may depend on what (installs cargo-deny on first use)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

setup: ## Install the system's packages that Sluice needs (Debian)
	@deploy/setup-debian.sh

setup-test: setup ## The same, and cargo-nextest
	@command -v cargo-nextest >/dev/null || $(CARGO) install --locked cargo-nextest
