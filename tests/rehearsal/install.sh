#!/bin/sh
# Install what the rehearsal needs on Debian, as root: Docker Engine, a registry, a TLS proxy, the
# Heroku CLI and a Python base image. All but a few packages of Debian's goes into .rehearse/.
set -eu
HEROKU_CLI=11.10.0
cd "$(dirname "$0")/../.."
state=$PWD/.rehearse
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
base=$state/python-$python-slim.tar

fail() {
    echo "error: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "the container engine is installed and run as root: run it with sudo"

missing=
for package in curl debootstrap git iptables runc; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
command -v npm >/dev/null || missing="$missing nodejs npm"
if [ "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086 # one argument a package
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi
mirror=$(apt-get indextargets --format "\$(ORIGIN) \$(REPO_URI)" 'Identifier: Packages' |
    sed -n 's/^Debian //p' | head -n 1)

# Debian 13's packages, unpacked only: they run on Debian 12 too, and no service is started.
if [ ! -d "$state/engine" ]; then
    mkdir -p "$state/apt/lists" "$state/apt/debs"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" \
        >"$state/apt/trixie.list"
    apt="apt-get -qq -o Dir::State::Lists=$state/apt/lists -o Dir::Etc::SourceParts=-"
    apt="$apt -o Dir::Etc::SourceList=$state/apt/trixie.list -o APT::Sandbox::User=root"
    $apt update
    (cd "$state/apt/debs" && $apt download caddy containerd docker-buildx docker-cli \
        docker-compose docker-registry docker.io)
    for deb in "$state"/apt/debs/*.deb; do
        dpkg -x "$deb" "$state/engine.part"
    done
    rm -r "$state/apt"
    mv "$state/engine.part" "$state/engine"
fi

# The base image is Debian with its Python, as Docker's own is, and with what this machine needs to
# reach package indexes, so that the Dockerfile above it is built as it stands.
if [ ! -f "$base" ]; then
    case $python in
    3.11) suite=bookworm ;;
    3.13) suite=trixie ;;
    *) fail "no Debian release has Python $python: use 3.11 or 3.13" ;;
    esac
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates \
        "$suite" "$root" "$mirror" >"$state/debootstrap.log" || fail "see $state/debootstrap.log"
    rm -rf "$root"/usr/lib/python3*/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb
    ln -s python3 "$root/usr/bin/python"
    # As in Debian 13, of which Docker's image is made: other users can't enter a new home.
    sed -i '/^#*HOME_MODE/d' "$root/etc/login.defs"
    echo "HOME_MODE 0700" >>"$root/etc/login.defs"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    {
        echo "[global]"
        pip3 config list 2>/dev/null | sed -n "s/^.*\.index-url='\(.*\)'/index-url = \1/p" | tail -n 1
        echo "cert = /etc/ssl/certs/ca-certificates.crt"
    } >"$root/etc/pip.conf"
    mkdir -p "$root/etc/uv"
    sed -n 's/^index-url = \(.*\)/index-url = "\1"/p' "$root/etc/pip.conf" >"$root/etc/uv/uv.toml"
    echo "system-certs = true" >>"$root/etc/uv/uv.toml"
    tar -C "$root" -c . >"$base.part"
    mv "$base.part" "$base"
fi

# The names of Heroku's three services, on loopback.
for name in api git registry; do
    grep -q " $name.rehearsal.herokudev.com" /etc/hosts || echo "127.0.0.2 $name.rehearsal.herokudev.com" >>/etc/hosts
done

# Last, as it needs Node 20, which not every Debian has.
"$state/node_modules/.bin/heroku" --version 2>/dev/null | grep -q "heroku/$HEROKU_CLI " ||
    timeout 300 npm install --silent --no-save --prefix "$state" "heroku@$HEROKU_CLI"
