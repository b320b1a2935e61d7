#!/usr/bin/env bash
# Starts a Docker engine from Debian's packages, without systemd, and makes the base image of the Dockerfile
# without a registry. Needs root. Then: . FOLDER/env.sh; docker build $BUILD_ARGS …   Ends with engine-down.sh.
# usage: engine-up.sh [FOLDER]
set -euo pipefail
folder=${1:-${SNPDECONV_ENGINE:-/tmp/snpdeconv-engine}}
base=python:3.11-slim-bookworm
mkdir -p "$folder/config/cli-plugins"

if ! type dockerd mmdebstrap >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends \
        docker.io mmdebstrap >"$folder/apt.log" 2>&1 || { tail -5 "$folder/apt.log" >&2; exit 1; }
fi

# By its full path: another client earlier on PATH may lack BuildKit.
docker=/usr/bin/docker
export DOCKER_HOST=unix://$folder/docker.sock DOCKER_CONFIG=$folder/config DOCKER_BUILDKIT=1
if ! $docker info >/dev/null 2>&1; then
    setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" --host "$DOCKER_HOST" \
        --pidfile "$folder/docker.pid" </dev/null >"$folder/dockerd.log" 2>&1 &
    timeout 60 bash -c "until $docker info >/dev/null 2>&1; do sleep 0.5; done" || {
        tail -5 "$folder/dockerd.log" >&2
        exit 1
    }
fi

# Compose is a plug-in of the client; Debian 12 has none, a wheel carries the program.
if plugin=$(type -P docker-compose); then ln -sf "$plugin" "$folder/config/cli-plugins/docker-compose"; fi

if ! $docker image inspect $base >/dev/null 2>&1; then
    # Python's headers are in the official image, and torch.compile needs them.
    options=()
    for file in /etc/apt/apt.conf.d/99*; do [ ! -e "$file" ] || options+=("--aptopt=$file"); done
    mmdebstrap --quiet --variant=minbase "${options[@]}" \
        --include=ca-certificates,python3.11,python3.11-venv,libpython3.11-dev,python-is-python3 \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        bookworm - /etc/apt/sources.list.d/debian.sources | $docker import --change 'CMD ["python3"]' - $base >/dev/null
fi

# What this machine needs to reach the package index goes into the build as secrets, never into the image.
args="--network=host"
[ ! -e /etc/pip.conf ] || args+=" --secret id=pip_conf,src=/etc/pip.conf"
bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[ ! -e "$bundle" ] || args+=" --secret id=ca,src=$bundle"
if [ -d "${PIP_FIND_LINKS:-}" ]; then
    wheels=local-wheels:$(cd "$PIP_FIND_LINKS" && stat --format='%n %s %Y' -- * | sha256sum | head -c 12)
    $docker image inspect "$wheels" >/dev/null 2>&1 || tar -C "$PIP_FIND_LINKS" -c . | $docker import - "$wheels" >/dev/null
    args+=" --build-arg WHEELS_IMAGE=$wheels"
    [ -z "$(find "$PIP_FIND_LINKS" -name 'torch-*.whl')" ] || args+=" --build-arg TORCH_INDEX="
fi
cat >"$folder/env.sh" <<END
export DOCKER_HOST=$DOCKER_HOST DOCKER_CONFIG=$DOCKER_CONFIG DOCKER_BUILDKIT=1 DOCKER=$docker BUILD_ARGS='$args'
END
