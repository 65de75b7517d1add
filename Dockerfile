# One image of the whole project, in two sizes: --target cpu, and --target gpu with Unsloth.
#
#   docker build --target cpu --build-arg BASE=python:3.12-slim-bookworm@sha256:... -t trainyard .
#
# Engines that serve on GPUs (vLLM, TGI, SGLang) are their makers' images, pinned by digest in the
# recipe; nothing of them is in here. A wheel laid in wheels/ is taken before the index's: that is how
# the cpu target gets a build of torch without CUDA. EXTRAS names fewer extras for a smaller image:
# `--build-arg EXTRAS="docker kubernetes"` is a control plane without torch. No secret belongs into a
# build: what a run needs comes as environment or as files below /run/secrets.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY pyproject.toml constraints.txt deployments/requirements.py wheel[s] ./

FROM build AS build-cpu
ARG EXTRAS="train wandb signing docker kubernetes"
RUN python3 requirements.py pyproject.toml ${EXTRAS} > all && python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --quiet --find-links . --constraint constraints.txt \
    --requirement all && find /opt/venv -name __pycache__ -prune -exec rm -rf {} +

FROM ${BASE} AS user
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp HF_HOME=/app/.cache/huggingface HF_HUB_OFFLINE=1 PREFECT_HOME=/tmp/prefect \
    DO_NOT_TRACK=1 NUMBA_CACHE_DIR=/tmp/numba TRAINYARD_ROOT=/app
WORKDIR /app
# folders that volumes are laid over take their owner from here
RUN useradd --uid 10001 --no-create-home --home-dir /tmp trainyard \
    && mkdir -p .trainyard .cache/huggingface /targets /run/lock/trainyard \
    && chown -R 10001:10001 .trainyard .cache /targets /run/lock/trainyard
# a service says where it answers; a job does not, and is healthy while it runs
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["python", "-c", \
    "import os, urllib.request as r; u = os.environ.get('HEALTH_URL'); u and r.urlopen(u, timeout=5)"]
CMD ["python", "-m", "trainyard", "--help"]

FROM user AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
COPY . .
USER 10001:10001

FROM build AS build-gpu
ARG EXTRAS="train unsloth wandb signing docker kubernetes"
RUN python3 requirements.py pyproject.toml ${EXTRAS} > all && python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --quiet --constraint constraints.txt --requirement all \
    && /opt/venv/bin/python -m pip install --quiet --constraint constraints.txt --no-deps \
    unsloth unsloth_zoo && find /opt/venv -name __pycache__ -prune -exec rm -rf {} +

FROM user AS gpu
COPY --from=build-gpu /opt/venv /opt/venv
COPY . .
USER 10001:10001
