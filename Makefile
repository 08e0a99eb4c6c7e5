# Everything one does with this project. `make` alone explains. MODE=docker or MODE=native decides how the fleet runs.
export KAFKA WORKER WORKERS ALL FOLLOW FOR RATE PLAN SEED TARGET
.DEFAULT_GOAL := help
.PHONY: help build up test-shutdown drill restart-worker kill-worker scale-down scale-up status health logs down \
  test check fmt clippy doc no-async-runtime shell deny audit fuzz-check fuzz bench

# $(call mode,WORD): the fleet's mode in the shell variable `mode`, and why: that of the fleet that runs, else MODE, else what this machine can do.
define mode
run=$${STACK_RUN:-.run}; mode=; engine() { docker compose version && docker version; } >/dev/null 2>&1; \
for is in native:fleet.json docker:docker; do if [ -e "$$run/$${is#*:}" ]; then mode=$${is%:*} why="as it runs"; fi; done; \
case "$(MODE)" in \
  '') if [ -z "$$mode" ]; then if engine; then mode=docker why="an engine answers"; else mode=native why="no Docker engine answers"; fi; fi ;; \
  docker|native) [ -z "$$mode" ] || [ "$$mode" = "$(MODE)" ] || [ $(1) = build ] || \
    { echo "a fleet runs in $$mode mode; stop it first: make down MODE=$$mode" >&2; exit 1; }; mode=$(MODE) why="as MODE says" ;; \
  *) echo "MODE '$(MODE)' must be docker or native" >&2; exit 2 ;; \
esac; \
[ $$mode = native ] || engine || { echo "the mode is docker, and no Docker engine with compose answers; MODE=native needs none" >&2; exit 1; }
endef

# $(call fleet,WORD): a word of the fleet, in its mode.
BIN = $(or $(CARGO_TARGET_DIR),target)/release
define fleet
@$(call mode,$(1)); [ $(1) != up ] || echo "mode $$mode ($$why)"; \
if [ $$mode = docker ]; then exec scripts/compose $(1); fi; \
[ -x $(BIN)/fleet ] || { echo "the programs are not built; run make build" >&2; exit 1; }; exec $(BIN)/fleet $(1)
endef

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the programs, optimised; or their image, where a Docker engine answers
	@$(call mode,build); if [ $$mode = docker ]; then exec scripts/compose build; fi; cargo build --release --locked --bins

up: build ## Kafka, one gateway and three workers in the background; prints the address
	$(call fleet,up)
	@echo '  make status'
	@echo '  make test-shutdown     # and meanwhile, in another terminal: make restart-worker, scale-down, kill-worker, scale-up'

down: ## stops them again: gateway, workers, Kafka
	$(call fleet,down)

status: ## what runs, and the fleet as the gateway sees it
	$(call fleet,status)

health: ## is the gateway healthy?
	$(call fleet,health)

logs: ## all logs, and then what comes; FOLLOW=0 only what there is
	$(call fleet,logs)

test-shutdown: ## load and its progress until Ctrl-C (FOR=60s), then the verdict
	$(call fleet,test-shutdown)

drill: ## the proof: faults under load on a fleet of its own, or of TARGET=drills/fleets/make.toml (for MODE=native make up), then the verdict; PLAN, SEED, FOR, RATE
	@cargo build --release --locked --bins
	@$(BIN)/drill run $(PLAN)

restart-worker: ## restarts all workers, one after another; WORKER=id only that one
	$(call fleet,restart-worker)

kill-worker: ## kill -9 for one worker (WORKER=id that one, ALL=1 all); it stays dead until scale-up
	$(call fleet,kill-worker)

scale-down: ## down to one worker (WORKERS=n)
	$(call fleet,scale-down)

scale-up: ## up to three workers (WORKERS=n)
	$(call fleet,scale-up)

test: ## all tests, on the embedded broker, and the model's sweep; KAFKA=apache on a real one; TESTS='--test suite -- p03' only these
	cargo test --locked --no-fail-fast $(or $(TESTS),--workspace)

check: fmt clippy doc no-async-runtime shell deny fuzz-check ## formatting, lints, documentation, scripts, dependencies

fmt: ## is the code formatted?
	cargo fmt --all --check

clippy: ## lints, warnings denied
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc: ## does the documentation build without warnings?
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items

no-async-runtime: ## is the dependency tree free of async runtimes?
	scripts/no-async-runtime

# $(call with,TOOL,COMMAND): CI has every tool; elsewhere a missing one is named and its check skipped.
with = if [ -n "$(CI)" ] || command -v $(1) >/dev/null; then $(2); else echo "$(1): NOT RUN, not installed"; fi

shell: ## shellcheck for all scripts
	@$(call with,shellcheck,shellcheck -x scripts/* .ci/run tests/stack tests/suite/support/janitor.sh)

deny: ## licences, duplicates and sources of the dependencies: cargo-deny
	@$(call with,cargo-deny,cargo deny --workspace --locked check bans licenses sources)

audit: ## published vulnerabilities of the dependencies; cargo-deny downloads their list
	cargo deny --workspace --locked check advisories

# Without the fuzzer's own library, which is C++ and linked only when the targets run.
fuzz-check: ## do the fuzz targets build?
	@CUSTOM_LIBFUZZER_PATH=/dev/null cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)/fuzz

fuzz: ## ten minutes of drawn bytes for heads of requests, ten for chunked bodies; needs cargo-fuzz and a nightly toolchain
	@cargo +nightly fuzz run head -- -max_total_time=600 -max_len=20000
	@cargo +nightly fuzz run chunks -- -max_total_time=600 -max_len=20000

bench: ## the figures of docs/deploy.md, on a Kafka of their own; QUICK=1 for short runs
	cargo bench --locked --bench bench -- $(if $(QUICK),--quick)
