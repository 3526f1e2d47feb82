# TorchServe for CPUs with the archive of this checkout (make archive). From its root: make images, or
#   docker build -f deploy/images/server.Dockerfile -t fmnist-server .
# BASE: Debian 13, or what has its packages. TORCH_INDEX: an index of wheels to take torch from, such as
# PyTorch's own for CPUs or CUDA, in the version of the lock file; without one it is Debian's package, which is
# for CPUs and older: it serves TorchScript alone.
ARG BASE=debian:trixie-slim
FROM ${BASE}
ARG TORCH_INDEX=
ARG ARCHIVE=model_store/fmnist.mar
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates openjdk-21-jre-headless python3-numpy python3-pil python3-venv python3-yaml tini \
        $([ -n "$TORCH_INDEX" ] || echo python3-torch) \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/fmnist
COPY requirements.txt ./
# What TorchServe needs of the lock file, with its hashes; torch itself is not among it.
RUN python3 -m venv --system-site-packages .venv \
    && for name in torchserve psutil packaging requests urllib3 idna certifi charset-normalizer; do \
        awk -v name="$name==" 'index($0, name) == 1 {on = 1} on {print} on && !/\\$/ {exit}' requirements.txt; \
    done >locked.txt \
    && .venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r locked.txt \
    && if [ -n "$TORCH_INDEX" ]; then .venv/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" \
            "$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements.txt)"; fi \
    && .venv/bin/pip uninstall -y pip && rm locked.txt requirements.txt
COPY config.properties ./
COPY serving serving
COPY tools tools
COPY tests/data/ankle-boot.png tests/data/
COPY ${ARCHIVE}* model_store/
RUN mkdir -p /run/fmnist && chown 10001:10001 /run/fmnist
USER 10001:10001
ENV PATH=/opt/fmnist/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/run/fmnist
# TorchServe itself has no handler of SIGTERM, which the first process of a container then never gets. tini passes
# it on and buries what workers leave; tools.serve ends TorchServe and leaves with 0.
ENTRYPOINT ["tini", "--", "python3", "-m", "tools.serve", "--folder", "/run/fmnist/server"]
