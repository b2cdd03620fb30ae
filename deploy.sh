#!/bin/sh
# Deploy the Bento that was packed last to Heroku: `sh deploy.sh --help`.
# Every command is printed before it runs. Running it again deploys again.
set -eu
cd "$(dirname "$0")"
PATH=$PWD/.venv/bin:$PATH
BENTO=ant_or_bee_classifier:latest
READY_WITHIN=${READY_WITHIN:-90} # seconds; Heroku gives up on a dyno after 60 (R10)
HOST=${HEROKU_HOST:-heroku.com}
usage="sh deploy.sh APP [--yes | --dry-run]"

fail() {
    echo "error: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

run() {
    printf '\n$ %s\n' "$1"
    sh -ec "$1"
}

need() { # a command, and where it is to be had
    has "$1" && return
    [ "$dry" ] || fail "$1 is missing: $2"
    echo "note: $1 is missing: $2" >&2
}

quoted() { # as a shell reads it back
    case $1 in
    *[!A-Za-z0-9_./@-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
    esac
}

parse() {
    app='' dry='' yes=''
    for argument; do
        case $argument in
        -h | --help)
            help
            exit
            ;;
        --dry-run) dry=yes ;;
        --yes) yes=yes ;;
        [a-z]*)
            [ -z "$app" ] || fail "one name only: $usage"
            app=$argument
            ;;
        *) fail "'$argument' is not the name of an app, in lower case: $usage" ;;
        esac
    done
    [ "$app" ] || fail "name the app: $usage"
}

help() {
    cat <<-END
		usage: $usage

		Deploy the Bento that was packed last to Heroku: create APP if need be, build and push the
		image, release it, wait until it is ready, and predict one photo.

		  --yes      don't ask before APP is created, which costs money
		  --dry-run  only print the commands

		PHOTO names the photo (default: a validation photo), API_TOKEN the app's token, if it has one.
	END
}

find_bento_and_photo() {
    # Without a width, it breaks a long path into lines.
    bento=$(COLUMNS=9999 bentoml get "$BENTO" --output path 2>/dev/null) ||
        fail "nothing is packed yet: make run, or python saveToBento.py"
    bento=$(quoted "$bento")
    photo=${PHOTO:-$(find data/val data-sample/val -name '*.jpg' 2>/dev/null | sort | head -n 1)}
    [ -f "$photo" ] || fail "there is no photo to predict: PHOTO=some.jpg sh deploy.sh $app"
    photo=$(quoted "$photo")
}

# Heroku takes linux/amd64 in Docker's own format (version 2, schema 2) and nothing else. From Docker's
# older image store, Heroku's CLI pushes just that, as in the tutorial, but it can't from ARM before
# Docker 28. With the containerd store, the format is the builder's choice, OCI by now, unless
# buildx is told. Without buildx, Heroku's CLI can't build, as it passes --provenance; plain docker
# can, for the older store. Whoever has no Docker that will do has git: then Heroku builds.
choose_commands() {
    create="heroku create $app --stack container --no-remote"
    look_up="heroku apps:info --shell --app $app"
    login="heroku container:login"
    release="heroku container:release web --app $app"
    image=registry.$HOST/$app/web
    containerd=$(docker info --format '{{.DriverStatus}}' 2>/dev/null | grep containerd) || true
    if docker buildx version >/dev/null 2>&1; then
        case $containerd$(uname -m) in
        *containerd* | arm* | aarch64) push="docker buildx build --platform linux/amd64 --provenance=false --sbom=false \\
  --output type=image,name=$image,oci-mediatypes=false,push=true $bento" ;;
        *) push="(cd $bento && heroku container:push web --app $app)" ;;
        esac
    elif has docker && [ -z "$containerd" ]; then
        push="docker build --platform linux/amd64 --tag $image $bento && docker push $image"
    else
        need git "git-scm.com (or docker with buildx: docs.docker.com/get-docker)"
        login='' release=''
        push="(
  copy=\$(mktemp -d) && trap 'rm -rf \"\$copy\"' EXIT && cp -R $bento/. \"\$copy\" && cd \"\$copy\"
  git init --quiet && git add --all --force
  git -c user.name=$app -c user.email=$app@localhost commit --quiet --no-gpg-sign --message $app
  git -c credential.helper= -c credential.helper='!heroku git:credentials' \\
    push --force https://git.$HOST/$app.git HEAD:refs/heads/main
)"
    fi
}

print_commands() {
    # shellcheck disable=SC2016 # who pastes it expands it
    printf '%s\n' "$create" "$login" "$push" "$release" "url=\$($look_up | sed -n s/^web_url=//p)" \
        'curl --silent --fail --retry 60 --retry-delay 2 --retry-all-errors "${url}readyz"' \
        "curl -X POST \"\${url}predict\" -H 'Content-Type: image/*' --data-binary @$photo" |
        sed '/^$/d'
}

check_tools() {
    need heroku devcenter.heroku.com/articles/heroku-cli
    need curl curl.se
    [ "$dry" ] || ! has docker || docker info >"$log" 2>&1 ||
        fail "docker has no engine to build with: start Docker"
}

