# The server, its client and the bundled model, for the CPU.
#
#   docker build -t smt-serve .
#   docker run --read-only --tmpfs /tmp -v smt:/var/lib/smt -p 50051:50051 smt-serve
#
# Its configuration is /etc/smt/server.yaml; SMT_… variables and flags after the image's name come before it.
FROM debian:bookworm-slim AS build
WORKDIR /src
# The packages first: they are kept while only the code changes.
COPY scripts/lib.sh scripts/setup scripts/
RUN SMT_TORCH=cpu scripts/setup --serve
COPY CMakeLists.txt CMakePresets.json ./
COPY cmake cmake
COPY proto proto
COPY model model
COPY server server
COPY client client
# hadolint ignore=SC2016
RUN cmake --preset release -DSMT_BUILD_TESTS=OFF -DSMT_CUDA=OFF -DCMAKE_INSTALL_PREFIX=/opt/smt \
      -DCMAKE_INSTALL_RPATH='$ORIGIN/../libtorch/torch/lib' \
 && cmake --build build/release \
 && cmake --install build/release --strip
COPY deploy/docker/collect-libraries /usr/local/bin/
RUN collect-libraries /opt/smt

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="SMT Serve" \
      org.opencontainers.image.description="Text generation from a Stride Memory Transformer over gRPC, with sessions that last" \
      org.opencontainers.image.version="0.1.0"
COPY --from=build /opt/smt/debian-packages /tmp/debian-packages
# hadolint ignore=DL3008
RUN apt-get update \
 && xargs apt-get install -y --no-install-recommends </tmp/debian-packages \
 && rm -rf /var/lib/apt/lists/* /tmp/debian-packages \
 && groupadd --gid 10001 smt \
 && useradd --uid 10001 --gid smt --no-create-home --home-dir /var/lib/smt smt \
 && install -d -o smt -g smt -m 0750 /var/lib/smt
COPY --from=build /opt/smt/bin /opt/smt/bin
COPY --from=build /opt/smt/libtorch /opt/smt/libtorch
COPY models/books-6m /opt/smt/models/books-6m
COPY deploy/docker/server.yaml /etc/smt/server.yaml
ENV PATH=/opt/smt/bin:/usr/local/bin:/usr/bin:/bin SMT_CONFIG=/etc/smt/server.yaml
USER 10001:10001
WORKDIR /var/lib/smt
VOLUME /var/lib/smt
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["smt", "--address=127.0.0.1:50051", "--timeout=2", "health"]
ENTRYPOINT ["smt_server"]
