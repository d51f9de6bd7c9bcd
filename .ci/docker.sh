#!/usr/bin/env bash
# Installs Debian's Docker engine, Compose v2 and what the tests of the image use, as far as this machine lacks them. Needs root.
set -euo pipefail
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive

needed=()
for pair in /usr/sbin/dockerd=docker.io /usr/bin/mmdebstrap=mmdebstrap /usr/bin/ssh=openssh-client; do
    [ -e "${pair%=*}" ] || needed+=("${pair#*=}")
done
if [ "${#needed[@]}" -gt 0 ]; then
    apt-get update -qq
    # newer Debians split the client from the engine, and BuildKit from the client
    for name in docker-cli docker-buildx; do
        apt-get install -s -qq "${needed[@]}" "$name" >/dev/null 2>&1 && needed+=("$name")
    done
    apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
fi

if ! /usr/bin/docker compose version >/dev/null 2>&1; then
    from=
    # shellcheck source=/dev/null
    if [ "$(. /etc/os-release && echo "$VERSION_CODENAME")" = bookworm ]; then
        # Compose v2 came with Debian 13; from there this package alone is taken
        from=/trixie
        # shellcheck disable=SC2016 # apt fills in the address that this machine takes Debian 12 from
        archive=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Component: main' | sort -u | head -1)
        cat >/etc/apt/sources.list.d/trixie.sources <<SOURCE
Types: deb
URIs: $archive
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
        cat >/etc/apt/preferences.d/trixie <<'PIN'
Package: *
Pin: release n=trixie
Pin-Priority: 50
PIN
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "docker-compose$from" >/dev/null
fi
