#!/bin/sh
# Install what the rehearsal needs on a Debian machine, as root: a container engine, a registry,
# the Heroku CLI and a Python base image. What is there already is left alone.
set -eu
HEROKU_CLI=11.10.0
here=$(cd "$(dirname "$0")" && pwd)
state=$here/../.rehearse
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
base=docker.io/library/python:$python-slim
mkdir -p "$state"
[ -f "$state/auth.json" ] || echo "{}" >"$state/auth.json" # of podman, which wants it to exist

fail() {
	echo "error: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "the container engine is installed and run as root: run it with sudo"

engine="podman runc netavark aardvark-dns fuse-overlayfs iptables podman-compose debootstrap docker-registry openssl"
missing=
for package in $engine curl; do
	dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
command -v npm >/dev/null || missing="$missing nodejs npm"
if [ "$missing" ]; then
	apt-get update -qq
	# shellcheck disable=SC2086 # one argument a package
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi

# Podman's own engine can't start everywhere; runc without resource limits can.
cat >"$state/containers.conf" <<-END
	[containers]
	default_ulimits = []
	[engine]
	cgroup_manager = "cgroupfs"
	runtime = "runc"
	[network]
	network_backend = "netavark"
END

# What the machine needs to reach package indexes, a build needs too; never copied into the image.
{
	echo "[global]"
	pip3 config list 2>/dev/null | sed -n "s/^.*\.index-url='\(.*\)'/index-url = \1/p" | tail -n 1
	echo "cert = /etc/ssl/certs/ca-certificates.crt"
} >"$state/pip.conf"
sed -n 's/^index-url = \(.*\)/index-url = "\1"/p' "$state/pip.conf" >"$state/uv.toml"
echo "system-certs = true" >>"$state/uv.toml"

# The names of Heroku's two services, on loopback, with a certificate that only the rehearsal trusts.
for name in 127.0.0.2:registry 127.0.0.3:api; do
	grep -q "${name#*:}.heroku.localhost" /etc/hosts ||
		echo "${name%:*} ${name#*:}.heroku.localhost" >>/etc/hosts
done
[ -f "$state/tls.crt" ] || openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=rehearsal \
	-addext "subjectAltName=DNS:registry.heroku.localhost,DNS:api.heroku.localhost" \
	-keyout "$state/tls.key" -out "$state/tls.crt" 2>/dev/null
mkdir -p /etc/containers/certs.d/registry.heroku.localhost
cp "$state/tls.crt" /etc/containers/certs.d/registry.heroku.localhost/ca.crt

# The base image, from its registry where that can be reached, else from Debian's packages.
export CONTAINERS_CONF="$state/containers.conf"
podman image exists "$base" || timeout 60 podman pull -q "$base" 2>/dev/null || {
	case $python in
	3.11) suite=bookworm ;;
	3.13) suite=trixie ;;
	*) fail "no Debian release has Python $python: pull $base, or pack with Python 3.11" ;;
	esac
	mirror=$(apt-get indextargets --format "\$(ORIGIN) \$(REPO_URI)" 'Identifier: Packages' |
		sed -n 's/^Debian //p' | head -n 1)
	root=$(mktemp -d)
	trap 'rm -rf "$root"' EXIT
	debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates \
		"$suite" "$root" "$mirror" >"$state/debootstrap.log" || fail "see $state/debootstrap.log"
	rm -rf "$root"/usr/lib/python3*/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb
	ln -s python3 "$root/usr/bin/python"
	# As in Debian 13, of which Docker's image is made: other users can't enter a new home.
	sed -i '/^#*HOME_MODE/d' "$root/etc/login.defs"
	echo "HOME_MODE 0700" >>"$root/etc/login.defs"
	tar -C "$root" -c . | podman import -q - "$base" >/dev/null
}

# Last, as it needs Node 20, which not every Debian has.
"$state/node_modules/.bin/heroku" --version 2>/dev/null | grep -q "heroku/$HEROKU_CLI " ||
	timeout 300 npm install --silent --no-save --prefix "$state" "heroku@$HEROKU_CLI"
