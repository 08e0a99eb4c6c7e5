# One image with all programs. Two stages: the first has the compiler, the second what the programs need to run.
#
#   docker build -t lastcall .
#   docker run --rm lastcall worker --help

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# For a build that is quick and not small: off.
ARG CARGO_PROFILE_RELEASE_LTO=thin
# Names of functions stay for a backtrace; lines of code would double the size of the image.
ENV CARGO_PROFILE_RELEASE_DEBUG=false
# Dependencies first, in a layer of their own that changes with Cargo.lock only. Tests, benches and examples are not part of the
# image, so the manifest ends before them.
COPY Cargo.toml Cargo.lock ./
# The model is no part of the image either, but the workspace and its lock file name it: a manifest and an empty library.
COPY crates/model/Cargo.toml crates/model/
RUN sed -i '/^\[\[test\]\]/,$d' Cargo.toml \
 && mkdir src crates/model/src && touch src/lib.rs crates/model/src/lib.rs \
 && cargo build --release --locked --lib
COPY drills drills
COPY src src
# Newer than the empty library of the layer before, whatever the files' own times say.
RUN touch src/lib.rs && cargo build --release --locked --bins \
 && mkdir -p /programs /runtime && find target/release -maxdepth 1 -type f -executable -exec cp -t /programs {} +

# distroless/cc: the C library and root certificates, no shell, no package manager. slim Debian would do as well; it is 50 MB
# more, all of it things that a service should not find when somebody has broken into it.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /programs/ /usr/local/bin/
# Where a worker refreshes its health file; mount a small tmpfs here when the root is read-only.
COPY --from=build --chown=65532:65532 /runtime /run/lastcall
ENV HTTP_ADDR=0.0.0.0:8080 HEALTH_FILE=/run/lastcall/health
# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# The programs are found by name, without a shell: the one that is named is process 1 and gets the signals itself.
CMD ["gateway"]
