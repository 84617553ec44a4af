# syntax=docker/dockerfile:1.7
# The environment of Textmill; the project itself is mounted at /project (deploy/README.md).
#
#   docker build --target cpu  --tag textmill:cpu  .
#   docker build --target cuda --tag textmill:cuda .
#   docker run --rm --volume "$PWD:/project" textmill:cpu dvc repro

ARG PYTHON=3.12

# What all targets share: programs that DVC and Lightning call, and a user that is not root.
FROM python:${PYTHON}-slim-bookworm AS base
# Debian keeps no old versions of packages, so only the distribution is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libgomp1 make tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 textmill \
    && useradd --uid 1000 --gid textmill --create-home textmill \
    && git config --system --add safe.directory /project \
    && python -m venv /opt/venv \
    && install --directory --owner=textmill --group=textmill /project
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/project/src \
    PYTHONDONTWRITEBYTECODE=1 \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true

# Packages alone: this layer is built again only when pyproject.toml or constraints.txt change.
FROM base AS packages-cpu
WORKDIR /opt/textmill
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir --parents src/textmill && touch src/textmill/__init__.py
# PyTorch's own index has a build without CUDA, a tenth of the size; `==2.13.0` also takes `2.13.0+cpu`.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --constraint constraints.txt '.[server,tune]'

FROM base AS packages-cuda
WORKDIR /opt/textmill
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir --parents src/textmill && touch src/textmill/__init__.py
# The build of PyPI brings CUDA's libraries; the driver comes from the host (NVIDIA Container Toolkit).
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt '.[server,tune]'

FROM packages-cuda AS cuda
# torch.compile needs a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY src src
RUN pip install --no-cache-dir --no-deps .
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /project
ENTRYPOINT ["tini", "--"]
CMD ["textmill", "--help"]

FROM packages-cpu AS cpu
COPY src src
RUN pip install --no-cache-dir --no-deps .
USER 1000:1000
WORKDIR /project
ENTRYPOINT ["tini", "--"]
CMD ["textmill", "--help"]
