#!/bin/sh
# Rehearse a deployment on this machine: the real Heroku CLI, a real Docker Engine and registry,
# and a stand-in for Heroku itself, which is as strict.
#
#     sh tests/rehearsal/rehearse.sh                   sh deploy.sh rehearsal, twice
#     sh tests/rehearsal/rehearse.sh COMMAND [ARG...]  another command, with that Heroku around it
set -eu
cd "$(dirname "$0")/../.."
[ "${INSTALLED-}" ] || sh tests/rehearsal/install.sh
STATE=$PWD/.rehearse
[ ! -d .venv ] || PATH=$PWD/.venv/bin:$PATH
PATH=$STATE/engine/usr/bin:$STATE/node_modules/.bin:$PATH
export PATH STATE DOCKER_HOST=unix:///run/rehearsal-containerd/docker.sock DOCKER_CONFIG="$STATE/docker"
export HEROKU_HOST=rehearsal.herokudev.com HEROKU_API_KEY="${HEROKU_API_KEY-rehearsal}"
export HEROKU_DISABLE_AUTOUPDATE=1 DISABLE_TELEMETRY=true
export NODE_EXTRA_CA_CERTS="$STATE/ca.crt" GIT_SSL_CAINFO="$STATE/ca.crt" GIT_TERMINAL_PROMPT=0
export XDG_CONFIG_HOME="$STATE/home" XDG_CACHE_HOME="$STATE/home" XDG_DATA_HOME="$STATE/home"

processes=
start() { # in the background, with its output in a file of its name
    "$@" >"$STATE/$(basename "$1").log" 2>&1 &
    processes="$processes $!"
}
wait_for() {
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    tail -n 3 "$STATE"/*.log >&2
    exit 1
}
stop() {
    docker ps --all --quiet --filter name=^heroku- | xargs -r docker rm --force >/dev/null
    # shellcheck disable=SC2086 # one argument a process
    kill $processes
    wait
}
trap stop EXIT
trap exit INT TERM

rm -rf "$STATE/git" "$STATE/docker" /run/rehearsal-containerd/ready
mkdir -p "$STATE/git" "$STATE/docker"
echo "{\"cliPluginsExtraDirs\": [\"$STATE/engine/usr/libexec/docker/cli-plugins\"]}" >"$STATE/docker/config.json"
cat >"$STATE/registry.yml" <<-END
	version: 0.1
	log: {level: error, accesslog: {disabled: true}}
	storage: {filesystem: {rootdirectory: $STATE/registry}}
	http: {addr: "127.0.0.2:5001"}
END
start caddy run --config tests/rehearsal/Caddyfile
start docker-registry serve "$STATE/registry.yml"
authority=$STATE/caddy/pki/authorities/local/root.crt
wait_for test -f "$authority"
cat /etc/ssl/certs/ca-certificates.crt "$authority" >"$STATE/ca.crt"
start sh tests/rehearsal/engine.sh containerd
start uvicorn --app-dir tests/rehearsal --host 127.0.0.2 --port 5002 stand_in:heroku
wait_for test -f /run/rehearsal-containerd/ready
wait_for curl --fail --cacert "$STATE/ca.crt" -u :rehearsal https://api.rehearsal.herokudev.com/account
wait_for curl --fail --cacert "$STATE/ca.crt" -u :rehearsal https://registry.rehearsal.herokudev.com/v2/

if [ $# -gt 0 ]; then
    "$@"
else
    sh deploy.sh rehearsal --yes
    sh deploy.sh rehearsal --yes # every step can be repeated
fi
