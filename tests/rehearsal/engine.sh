#!/bin/sh
# Run Docker Engine until SIGTERM, with the base image in it, for the rehearsal alone:
#
#     sh tests/rehearsal/engine.sh containerd     the image store of new installations since Docker 29
#     sh tests/rehearsal/engine.sh classic        the one before
set -eu
cd "$(dirname "$0")/../.."
state=$PWD/.rehearse store=$1 run=/run/rehearsal-$1
base=$(cd "$state" && ls python-*.tar)
base=${base%.tar}
PATH=$state/engine/usr/bin:$state/engine/usr/sbin:$PATH
export PATH DOCKER_HOST="unix://$run/docker.sock" SSL_CERT_FILE="$state/ca.crt"

mkdir -p "$run"
rm -f "$run/ready"
[ "$store" = containerd ] && containerd=true || containerd=false
cat >"$run/daemon.json" <<-END
	{
	    "features": {"containerd-snapshotter": $containerd},
	    "exec-opts": ["native.cgroupdriver=cgroupfs"],
	    "hosts": ["$DOCKER_HOST"],
	    "data-root": "$state/$store",
	    "exec-root": "$run",
	    "pidfile": "$run/docker.pid"
	}
END
dockerd --config-file "$run/daemon.json" >"$state/$store.log" 2>&1 &
engine=$!
trap 'rm -f "$run/ready"; kill "$engine"; wait "$engine"' EXIT
trap exit INT TERM
until docker info >/dev/null 2>&1; do
    kill -0 "$engine" || { tail -n 5 "$state/$store.log" >&2 && exit 1; }
    sleep 0.2
done
tag=$(echo "$base" | sed 's/-/:/')
docker image inspect "$tag" >/dev/null 2>&1 || docker import "$state/$base.tar" "$tag" >/dev/null
touch "$run/ready"
wait "$engine"
