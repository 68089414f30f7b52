# The image of every node of a cluster, head and workers alike.
#
#   docker build -t ipcnn:0.2.0-ray2.60.0 .
#
# Base: "base" is NVIDIA's image with the CUDA runtime (cudart) and nothing else; the other CUDA libraries come with
# torch's own packages, which are built for CUDA 13. Versions: cluster/constraints.txt, made by cluster/constraints.py.
# cluster/README.md says what of this file has been run, and what has not.

ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ipcnn
ENV PATH=/opt/ipcnn/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The dependencies: gigabytes, which change only with the constraints.
COPY pyproject.toml README.md LICENSE ./
COPY cluster/constraints.txt cluster/constraints.txt
COPY ipcnn_ray/__init__.py ipcnn_ray/__init__.py
RUN pip install --constraint cluster/constraints.txt ".[server]" \
    && pip uninstall --yes ipcnn-ray \
    && find /opt/ipcnn -depth -type d -name __pycache__ -exec rm -rf {} +
# The package itself, as a wheel that the image adds as a layer of its own: kilobytes.
COPY ipcnn_ray ipcnn_ray
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM ${BASE} AS image
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ray's cluster launcher copies files with rsync, reads addresses with hostname, and gives two files of its own to the
# user of the container with sudo chown: that, and nothing else, is what sudo is allowed.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 rsync openssh-client sudo hostname \
    && rm -rf /var/lib/apt/lists/*
RUN userdel --remove ubuntu \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && install -d -o ray -g ray -m 0700 /home/ray/.ray /home/ray/.mlflow \
    && install -d -o ray -g ray -m 0755 /data /weights /cache /home/ray/mlflow \
    && printf 'ray ALL=(root) NOPASSWD: /usr/bin/chown 1000\\:1000 /home/ray/ray_bootstrap_%s\n' \
        config.yaml key.pem > /etc/sudoers.d/ray \
    && chmod 0440 /etc/sudoers.d/ray \
    && visudo --check --quiet \
    && echo "export PATH=/opt/ipcnn/bin:\$PATH" > /etc/profile.d/ipcnn.sh
COPY --from=build /opt/ipcnn /opt/ipcnn
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    /opt/ipcnn/bin/python -m pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
COPY --chmod=0755 cluster/ipcnn-mlflow cluster/ipcnn-healthy /usr/local/bin/

# By number: Kubernetes checks runAsNonRoot without the image's list of users.
USER 1000
WORKDIR /home/ray
# A Ray without a token does not start here. Nothing of this is secret; tokens and passwords come as files.
ENV PATH=/opt/ipcnn/bin:$PATH \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1 \
    IPCNN_DATA=/data \
    IPCNN_WEIGHTS=/weights \
    IPCNN_CACHE=/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s --retries=3 CMD ["ipcnn-healthy"]
# Ray's launcher and KubeRay give their own commands.
CMD ["ipcnn", "--help"]