log_in() {
    run "heroku auth:whoami" 2>"$log" || fail "you are not logged in: heroku login"
    [ -z "$login" ] || run "$login" 2>"$log" || {
        cat "$log" >&2
        fail "Heroku's registry doesn't let you in: heroku login, then again"
    }
}

# Sets $stack and $web_url.
look_up_app() {
    sh -c "$look_up" >"$log" 2>&1 || return
    stack=$(sed -n 's/^stack=//p' "$log")
    web_url=$(sed -n 's/^web_url=//p' "$log")
}

ask() {
    [ -z "$yes" ] || return 0
    [ -t 0 ] || fail "nothing was created, as nobody was there to say yes: sh deploy.sh $app --yes"
    printf 'Go on? [y/N] '
    read -r answer
    case $answer in
    [yY]*) ;;
    *) fail "nothing was created" ;;
    esac
}

find_or_create_app() {
    printf '\n$ %s\n' "$look_up"
    if look_up_app; then
        echo "$app is there: what it runs is replaced, and its dynos cost what they did."
    else
        grep -qi "couldn't find that app" "$log" || {
            cat "$log" >&2
            fail "$app can't be used: if it isn't yours, choose another name"
        }
        cat <<-END
			$app will be created. It runs on a Basic dyno, which costs \$7 a month (or on Eco dynos, if you
			subscribe to them), and \$0 once it is scaled to 0 or destroyed: www.heroku.com/pricing
		END
        ask
        run "$create" 2>"$log" || {
            cat "$log" >&2
            fail "$app can't be created: if the name is taken, choose another one"
        }
        look_up_app || {
            cat "$log" >&2
            fail "$app was created, but can't be read: run this again"
        }
    fi
    [ "$stack" = container ] || fail "$app has the stack $stack, not container:" \
        "heroku stack:set container --app $app, or choose another name"
}

push_and_release() {
    { run "$push" 2>&1 && : >"$done"; } | tee "$log"
    [ -f "$done" ] || explain_push
    [ -z "$release" ] || run "$release" || fail "the image wasn't released: see above"
}

explain_push() {
    case $(cat "$log") in
    *"no space left"*) fail "the disk is full: docker system prune makes room" ;;
    *"exec format error"*) fail "this machine can't run what it builds for linux/amd64: install Docker" \
        "Desktop, or QEMU (docs.docker.com/build/building/multi-platform)" ;;
    *unsupported* | *"405 "* | *"manifest invalid"* | *"blob unknown"*) fail "Heroku takes images in" \
        "Docker's own format only, and this Docker pushed another one: update Docker and buildx, or let" \
        "Heroku build it (docs/deployment.md)" ;;
    *denied* | *unauthorized*) fail "Heroku doesn't let you push: heroku login, then again" ;;
    *) fail "the image wasn't built and pushed: see above" ;;
    esac
}

# Explains what Heroku's log says of an app that doesn't answer.
explain_log() {
    printf '\n$ heroku logs --num 200 --app %s\n' "$app"
    heroku logs --num 200 --app "$app" >"$log" 2>&1 || true
    tail -n 20 "$log" >&2
    case $(grep -oE '\b(R10|R14|R15|H10)\b' "$log" | sort -u | tr '\n' ' ') in
    *R15* | *R14*) fail "out of memory (R14, R15): heroku config:set WEB_CONCURRENCY=1 --app $app," \
        "or a larger dyno: heroku ps:resize web=standard-2x --app $app" ;;
    *R10*) fail "it didn't listen on \$PORT within 60 s (R10): try the image here, with" \
        "docker run -p 5000:5000 -e PORT=5000 $image" ;;
    *H10*) fail "it crashed (H10): the line before it in the log says why;" \
        "heroku config --app $app shows its settings" ;;
    *) fail "it isn't ready: heroku ps --app $app; heroku logs --tail --app $app" ;;
    esac
}

wait_until_ready() {
    printf '\n$ curl --fail %sreadyz\n' "${web_url:=https://$app.herokuapp.com/}"
    for _ in $(seq "$READY_WITHIN"); do
        curl --silent --fail --max-time 30 "${web_url}readyz" >/dev/null && return
        sleep 1
    done
    explain_log
}

predict() {
    run "curl --silent --show-error --fail-with-body -X POST ${web_url}predict \\
  -H 'Content-Type: image/*' --data-binary @$photo ${API_TOKEN:+-H \"Authorization: Bearer \$API_TOKEN\"}" ||
        fail "no prediction: where the app has a token, API_TOKEN=... sh deploy.sh $app"
}

parse "$@"
log=$(mktemp) done=$log.done
trap 'rm -f "$log" "$done"' EXIT
find_bento_and_photo
check_tools
choose_commands
if [ "$dry" ]; then
    print_commands
    exit
fi
log_in
find_or_create_app
push_and_release
wait_until_ready
predict
cat <<END


address:     $web_url
log:         heroku logs --tail --app $app
stop paying: heroku ps:scale web=0 --app $app, or, for good, heroku apps:destroy --app $app
END
