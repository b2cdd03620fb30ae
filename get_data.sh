#!/bin/sh
# Get the photos: 397 ants and bees, 47 MB, into data/{train,val}/{ants,bees}.
#
#   sh get_data.sh             download and unpack them
#   sh get_data.sh --sample    draw a few pictures instead, for machines without the photos
#   sh get_data.sh --add ZIP [FOLDER]   add corrections that were downloaded from the page
#
#   DATA_URL=…   another ZIP with a folder for each class: a web address, a file:// address or a path
#   DATA_DIR=…   another folder than data
#
# Run it again to resume a broken download. The folder appears only once it is complete.
set -eu

url=${DATA_URL:-https://download.pytorch.org/tutorial/hymenoptera_data.zip}
dir=${DATA_DIR:-data}
dir=${dir%/}
work=$dir.new.$$ # beside the folder, so that a rename completes it
part=$dir.zip.part

fail() { echo "error: $1" >&2; exit "${2-1}"; }

unavailable() { fail "$1" 69; } # EX_UNAVAILABLE: run.sh goes on without the photos
reject() { rm -f "$part" && fail "$url $1"; }
need() { command -v "$1" >/dev/null || unavailable "$1 is needed: install it (apt install $1, brew install $1)"; }
quote() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }
files_in() { find -L "$@" -type f ! -name '.*' 2>/dev/null; }
is_sample() { [ -f "$dir/SAMPLE.txt" ]; } # drawn pictures can be drawn again, so they may be replaced

check_free() {
    is_sample || [ ! -e "$dir" ] || fail "$dir exists: move it away, or choose another folder with DATA_DIR"
}

get_photos() {
    if [ "$(files_in "$dir"/*/)" ] && ! is_sample; then
        echo "The photos are in $dir/ already." && return
    fi
    check_free
    need unzip
    mkdir -p "$work" # and the folders above it
    archive=${url#file://}
    case $archive in *://*) archive=$part && download ;; esac
    [ -f "$archive" ] || fail "there is no file $archive: check DATA_URL"
    unpack
    put "$found"
    rm -f "$part"
}

download() { # goes on with $part; shows its progress on a terminal
    need curl
    echo "Downloading $url"
    [ -t 2 ] && progress=--progress-bar || progress=--silent
    curl "$progress" --fail --location --connect-timeout 20 --speed-time 60 --speed-limit 1 \
        --continue-at - --output "$part" "$url" && return
    case $? in
    23) fail "can't write $part: is the disk full? Make room and run this again" ;;
    22 | 33) [ ! -s "$part" ] || { rm "$part" && download && return; } ;; # this server can't resume it
    esac
    unavailable "can't download $url: check the address and the connection, then run this again to resume (or use a copy: DATA_URL=FILE sh get_data.sh)"
}

unpack() { # sets found, the folder with the class folders, or with train/ and val/
    ! unzip -Z1 "$archive" 2>/dev/null | grep -qE '^/|\.\.[/\\]' ||
        reject "has paths that lead out of its folder: check the address"
    code=0 # -o and -P: ask nothing; the placeholder imageNotFound.gif shows no insect
    unzip -q -o -P '' "$archive" -d "$work" -x '*imageNotFound.gif' '__MACOSX/*' </dev/null >/dev/null 2>&1 || code=$?
    case $code in
    0 | 1) ;; # 1: with warnings
    50) fail "can't unpack into $work: is the disk full? Make room and run this again" ;;
    *) reject "is not a whole zip archive: run this again, or check the address" ;;
    esac
    for found in "$work" "$work"/*; do
        set -- "$found"/*/
        [ $# -lt 2 ] || return 0
    done
    reject "has no class folders, and no train/ and val/: check the address"
}

with_packages() {
    project=$(cd "$(dirname "$0")" && pwd)
    PATH=$project/.venv/bin:$PATH PYTHONPATH=$project "$@"
}

draw_sample() {
    check_free
    with_packages python3 -m simplestack draw-sample "$work" 2>/dev/null ||
        fail "can't draw the pictures: that needs the packages (pip install -r requirements.txt) and room on the disk"
    put "$work"
}

put() { # into $dir
    check_free
    ! is_sample || mv "$dir" "$work.old"
    mv "$1" "$dir"
    for class in "$dir"/train/* "$dir"/val/* "$dir"/*; do
        count=$(($(files_in "$class" -maxdepth 1 | wc -l)))
        [ $count = 0 ] || echo "${class#"$dir"/}: $count photo$([ $count = 1 ] || echo s)"
    done
}

trap 'rm -rf "$work" "$work.old"' EXIT
trap 'exit 130' INT TERM
case ${1-} in
"") get_photos ;;
--sample)
    is_sample || draw_sample
    echo "The pictures in $dir/ are drawn: they are not photos."
    ;;
--add)
    dir=${3:-$dir} dir=${dir%/}
    ! is_sample || fail "$dir has drawn pictures, which are replaced by photos: add corrections to those"
    [ -f "${2-}" ] || fail "name the archive: sh get_data.sh --add ZIP [FOLDER]"
    with_packages python3 -m simplestack add-corrections "$2" "$dir"
    [ -n "${NO_NEXT+set}" ] || printf '\nNext: %smake run\n' "$([ "$dir" = data ] || echo "DATA_DIR=$(quote "$dir") ")"
    exit
    ;;
-h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
*) fail "unknown argument $1: see sh get_data.sh --help" ;;
esac
options=
[ "$dir" = data ] && ! is_sample || options=" --data-dir $(quote "$dir")"
! is_sample || options="$options --from-scratch"
[ -n "${NO_NEXT+set}" ] || printf '\nNext: python train.py%s\n' "$options"
