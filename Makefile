# The commands of this project; `make` lists them. MODE=docker or MODE=native decides how the fleet runs.
export KAFKA WORKER WORKERS ALL FOLLOW FOR RATE PLAN SEED TARGET
.DEFAULT_GOAL := help
.PHONY: help build up test-shutdown drill restart-worker kill-worker quiet resume scale-down scale-up status health logs down \
  test check fmt clippy doc no-async-runtime shell deny audit fuzz-check fuzz bench

# $(call mode,COMMAND): sets the shell variables `mode` and `why`. A running fleet keeps its mode; otherwise MODE
# decides, or else whether there is a running Kafka, which containers cannot use, or a Docker engine that answers.
define mode
run=$${STACK_RUN:-.run}; mode=; engine() { docker compose version && docker version; } >/dev/null 2>&1; \
for is in native:fleet.json docker:docker; do if [ -e "$$run/$${is#*:}" ]; then mode=$${is%:*} why="the running fleet has it"; fi; done; \
case "$(MODE)" in \
  '') if [ -n "$$mode" ]; then :; elif [ -n "$$KAFKA_BOOTSTRAP_SERVERS" ]; then mode=native why="KAFKA_BOOTSTRAP_SERVERS is set"; \
    elif engine; then mode=docker why="a Docker engine answers"; else mode=native why="no Docker engine answers"; fi ;; \
  docker|native) [ -z "$$mode" ] || [ "$$mode" = "$(MODE)" ] || [ $(1) = build ] || \
    { echo "a fleet runs in $$mode mode; stop it first: make down MODE=$$mode" >&2; exit 1; }; mode=$(MODE) why="set by MODE" ;; \
  *) echo "MODE '$(MODE)' must be docker or native" >&2; exit 2 ;; \
esac; \
[ $$mode = native ] || [ $(1) != up ] || [ -z "$$KAFKA_BOOTSTRAP_SERVERS$$KAFKA_SECURITY_PROTOCOL" ] || \
  { echo "KAFKA_BOOTSTRAP_SERVERS or KAFKA_SECURITY_PROTOCOL: set; expected only with MODE=native, since containers have a Kafka of their own" >&2; exit 2; }; \
[ $$mode = native ] || engine || { echo "the mode is docker, but no Docker engine with compose answers; MODE=native needs none" >&2; exit 1; }
endef

# $(call fleet,COMMAND): runs a command of the fleet in its mode.
BIN = $(or $(CARGO_TARGET_DIR),target)/release
define fleet
@$(call mode,$(1)); [ $(1) != up ] || echo "mode $$mode ($$why)"; \
if [ $$mode = docker ]; then exec scripts/compose $(1); fi; \
[ -x $(BIN)/fleet ] || { echo "the programs are not built; run make build" >&2; exit 1; }; exec $(BIN)/fleet $(1)
endef

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the optimised programs, or their image if the mode is docker
	@$(call mode,build); if [ $$mode = docker ]; then exec scripts/compose build; fi; cargo build --release --locked --bins

up: build ## start Kafka, one gateway and three workers in the background, and print the address
	$(call fleet,up)
	@echo '  make status'
	@echo '  make test-shutdown     # meanwhile, in another terminal: make restart-worker, scale-down, kill-worker, scale-up'

down: ## stop gateway, workers and Kafka
	$(call fleet,down)

status: ## show the processes, and the fleet as the gateway sees it
	$(call fleet,status)

health: ## show the health of the gateway
	$(call fleet,health)

logs: ## show all logs and follow them; FOLLOW=0: do not follow
	$(call fleet,logs)

test-shutdown: ## send load and show progress until Ctrl-C or FOR=60s, then the verdict
	$(call fleet,test-shutdown)

drill: ## the proof: faults under load on a fleet of its own, or of TARGET=drills/fleets/make.toml (for MODE=native make up), then the verdict; PLAN, SEED, FOR, RATE
	@cargo build --release --locked --bins
	@$(BIN)/drill run $(PLAN)

restart-worker: ## restart all workers one after another; WORKER=id: only this worker
	$(call fleet,restart-worker)

kill-worker: ## kill -9 for a worker (WORKER=id: this worker, ALL=1: all); it stays dead until scale-up
	$(call fleet,kill-worker)

quiet: ## let all workers, or WORKER=id, take no new tasks and finish those in flight (SIGUSR1)
	$(call fleet,quiet-worker)

resume: ## let quiet workers take tasks again (SIGUSR2); WORKER=id: only this worker
	$(call fleet,resume-worker)

scale-down: ## scale to one worker, or to WORKERS=n
	$(call fleet,scale-down)

scale-up: ## scale to three workers, or to WORKERS=n
	$(call fleet,scale-up)

test: ## run all tests on the embedded broker, and the model; KAFKA=apache: a real Kafka; TESTS='--test suite -- p03': these
	cargo test --locked --no-fail-fast $(or $(TESTS),--workspace)

check: fmt clippy doc no-async-runtime shell deny fuzz-check ## check formatting, lints, documentation, scripts, dependencies

fmt: ## check the formatting
	cargo fmt --all --check

clippy: ## run the lints, warnings denied
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc: ## build the documentation, warnings denied
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items

no-async-runtime: ## check that the dependency tree has no async runtime
	scripts/no-async-runtime

# $(call with,TOOL,COMMAND): runs the command. Without the tool, CI fails; elsewhere the check is skipped with a
# message.
with = if [ -n "$(CI)" ] || command -v $(1) >/dev/null; then $(2); else echo "$(1): NOT RUN, not installed"; fi

shell: ## run shellcheck on all scripts
	@$(call with,shellcheck,shellcheck -x scripts/* .ci/run deploy/rights/kafka-acls deploy/secured/make-secrets tests/stack tests/suite/support/janitor.sh)

deny: ## check licences, duplicates and sources of the dependencies (cargo-deny)
	@$(call with,cargo-deny,cargo deny --workspace --locked check bans licenses sources)

audit: ## check the dependencies for published vulnerabilities; cargo-deny downloads their list
	cargo deny --workspace --locked check advisories

# Without the fuzzer's C++ library, which is needed only to run the targets.
fuzz-check: ## check that the fuzz targets build
	@CUSTOM_LIBFUZZER_PATH=/dev/null cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)/fuzz

fuzz: ## fuzz heads of requests, chunked bodies and logins, ten minutes each; needs cargo-fuzz and a nightly toolchain
	@cargo +nightly fuzz run head -- -max_total_time=600 -max_len=20000
	@cargo +nightly fuzz run chunks -- -max_total_time=600 -max_len=20000
	@cargo +nightly fuzz run sasl -- -max_total_time=600 -max_len=2000

bench: ## measure the figures of docs/deploy.md on a Kafka of their own; QUICK=1: short runs
	cargo bench --locked --bench bench -- $(if $(QUICK),--quick)
