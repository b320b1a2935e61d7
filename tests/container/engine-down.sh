#!/usr/bin/env bash
# Ends what engine-up.sh started, by its process id. --purge also removes its images.
# usage: engine-down.sh [--purge] [FOLDER]
set -euo pipefail
purge=
if [ "${1-}" = --purge ]; then purge=1 && shift; fi
folder=${1:-${SNPDECONV_ENGINE:-/tmp/snpdeconv-engine}}
if [ -s "$folder/docker.pid" ]; then
    pid=$(<"$folder/docker.pid")
    # The number may belong to another process by now.
    if [[ $(readlink "/proc/$pid/exe") == */dockerd ]]; then
        kill "$pid"
        for _ in $(seq 150); do [ -e "/proc/$pid/exe" ] || break && sleep 0.2; done
    fi
fi
[ -z "$purge" ] || rm -rf "$folder"
