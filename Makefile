# Everything Sluice needs is installed by these targets on a fresh Debian machine with Rust.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.DEFAULT_GOAL := help
.PHONY: help lab test check unit suite check-deploy check-image matrix fuzz test-lab test-kernel test-kernels bench bench-compare bench-stages soak bench-policy bench-records bench-records-day bench-watch build setup setup-image setup-test setup-fuzz setup-kernels setup-bench deny

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: setup ## The main job: a cluster of network namespaces, nine policies, real traffic, a truth table
	$(CARGO) build --release --locked -p sluice
	$(SUDO) $(TARGET)/release/sluice lab

test: setup-test check unit suite check-deploy fuzz test-lab test-kernel ## Everything that CI runs: lints, unit tests, datapath tests, fuzzing, the lab, other kernels

check: ## Formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet

build: ## A debug build of sluice
	$(CARGO) build --locked -p sluice

# All tests are chosen from one build of the whole workspace, which builds the binary too: of other packages cargo
# would unite other features and build most dependencies again.
NEXTEST := $(CARGO) nextest run --locked --workspace

# They wait for the kernel's timers more than for a processor: more run at a time than there are processors.
unit: ## Tests of each crate, with real kernels' rules where a crate needs them
	$(NEXTEST) --test-threads $$((2 * $$(nproc))) -E 'not package(suite) and not package(deploy-tests)'

suite: ## Datapath tests over real sockets in network namespaces (root)
	$(NEXTEST) -E 'package(suite)'

check-deploy: ## Kustomizations, chart and image, with kubectl, helm, published schemas and runc (root)
	$(NEXTEST) -E 'package(deploy-tests)'

check-image: setup-image ## Build deploy/Dockerfile for real, with buildah and images made here, and run it with its rights (root)
	tests/deploy/image.sh $(TARGET)/image
	SLUICE_IMAGE_ROOT=$(abspath $(TARGET))/image/root $(NEXTEST) -E 'package(deploy-tests) and binary(node)'

matrix: ## Run every cell of the support matrix and write its table into tests/README.md (root)
	UPDATE_MATRIX=1 $(NEXTEST) -E 'package(suite) and test(every_row)'
	UPDATE_MATRIX=1 $(NEXTEST) -E 'package(suite) and test(the_matrix_in_the_readme)'

# No sanitizer: there is no unsafe code to watch, and so no nightly toolchain is needed. The workspace's own crates are
# instrumented, and beside them stand the dependencies of the debug build. The inputs that are kept stand in fuzz/corpus;
# what a run finds on its way stays in the target folder, what fails one in fuzz/artifacts.
FUZZ_SECONDS ?= 20
FUZZ_TARGETS := packet manifests probes hello object config
FUZZ_FOUND := $(TARGET)/fuzz/found
# What each is told besides, and what it reads besides what it found.
FUZZ_manifests := -max_len=16384 -dict=fuzz/manifests.dict
FUZZ_probes := -max_len=4096
FUZZ_hello := -max_len=4096
FUZZ_packet := -max_len=512
FUZZ_object := -max_len=8192 -dict=fuzz/manifests.dict
FUZZ_config := -max_len=8192
FUZZ_READ_manifests := deploy/examples

fuzz: setup-fuzz ## Hostile packets, manifests, probes, TLS hellos, API objects and configuration, FUZZ_SECONDS (20) of each
	mkdir -p $(foreach target,$(FUZZ_TARGETS),$(FUZZ_FOUND)/$(target) fuzz/artifacts/$(target))
	cp deploy/config.example.yaml $(FUZZ_FOUND)/config/
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/instrumented.sh $(CARGO) build --locked --workspace --features fuzz/targets --examples
	$(MAKE) --no-print-directory --keep-going --output-sync -j$$(nproc) $(FUZZ_TARGETS:%=fuzz-%)

.PHONY: $(FUZZ_TARGETS:%=fuzz-%)
$(FUZZ_TARGETS:%=fuzz-%): fuzz-%:
	$(TARGET)/debug/examples/$* $(FUZZ_$*) -max_total_time=$(FUZZ_SECONDS) -timeout=30 -rss_limit_mb=2048 -print_final_stats=1 \
		-artifact_prefix=fuzz/artifacts/$*/ $(FUZZ_FOUND)/$* $(wildcard fuzz/corpus/$*) $(FUZZ_READ_$*)

test-lab: ## The lab with a debug build (root)
	$(NEXTEST) --no-run
	$(SUDO) $(TARGET)/debug/sluice lab

