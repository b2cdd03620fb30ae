#!/bin/sh
# Rehearse a deployment on this machine: the real Heroku CLI, a real registry, a real engine, and
# a stand-in for Heroku itself, which starts the image under Heroku's rules.
#
#     sh rehearse/rehearse.sh                     sh deploy.sh rehearsal, twice
#     sh rehearse/rehearse.sh COMMAND [ARG...]    another command, with that Heroku around it
set -eu
cd "$(dirname "$0")/.."
state=$PWD/.rehearse
[ "${INSTALLED-}" ] || sh rehearse/install.sh

PATH=$PWD/rehearse/bin:$state/node_modules/.bin:$PATH
export PATH CONTAINERS_CONF="$state/containers.conf"
export HEROKU_HOST=heroku.localhost HEROKU_API_KEY="${HEROKU_API_KEY-rehearsal}"
export NODE_EXTRA_CA_CERTS="$state/tls.crt" HEROKU_DISABLE_AUTOUPDATE=1 DISABLE_TELEMETRY=true
export XDG_CONFIG_HOME="$state/home" XDG_CACHE_HOME="$state/home" XDG_DATA_HOME="$state/home"

cat >"$state/registry.yml" <<-END
	version: 0.1
	log: {level: error, accesslog: {disabled: true}}
	storage: {filesystem: {rootdirectory: $state/registry}}
	http:
	  addr: 127.0.0.2:443
	  tls: {certificate: $state/tls.crt, key: $state/tls.key}
END
docker-registry serve "$state/registry.yml" >"$state/registry.log" 2>&1 &
registry=$!
python3 rehearse/stand_in.py 127.0.0.3 "$state/tls.crt" "$state/tls.key" docker \
	>"$state/stand_in.log" 2>&1 &
stand_in=$!

stop() {
	kill "$registry" "$stand_in"
	podman ps --all --quiet --filter name=^heroku- | xargs -r podman rm --force --time 10 >/dev/null
}
trap stop EXIT
for address in 127.0.0.2 127.0.0.3; do # by address, as curl takes every .localhost for 127.0.0.1
	curl --silent --output /dev/null --insecure --retry 30 --retry-connrefused --retry-delay 1 \
		"https://$address/" || { cat "$state"/*.log >&2 && exit 1; }
done

if [ $# -gt 0 ]; then
	"$@"
else
	sh deploy.sh rehearsal
	sh deploy.sh rehearsal # every step can be repeated
fi
