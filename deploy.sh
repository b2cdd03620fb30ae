#!/bin/sh
# Deploy the Bento that was packed last to Heroku:
#
#     sh deploy.sh APP              create the app if need be, push, release, wait, predict once
#     sh deploy.sh --dry-run APP    only print the commands
#
# Every command is printed before it runs. Running it again deploys again.
set -eu
cd "$(dirname "$0")"
PATH=$PWD/.venv/bin:$PATH
BENTO=ant_or_bee_classifier:latest
READY_WITHIN=${READY_WITHIN:-90} # seconds; Heroku gives up on a dyno after 60 (R10)

fail() {
    echo "error: $*" >&2
    exit 1
}

say() {
    printf '\n$ %s\n' "$*"
}

run() {
    say "$@"
    [ "$dry" ] || "$@"
}

dry=
[ "${1-}" != --dry-run ] || { dry=yes && shift; }
case $#${1-} in
1[a-z]*) app=$1 ;;
*) fail "name the app, in lower case: sh deploy.sh [--dry-run] APP" ;;
esac

saved_path() {
    say "bentoml get $BENTO --output path"
    bento="SAVED_PATH"
    [ "$dry" ] && return
    # Without a width, it breaks a long path into lines.
    bento=$(COLUMNS=9999 bentoml get "$BENTO" --output path 2>/dev/null) ||
        fail "nothing is packed yet: make run, or python saveToBento.py"
    photo=${PHOTO:-$(find data/val data-sample/val -name '*.jpg' 2>/dev/null | sort | head -n 1)}
    [ -f "$photo" ] || fail "there is no photo to predict: PHOTO=some.jpg sh deploy.sh $app"
}

check_tools() {
    [ "$dry" ] || command -v docker >/dev/null || fail "docker is missing: docs.docker.com/get-docker"
    [ "$dry" ] || command -v heroku >/dev/null ||
        fail "the Heroku CLI is missing: devcenter.heroku.com/articles/heroku-cli"
    say docker info
    [ "$dry" ] || docker info >"$log" 2>&1 || fail "docker has no engine to build with: start Docker"
    run heroku auth:whoami 2>"$log" || fail "you are not logged in: heroku login"
    run heroku container:login 2>"$log" || {
        cat "$log" >&2
        fail "Heroku's registry doesn't let you in: heroku login, then again"
    }
}

# Sets $stack and $web_url.
look_up_app() {
    say "heroku apps:info --shell --app $app"
    [ "$dry" ] || heroku apps:info --shell --app "$app" >"$log" 2>&1 || return
    stack=$(sed -n 's/^stack=//p' "$log")
    web_url=$(sed -n 's|/*$||; s/^web_url=//p' "$log")
}

find_or_create_app() {
    if [ "$dry" ] || ! look_up_app; then
        [ "$dry" ] || grep -qi "couldn't find that app" "$log" || {
            cat "$log" >&2
            fail "$app can't be used: if it isn't yours, choose another name"
        }
        run heroku create "$app" --stack container --no-remote 2>"$log" || {
            cat "$log" >&2
            fail "$app can't be created: if the name is taken, choose another one"
        }
        look_up_app || {
            cat "$log" >&2
            fail "$app was created, but can't be read: run this again"
        }
    fi
    [ "$dry" ] || [ "$stack" = container ] || fail "$app has the stack $stack, not container:" \
        "heroku stack:set container --app $app, or choose another name"
}

deploy() {
    say "cd $bento"
    [ "$dry" ] || cd "$bento"
    run heroku container:push web --app "$app" || fail "the image wasn't pushed: see above"
    run heroku container:release web --app "$app" || fail "the image wasn't released: see above"
    [ "$dry" ] || cd "$OLDPWD"
}

# Explains what Heroku's log says of an app that doesn't answer.
explain() {
    say "heroku logs --num 200 --app $app"
    heroku logs --num 200 --app "$app" >"$log" 2>&1 || true
    tail -n 20 "$log" >&2
    case $(grep -oE '\b(R10|R14|R15|H10)\b' "$log" | sort -u | tr '\n' ' ') in
    *R15* | *R14*) fail "out of memory (R14, R15): heroku config:set WEB_CONCURRENCY=1 --app $app," \
        "or a larger dyno: heroku ps:resize web=standard-2x --app $app" ;;
    *R10*) fail "it didn't listen on \$PORT within 60 s (R10): try the image here, with" \
        "docker run -p 5000:5000 -e PORT=5000 registry.heroku.com/$app/web" ;;
    *H10*) fail "it crashed (H10): the line before it in the log says why;" \
        "heroku config --app $app shows its settings" ;;
    *) fail "it isn't ready: heroku ps --app $app; heroku logs --tail --app $app" ;;
    esac
}

wait_until_ready() {
    say "curl --fail ${web_url:=https://$app.herokuapp.com}/readyz"
    [ "$dry" ] && return
    for _ in $(seq "$READY_WITHIN"); do
        curl --silent --fail --max-time 30 "$web_url/readyz" >/dev/null && return
        sleep 1
    done
    explain
}

predict() {
    say "curl -X POST $web_url/predict -H 'Content-Type: image/*' --data-binary @${photo:=image.jpg}" \
        "${API_TOKEN:+-H \"Authorization: Bearer \$API_TOKEN\"}"
    [ "$dry" ] && return
    set -- --fail-with-body --silent --show-error -H "Content-Type: image/*" --data-binary "@$photo"
    [ -z "${API_TOKEN-}" ] || set -- "$@" -H "Authorization: Bearer $API_TOKEN"
    curl -X POST "$web_url/predict" "$@" ||
        fail "no prediction: where the app has a token, API_TOKEN=... sh deploy.sh $app"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
saved_path
check_tools
find_or_create_app
deploy
wait_until_ready
predict
printf '\n\naddress: %s\nlog:     heroku logs --tail --app %s\n' "$web_url" "$app"
