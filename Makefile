# Everything a developer does with this project. `make` alone explains.
.DEFAULT_GOAL := help
.PHONY: help build test check fmt clippy doc no-async-runtime bench up down status health logs

# Most tests of a bound run alone (tests/suite/support/mod.rs); the others wait more than they work.
TEST_THREADS ?= 4

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the programs, optimised: target/release/gateway, target/release/worker
	cargo build --release --locked --bins

test: ## all tests, on a Kafka of their own
	cargo test --locked -- --test-threads=$(TEST_THREADS)

check: fmt clippy doc no-async-runtime ## formatting, lints, documentation, dependencies

fmt: ## is the code formatted?
	cargo fmt --check

clippy: ## lints, warnings denied
	cargo clippy --locked --all-targets -- -D warnings

doc: ## does the documentation build without warnings?
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items

no-async-runtime: ## is the dependency tree free of async runtimes?
	scripts/no-async-runtime

bench: ## the figures of the README, on a Kafka of their own; QUICK=1 for short runs
	cargo bench --locked --bench bench -- $(if $(QUICK),--quick)

up: build ## Kafka, one gateway and three workers in the background; prints the address
	@scripts/stack up

down: ## stops them again
	@scripts/stack down

status: ## what runs, and what the gateway says of the workers
	@scripts/stack status

health: ## is the gateway healthy?
	@scripts/stack health

logs: ## the last lines of every log; FOLLOW=1 goes on
	@scripts/stack logs
