# The image of snpdeconv, in two stages: the first installs everything, the second holds what a job needs.
#
#   docker build -t snpdeconv .
#   docker build -t snpdeconv:cuda --build-arg TORCH_INDEX= .
#
# Behind a mirror of the package index: --secret id=pip_conf,src=/etc/pip.conf --secret id=ca,src=BUNDLE.pem, and
# with wheels of your own --build-arg WHEELS_IMAGE=IMAGE, whose files are wheels.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

FROM ${PYTHON_IMAGE} AS build
# Where torch's wheels for one kind of device are. Empty: the package index, whose torch brings CUDA along; other
# versions of CUDA, for older drivers or GPUs, are at https://download.pytorch.org/whl/cu126 and the like.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Groups of optional dependencies that go into the image; what these need is checked by hashes (`make lock`), all but torch.
ARG EXTRAS="simulate server search"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY pyproject.toml constraints.txt requirements-image.txt ./
# Without the package: a change of the source leaves this layer as it is.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *(n for g in sys.argv[1].split() for n in p["optional-dependencies"][g]), sep="\n")' "$EXTRAS" > requirements.txt \
    && python -m venv /opt/venv \
    && if [ "$EXTRAS" = "simulate server search" ]; then \
           /opt/venv/bin/pip install --require-hashes --requirement requirements-image.txt; fi \
    && PIP_FIND_LINKS=/wheels /opt/venv/bin/pip install --constraint constraints.txt --requirement requirements.txt \
       ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
COPY README.md LICENSE ./
COPY snpdeconv snpdeconv
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip wheel --no-deps --wheel-dir /dist .

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
# torch.compile builds its kernels when they are first used, on a GPU too. Debian keeps only the newest
# version of a package, so a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 snpdeconv \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --no-log-init snpdeconv \
    && install --directory --mode=1777 /data
COPY --from=build /opt/venv /opt/venv
# Any user may run it (`--user`), also one with no name, and the file system may be read-only: all that is
# written goes to /data and /tmp. Compiled kernels need a place that may hold programs, which a /tmp often may not.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    HOME=/tmp \
    USER=snpdeconv \
    LOGNAME=snpdeconv \
    SNPDECONV_HOME=/data/home \
    MPLCONFIGDIR=/data/home/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/data/home/cache/torchinductor \
    TRITON_CACHE_DIR=/data/home/cache/triton \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY examples /opt/snpdeconv/examples
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    /opt/venv/bin/pip install --no-index --no-deps --no-cache-dir --disable-pip-version-check /dist/*.whl
WORKDIR /data
USER 10001:10001
# A folder mounted at /data that this user may not write is the commonest mistake.
HEALTHCHECK --interval=5m --timeout=30s --retries=2 CMD ["sh", "-c", "test -w /data && snpdeconv --version"]
ENTRYPOINT ["snpdeconv"]
CMD ["--help"]

ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=unknown
ENV SNPDECONV_REVISION=${REVISION}
LABEL org.opencontainers.image.title="snpdeconv" \
      org.opencontainers.image.description="Deep models and statistics that resolve the trait signal of linked SNPs into single SNPs" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
