# Two images from one build: the two services with the program dead (the default target), and the drill.
#
#   docker build -t lastcall .
#   docker run --rm lastcall worker --help
#   docker build -t lastcall-drill --target drill .

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /build
# For a build that is quick and not small: off, and 16.
ARG CARGO_PROFILE_DIST_LTO=thin CARGO_PROFILE_DIST_CODEGEN_UNITS=4
# Dependencies first, in a layer of their own that changes with the manifests only: every crate of the workspace as an empty library. Tests,
# benches and examples are not part of the image, so the manifest ends before them.
COPY Cargo.toml Cargo.lock ./
COPY crates/devbroker/Cargo.toml crates/devbroker/
COPY crates/drill/Cargo.toml crates/drill/
COPY crates/fleet/Cargo.toml crates/fleet/
COPY crates/kafka-share/Cargo.toml crates/kafka-share/
COPY crates/model/Cargo.toml crates/model/
COPY crates/program/Cargo.toml crates/program/
RUN sed -i '/^\[\[test\]\]/,$d' Cargo.toml \
 && for crate in . crates/*; do mkdir $crate/src && touch $crate/src/lib.rs; done \
 && cargo build --profile dist --locked --lib -p lastcall -p drill
COPY drills drills
COPY crates crates
COPY src src
# Newer than the empty libraries of the layer before, whatever the files' own times say.
RUN touch src/lib.rs crates/*/src/lib.rs \
 && cargo build --profile dist --locked -p lastcall -p drill --bins && mkdir /runtime

# distroless/cc: the C library and root certificates, no shell, no package manager. Its tags have no version: to pin it,
# add the digest that your registry shows (nonroot@sha256:...).
FROM gcr.io/distroless/cc-debian12:nonroot AS base
# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.title=lastcall \
      org.opencontainers.image.description="Runs tasks for callers over HTTP on a fleet of workers that can be stopped at any moment without losing one" \
      org.opencontainers.image.version=0.1.0 \
      org.opencontainers.image.licenses=Apache-2.0

FROM base AS drill
COPY --from=build /build/target/dist/drill /usr/local/bin/
CMD ["drill", "watch"]

FROM base AS services
COPY --from=build /build/target/dist/dead /build/target/dist/gateway /build/target/dist/worker /usr/local/bin/
# Where a worker refreshes its health file; mount a small tmpfs here when the root is read-only.
COPY --from=build --chown=65532:65532 /runtime /run/lastcall
ENV HTTP_ADDR=0.0.0.0:8080 HEALTH_FILE=/run/lastcall/health
EXPOSE 8080
# The programs are found by name, without a shell: the named program is process 1 and gets the signals itself.
CMD ["gateway"]
