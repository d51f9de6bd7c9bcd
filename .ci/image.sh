#!/usr/bin/env bash
# Builds the image on a Docker engine that is started here, and runs its tests. The base image is made from the distribution's packages
# and stands in for NVIDIA's: no registry is asked.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=/usr/bin:$PATH # the distribution's client, which fits its engine

state=/var/lib/tunestation-docker
export DOCKER_HOST=unix:///run/tunestation-docker.sock
if [ "$(id -u)" != 0 ] || ! command -v dockerd >/dev/null; then
    echo "skipped: no engine"
    exit 0
fi

# one engine at a time on this folder; layers and pip's downloads stay there for the next run
mkdir -p "$state"
exec 9>"$state/lock"
flock 9
rm -f "$state/docker.pid"
dockerd --iptables=false --ip6tables=false --bridge=none --data-root "$state/data" --exec-root "$state/exec" \
    --pidfile "$state/docker.pid" --host "$DOCKER_HOST" >"$state/log" 2>&1 &
engine=$!
trap 'kill "$engine" 2>/dev/null && wait "$engine" || true' EXIT
until docker info >/dev/null 2>&1; do
    if ! kill -0 "$engine" 2>/dev/null; then
        tail -3 "$state/log"
        echo "skipped: no engine"
        exit 0
    fi
    sleep 0.5
done

# shellcheck source=/dev/null
. /etc/os-release
base=tunestation-base:$VERSION_CODENAME
docker image inspect "$base" >/dev/null 2>&1 ||
    mmdebstrap --quiet --variant=apt --include=ca-certificates "$VERSION_CODENAME" - | docker import - "$base"

for target in runtime cloud; do
    .venv/bin/invoke build --target "$target" --base "$base" --network host 2>"$state/build-$target.log" || {
        tail -40 "$state/build-$target.log"
        exit 1
    }
done
docker image ls --filter "reference=tunestation*"
docker history --format '{{ .Size }}	{{ .CreatedBy }}' tunestation:runtime | cut -c 1-120
.venv/bin/invoke test --only tests/image
docker image prune --force >/dev/null
docker builder prune --force --keep-storage 12GB >/dev/null
