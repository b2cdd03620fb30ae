#!/bin/sh
# Get the photos: 397 ants and bees, 47 MB, into data/{train,val}/{ants,bees}.
#
#   sh get_data.sh             download, check and unpack them
#   sh get_data.sh --sample    draw a few pictures instead, for machines without the photos
#
#   DATA_URL=…   another archive: a web address, a file:// address or a path
#   DATA_DIR=…   another folder than data
#
# A broken download is resumed by running this again. The folder is either the old one or the new
# one, whole: everything is checked and unpacked beside it, then renamed.
set -eu

url=${DATA_URL:-https://download.pytorch.org/tutorial/hymenoptera_data.zip}
dir=${DATA_DIR:-data}
dir=${dir%/}
new=$dir.new.$$
part=$dir.$(printf %s "$url" | cksum | cut -d ' ' -f 1).part

fail() {
    echo "error: $*" >&2
    exit 1
}

unreachable() { # an exit code of its own, for run.sh
    echo "error: $*" >&2
    exit 69
}

has() { command -v "$1" >/dev/null 2>&1; }

is_photos() { [ -d "$1/train" ] && [ -d "$1/val" ]; }

is_sample() { [ -f "$1/SAMPLE.txt" ]; }

photos_in() { # the suffixes that simplestack/data.py reads
    find "$1" -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' -o -iname '*.webp' \
        -o -iname '*.avif' -o -iname '*.bmp' -o -iname '*.tif' -o -iname '*.tiff' \)
}

show() {
    for split in train val; do
        for class in "$dir/$split"/*/; do
            photos=$(photos_in "$class" | wc -l)
            others=$(($(find "$class" -type f | wc -l) - photos))
            [ "$others" -eq 0 ] && others="" || others=", $others other skipped"
            echo "$split/$(basename "$class"): $((photos)) photos$others"
        done
    done
    if is_sample "$dir"; then
        echo "These are drawn pictures, not photos."
        set -- --data-dir "$dir" --from-scratch
    elif [ "$dir" != data ]; then
        set -- --data-dir "$dir"
    fi
    echo
    echo "Next: python train.py${*:+ $*}"
}

fetch() { # with what is there; goes on where it stopped, and shows progress where people look
    if has curl; then
        if [ -t 2 ]; then set -- --progress-bar; else set -- --silent; fi
        curl "$@" --fail --location --connect-timeout 20 --speed-time 60 --speed-limit 1 \
            --continue-at - --output "$part" "$url"
    else
        if [ -t 2 ]; then set --; else set -- --quiet; fi
        wget "$@" --continue --timeout=60 --tries=2 --output-document="$part" "$url"
    fi
}

download() {
    has curl || has wget || unreachable "curl or wget is needed to download the photos: install one of them"
    if [ -s "$part" ] && unzip -tqq "$part" >/dev/null 2>&1; then
        return # it had come whole already
    fi
    echo "Downloading $url"
    mkdir -p "$(dirname "$part")"
    fetch && return
    code=$?
    if [ -s "$part" ] && { [ "$code" -eq 22 ] || [ "$code" -eq 33 ]; }; then
        rm -f "$part" # this server can't resume it
        fetch && return
        code=$?
    fi
    [ -s "$part" ] || rm -f "$part"
    has curl && full=23 || full=3
    case $code in
    "$full") fail "can't write $part: is the disk full? Make room and run this again" ;;
    *) unreachable "can't download $url: check the address and the connection, then run this again; it goes on where it stopped (or name a copy: DATA_URL=FILE sh get_data.sh)" ;;
    esac
}

unpack() { # $1: the archive
    unzip -tqq "$1" >/dev/null 2>&1 || {
        [ "$1" = "$part" ] && rm -f "$part"
        fail "$url is not a whole zip archive: run this again, or check the address"
    }
    mkdir -p "$new"
    unzip -qq "$1" -d "$new" >/dev/null 2>&1 || fail "can't unpack into $new: is the disk full? Make room and run this again"
    for found in "$new" "$new"/*; do
        if is_photos "$found"; then
            put "$found"
            return
        fi
    done
    fail "$url has no train/ and val/ folders in it, so it is not this data set: check the address"
}

put() { # $1: the new folder
    if [ -e "$dir" ]; then # drawn pictures, which can be drawn again
        mv "$dir" "$new.old"
        mv "$1" "$dir"
        rm -rf "$new.old"
    else
        mkdir -p "$(dirname "$dir")"
        mv "$1" "$dir"
    fi
}

get_photos() {
    has unzip || unreachable "unzip is needed to unpack the photos: install it (apt install unzip, brew install unzip)"
    case $url in
    file://*) archive=${url#file://} ;;
    *://*)
        archive=$part
        download
        ;;
    *) archive=$url ;;
    esac
    [ -f "$archive" ] || fail "there is no file $archive: check DATA_URL"
    unpack "$archive"
    rm -f "$part"
}

draw() {
    here=$(cd "$(dirname "$0")" && pwd)
    python=$here/.venv/bin/python
    [ -x "$python" ] || python=python3
    PYTHONPATH=$here "$python" -m simplestack draw-sample "$new" 2>/dev/null ||
        fail "can't draw the pictures: that needs Python with Pillow (pip install -r requirements.txt) and room on the disk"
    put "$new"
}

trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM

case ${1-} in
"")
    if is_photos "$dir" && ! is_sample "$dir"; then
        echo "The photos are in $dir/ already: nothing changed."
    elif [ -e "$dir" ] && ! is_sample "$dir"; then
        fail "$dir is there, but has no train/ and val/ in it: move it away, or name another folder with DATA_DIR"
    else
        get_photos
    fi
    ;;
--sample)
    if is_sample "$dir"; then
        echo "The drawn pictures are in $dir/ already: nothing changed."
    elif [ -e "$dir" ]; then
        fail "$dir holds something else already: draw into another folder with DATA_DIR=data-sample sh get_data.sh --sample"
    else
        draw
    fi
    ;;
-h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" && exit ;;
*) fail "unknown argument $1: see sh get_data.sh --help" ;;
esac
show
