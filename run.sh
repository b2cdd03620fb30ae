#!/bin/sh
# All steps in a row, as a person would type them: `make run`.
# It reuses what is there: photos, a training of them, finished or interrupted, and a packed Bento.
set -eu
export NO_NEXT=yes # the steps don't name the next one
export BENTOML_DO_NOT_TRACK=True
trap 'exit 130' INT TERM
EX_UNAVAILABLE=69 # the exit code of a step that lacks a connection or a tool

quote() { # only if the shell needs it
    case $1 in
    *[!A-Za-z0-9_.:/@-]*) printf " '%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf ' %s' "$1" ;;
    esac
}

show() { # a command, so that it can be pasted
    printf '\n$'
    for word; do quote "$word"; done
    echo
}

step() { show "$@" && "$@"; }

available() { # runs a step; fails if what it needs can't be reached, and exits if anything else fails
    step "$@" && return
    code=$?
    [ "$code" -eq "$EX_UNAVAILABLE" ] || exit "$code"
    return 1
}

python -m simplestack check-port

missing=
available sh get_data.sh || missing="the photos"
[ "$missing" ] || available python -m simplestack fetch-weights || missing="the ImageNet weights"

if [ -z "$missing" ]; then
    data=${DATA_DIR:-data} checkpoint=saved_models/photos.ckpt
    if [ "$data" != data ]; then # folders elsewhere may have the same name
        sum=$(cd "$data" && pwd -P | cksum)
        checkpoint=saved_models/$(basename "$data")-${sum%% *}.ckpt
    fi
    set -- --data-dir "$data"
else
    data=data-sample checkpoint=saved_models/sample.ckpt
    cat <<END

##############################################################################
##  DEMONSTRATION ONLY: can't get $missing (see above).
##  So this run draws sample pictures and trains a small network on them from
##  scratch. It shows that the stack works, but the result knows nothing of
##  real ants and bees. Run it again once you can reach them.
##############################################################################
END
    export DATA_DIR=$data
    step sh get_data.sh --sample
    set -- --data-dir "$data" --from-scratch --epochs 6 --lr 0.01
fi

step python train.py "$@" --output "$checkpoint" --update --save-to-bento no
step python saveToBento.py "$checkpoint"
tag=$(python -m simplestack tag "$checkpoint")
port=${PORT:-5000}
own=
[ "${DATA_DIR-data}" != data ] || own='
your own photos: DATA_DIR=FOLDER make run, with a folder of photos for each class in it'
cat <<END

report: ${checkpoint%.ckpt}/report.html$own
predict a photo: curl -X POST http://localhost:$port/predict -H "Content-Type: image/*" --data-binary @PHOTO
the page: http://localhost:$port/ (Ctrl-C stops the server)
END
set -- bentoml serve "$tag" --host 127.0.0.1 --port "$port"
show "$@"
exec "$@"