KERNELS := bullseye bookworm trixie
test-kernel: setup-kernels ## Doctor and lab on Debian's kernels 5.10, 6.1 and 6.12, in emulated machines; 3 minutes (root)
	$(NEXTEST) --no-run
	tests/kernels/run.sh short $(KERNELS)

test-kernels: setup-kernels ## Debian's kernels 5.10, 6.1 and 6.12 in emulated machines, whole and with less: doctor, lab, the datapath's tests; a table (root)
	$(NEXTEST) --no-run
	tests/kernels/run.sh iptables bullseye
	tests/kernels/run.sh legacy bullseye
	tests/kernels/run.sh conntrack bullseye
	tests/kernels/run.sh bare bullseye
	tests/kernels/run.sh whole $(KERNELS)
	$(NEXTEST) -E 'package(suite) and test(the_table_of_kernels)'

bench: setup-bench ## Beside HAProxy, nginx and no proxy, interleaved: a table, ratios, targets, JSON; 10 minutes (root)
	$(CARGO) build --release --locked -p sluice -p benches
	$(SUDO) $(TARGET)/release/bench-datapath proxies --sluice $(TARGET)/release/sluice --json $(TARGET)/bench.json $(BENCH_ARGS)

bench-compare: setup-bench ## This tree beside a revision: make bench-compare BASE=main; fails past a loss of 10 % (root)
	$(if $(BASE),,$(error BASE is not set: make bench-compare BASE=<revision>))
	rm -rf $(TARGET)/bench-base && git worktree prune
	git worktree add --detach $(TARGET)/bench-base $(BASE)
	cd $(TARGET)/bench-base && CARGO_TARGET_DIR=$(abspath $(TARGET))/base $(CARGO) build --release --locked -p sluice
	$(CARGO) build --release --locked -p sluice -p benches
	$(SUDO) $(TARGET)/release/bench-datapath revisions --base $(TARGET)/base/release/sluice \
		--sluice $(TARGET)/release/sluice --json $(TARGET)/bench-compare.json $(BENCH_ARGS)

bench-stages: ## Micro benches of the stages of a connection's way
	$(CARGO) bench --locked -p benches --bench stages

soak: setup ## Two minutes of churn of every kind on one node; fails when anything grows or stalls (root)
	$(CARGO) build --release --locked -p sluice -p benches
	$(SUDO) $(TARGET)/release/bench-datapath soak --sluice $(TARGET)/release/sluice $(SOAK_ARGS)

bench-policy: ## The policy cache in clusters of 1,000 to 150,000 pods: time, memory, targets met or missed
	$(CARGO) build --release --locked -p policy-bench
	$(TARGET)/release/bench-policy

bench-records: ## Each sink of records on one core: records/s, processor time, bytes, how long a submitter is held up
	$(CARGO) build --release --locked -p records-bench
	$(TARGET)/release/bench-records sinks

RECORDS_DAY ?= 10000000
bench-records-day: ## A store with a day of records (RECORDS_DAY of them), and how long questions to it take
	$(CARGO) build --release --locked -p records-bench -p sluice
	$(TARGET)/release/bench-records day $(TARGET)/records-day-$(RECORDS_DAY) --records $(RECORDS_DAY) --sluice $(TARGET)/release/sluice

bench-watch: ## Following the API of 150,000 pods from a local server: time, memory, processor, targets met or missed
	$(CARGO) build --release --locked -p watch-bench
	$(TARGET)/release/bench-watch

deny: ## Licences, advisories and who may depend on what (installs cargo-deny on first use)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

setup: ## Install the system's packages that Sluice needs (Debian)
	@deploy/setup-debian.sh

setup-test: setup ## The same, cargo-nextest, and what the deployment is checked with
	@deploy/setup-debian.sh test
	@deploy/setup-deploy-tools.sh $(TARGET)/deploy-tools
	@command -v cargo-nextest >/dev/null || $(CARGO) install --locked cargo-nextest

setup-image: setup-test ## The same, and what builds an image without an engine
	@deploy/setup-debian.sh image

setup-fuzz: setup ## The same, and what libFuzzer is compiled with
	@deploy/setup-debian.sh fuzz

setup-kernels: setup ## The same, and what boots kernels: qemu and the parts of a small system
	@deploy/setup-debian.sh kernels

setup-bench: setup ## The same, and the proxies that Sluice is measured beside; none of them is started
	@deploy/setup-debian.sh bench
