#!/bin/sh
# Deploy the Bento that was packed last, or last under a name, to Heroku: `sh deploy.sh --help`.
# Every command is printed before it runs. Running it again deploys again.
set -eu
cd "$(dirname "$0")"
PATH=$PWD/.venv/bin:$PATH
READY_WITHIN=${READY_WITHIN:-90} # seconds; Heroku gives up on a dyno after 60 (R10)
HOST=${HEROKU_HOST:-heroku.com}
usage="sh deploy.sh APP [NAME] [--yes | --dry-run]"

fail() { echo "error: $*" >&2; exit 1; }

has() { command -v "$1" >/dev/null; }

run() { printf '\n$ %s\n' "$1" && sh -ec "$1"; }

need() { # a command, and where to get it
    has "$1" && return
    [ "$dry" ] || fail "$1 is missing: $2"
    echo "note: $1 is missing: $2" >&2
}

quote() { # only if the shell needs it
    case $1 in
    *[!A-Za-z0-9_./@-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
    esac
}

parse() {
    app='' name='' dry='' yes=''
    for argument; do
        case $argument in
        -h | --help) help && exit ;;
        --dry-run) dry=yes ;;
        --yes) yes=yes ;;
        [a-z]*)
            [ -z "$name" ] || fail "one app and one name only: $usage"
            [ -z "$app" ] && app=$argument || name=$argument
            ;;
        *) fail "'$argument' is not an app name in lower case: $usage" ;;
        esac
    done
    [ "$app" ] || fail "name the app: $usage"
}

help() {
    cat <<-END
		usage: $usage

		Deploy the Bento that was packed last, or last under a NAME, to Heroku: create APP if it doesn't
		exist, build and push the image, release it, wait until it is ready, and predict one photo.

		  --yes      don't ask before creating APP, which costs money
		  --dry-run  only print the commands

		PHOTO sets the photo (default: a validation photo), API_TOKEN the app's token, if it has one.
	END
}

find_bento_and_photo() {
    has python || fail "python is missing: make run, or activate your virtual environment"
    # shellcheck disable=SC2086 # no word if there is no name
    bento=$(python -m simplestack saved-path $name)
    bento=$(quote "$bento")
    photo=${PHOTO:-$(find data/val data-sample/val -name '*.jpg' 2>/dev/null | sort | tail -n 1)}
    [ -f "$photo" ] || fail "there is no photo to predict: PHOTO=some.jpg sh deploy.sh $app"
    photo=$(quote "$photo")
}

# Heroku accepts only images for linux/amd64 in Docker's own format (version 2, schema 2).
# `heroku container:push` pushes that from Docker's older image store, but not from ARM before Docker
# 28, nor without buildx, because it passes --provenance. With the containerd store, images are OCI
# unless buildx is told otherwise. If no Docker will do, git pushes the Bento and Heroku builds it.
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
    # shellcheck disable=SC2016 # the shell that runs them expands $url
    printf '%s\n' "$create" "$login" "$push" "$release" "url=\$($look_up | sed -n s/^web_url=//p)" \
        'curl --silent --fail --retry 60 --retry-delay 2 --retry-all-errors "${url}readyz"' \
        "curl -X POST \"\${url}predict\" -H 'Content-Type: image/*' --data-binary @$photo" |
        sed '/^$/d'
}

check_tools() {
    need heroku devcenter.heroku.com/articles/heroku-cli
    need curl curl.se
    [ "$dry" ] || ! has docker || docker info >/dev/null 2>&1 ||
        fail "docker has no engine to build with: start Docker"
}

log_in() {
    run "heroku auth:whoami" || fail "you are not logged in: heroku login"
    [ -z "$login" ] || run "$login" || fail "Heroku's registry rejects your login: heroku login, then again"
}

look_up_app() { # sets stack and web_url
    info=$($look_up) || return
    stack=$(echo "$info" | sed -n 's/^stack=//p')
    web_url=$(echo "$info" | sed -n 's/^web_url=//p')
}

find_or_create_app() {
    printf '\n$ %s\n' "$look_up"
    if look_up_app; then
        echo "$app exists: this release replaces what it runs. Its dynos cost what they did before."
    else
        create_app
    fi
    [ "$stack" = container ] || fail "$app has the stack $stack, not container:" \
        "heroku stack:set container --app $app, or choose another name"
}

create_app() {
    cat <<-END
		$app will be created. It runs on a Basic dyno, which costs \$7 a month (or on Eco dynos, if you
		subscribe to them), and \$0 once it is scaled to 0 or destroyed: www.heroku.com/pricing
	END
    [ "$yes" ] || ask
    run "$create" || fail "$app can't be created: if the name is taken, choose another one"
    look_up_app || fail "$app was created, but can't be read: run this again"
}

ask() {
    [ -t 0 ] || fail "nothing was created, since it can't ask without a terminal: sh deploy.sh $app --yes"
    printf 'Go on? [y/N] '
    read -r answer
    case $answer in [yY]*) ;; *) fail "nothing was created" ;; esac
}

push_and_release() {
    run "$push" || fail "the image wasn't built and pushed: see above, and docs/troubleshooting.md"
    [ -z "$release" ] || run "$release" || fail "the image wasn't released: see above"
}

wait_until_ready() {
    web_url=${web_url:-https://$app.herokuapp.com/}
    run "curl --silent --fail --max-time 30 --retry $READY_WITHIN --retry-max-time $READY_WITHIN \\
  --retry-delay 1 --retry-all-errors --output /dev/null ${web_url}readyz" && return
    run "heroku logs --num 20 --app $app" || true
    fail "it isn't ready: see its log above, and docs/troubleshooting.md"
}

predict() {
    run "curl --silent --show-error --fail-with-body -X POST ${web_url}predict \\
  -H 'Content-Type: image/*' --data-binary @$photo ${API_TOKEN:+-H \"Authorization: Bearer \$API_TOKEN\"}" ||
        fail "no prediction: if the app has a token, API_TOKEN=... sh deploy.sh $app"
}

parse "$@"
find_bento_and_photo
check_tools
choose_commands
[ -z "$dry" ] || { print_commands && exit; }
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
