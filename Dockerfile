# The image of every node of a cluster, head and workers alike.
#
#   docker build -t ipcnn:0.2.0-ray2.60.0 .
#   docker build -t ipcnn:0.2.0-ray2.60.0-cpu --build-arg TORCH=cpu .
#
# Base: plain Debian. The libraries of CUDA 13 come with torch's own packages, the driver from the NVIDIA runtime of the
# machine (580 or newer). Another Debian or Ubuntu with Python 3.11 or newer does as well: --build-arg BASE=...
# Versions and hashes: cluster/constraints*.txt, made by cluster/constraints.py. The sizes, and what of this file has been
# run: cluster/README.md.

ARG BASE=debian:13.7-slim

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ray's cluster launcher copies files with rsync, reads addresses with hostname, and gives two files of its own to the
# user of the container with sudo chown: that, and nothing else, is what sudo is allowed.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv rsync openssh-client sudo hostname \
    && rm -rf /var/lib/apt/lists/*
RUN if id ubuntu > /dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && install -d -o ray -g ray -m 0700 /home/ray/.ray /home/ray/.mlflow \
    && install -d -o ray -g ray -m 0755 /data /weights /cache /home/ray/mlflow \
    && printf 'ray ALL=(root) NOPASSWD: /usr/bin/chown 1000\\:1000 /home/ray/ray_bootstrap_%s\n' \
        config.yaml key.pem > /etc/sudoers.d/ray \
    && chmod 0440 /etc/sudoers.d/ray \
    && visudo --check --quiet \
    && echo "export PATH=/opt/ipcnn/bin:\$PATH" > /etc/profile.d/ipcnn.sh \
    && python3 -m venv /opt/ipcnn
# The dependencies: gigabytes, which change only with the constraints. Left out is what compilers and linkers read
# (headers, static libraries, device code), a library that nothing installed uses (cusolverMg), and the bytecode of test
# suites. The other bytecode saves every process 15 s of compiling: the user of the image cannot write it.
WORKDIR /src
ENV PATH=/opt/ipcnn/bin:$PATH
ARG TORCH=cuda
COPY cluster/constraints.txt cluster/constraints-${TORCH}.txt ./
RUN export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    && pip install --no-deps --only-binary=:all: --require-hashes --requirement constraints.txt \
    && pip install --no-deps --only-binary=:all: --requirement "constraints-${TORCH}.txt" \
    && find /opt/ipcnn/lib \( -path '*/site-packages/torch/include/*' -o -path '*/site-packages/nvidia/*/include/*' \
        -o -path '*/nvidia/*.a' -o -name 'libnvshmem_device*' -o -name 'libcusolverMg.so*' \
        -o -path '*/tests/*.pyc' \) -delete
# The package itself, in a layer of its own: kilobytes.
COPY pyproject.toml README.md LICENSE ./
COPY ipcnn_ray ipcnn_ray
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && rm -rf build ipcnn_ray.egg-info
COPY --chmod=0755 cluster/ipcnn-mlflow cluster/ipcnn-healthy /usr/local/bin/

# By number: Kubernetes checks runAsNonRoot without the image's list of users.
USER 1000
WORKDIR /home/ray
# A Ray without a token does not start here. Nothing of this is secret; tokens and passwords come as files.
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1 \
    IPCNN_DATA=/data \
    IPCNN_WEIGHTS=/weights \
    IPCNN_CACHE=/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
HEALTHCHECK --interval=60s --timeout=60s --start-period=120s --retries=3 CMD ["ipcnn-healthy"]
# Ray's launcher and KubeRay give their own commands.
CMD ["ipcnn", "--help"]
