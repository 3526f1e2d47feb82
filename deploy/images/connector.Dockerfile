# The connector, without torch. From the root of the checkout: make images, or
#   docker build -f deploy/images/connector.Dockerfile -t fmnist-connector .
# BASE: any Debian with apt and Python 3.11 to 3.13; BROKER: kafka or pubsub.
ARG BASE=debian:trixie-slim
FROM ${BASE} AS build
ARG BROKER=kafka
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3-venv
WORKDIR /src
COPY requirements-${BROKER}.txt .
RUN python3 -m venv /opt/fmnist \
    && /opt/fmnist/bin/pip install --no-cache-dir --require-hashes -r requirements-${BROKER}.txt
COPY pyproject.toml README.md LICENSE ./
COPY connectors connectors
RUN /opt/fmnist/bin/pip install --no-cache-dir --no-deps . && /opt/fmnist/bin/pip uninstall -y pip

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/fmnist /opt/fmnist
USER 10001:10001
ENV PYTHONDONTWRITEBYTECODE=1
# It is the first process itself: SIGTERM reaches it, and it has no children.
ENTRYPOINT ["/opt/fmnist/bin/python", "-m", "connectors"]
