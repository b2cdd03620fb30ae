#!/bin/sh
# Get the photos: 397 ants and bees, 47 MB, into data/{train,val}/{ants,bees}.
#
#   sh get_data.sh             download, check and unpack them
#   sh get_data.sh --sample    draw a few pictures instead, for machines without the photos
#
#   DATA_URL=…   another archive: a web address, a file:// address or a path
#   DATA_DIR=…   another folder than data
#
# Run it again to resume a broken download. Everything is checked and unpacked beside the folder,
# then renamed, so the folder is always whole: the old one or the new one.
set -eu

url=${DATA_URL:-https://download.pytorch.org/tutorial/hymenoptera_data.zip}
dir=${DATA_DIR:-data}
dir=${dir%/}
new=$dir.get_data.$$
part=$dir.$(printf %s "$url" | cksum | cut -d ' ' -f 1).part

fail() {
    echo "error: $*" >&2
    exit 1
}

unavailable() {
    echo "error: $*" >&2
    exit 69 # EX_UNAVAILABLE: run.sh goes on without the photos
}

has() { command -v "$1" >/dev/null 2>&1; }

is_data() { [ -d "$1/train" ] && [ -d "$1/val" ]; }

is_sample() { [ -f "$dir/SAMPLE.txt" ]; }

files_in() { # without what systems put there, as training does
    find "$1/." \( -name '.?*' -o -iname __MACOSX -o -iname Thumbs.db -o -iname desktop.ini \) -prune \
        -o \( -type f -o -type l \) -print
}

photos_in() { # with the suffixes that training reads
    files_in "$1" | grep -iE '\.(jpe?g|jfif|png|webp|avif|hei[cf]|bmp|tiff?|p[pg]m)$' || true
}

get_photos() {
    if [ -d "$dir" ] && [ "$(photos_in "$dir")" ] && ! is_sample; then
        echo "The photos are in $dir/ already: nothing changed."
        return
    fi
    is_sample || [ ! -e "$dir" ] ||
        fail "$dir exists, but has no photos in it: move it away, or choose another folder with DATA_DIR"
    has unzip || unavailable "unzip is needed to unpack the photos: install it (apt install unzip, brew install unzip)"
    mkdir -p "$new"
    case $url in
    file://*) archive=${url#file://} ;;
    *://*)
        archive=$part
        download
        ;;
    *) archive=$url ;;
    esac
    [ -f "$archive" ] || fail "there is no file $archive: check DATA_URL"
    unpack
    rm -f "$part"
}

download() {
    has curl || has wget || unavailable "curl or wget is needed to download the photos: install one of them"
    if is_whole "$part"; then
        return # it was downloaded, but not unpacked
    fi
    echo "Downloading $url"
    fetch && return
    code=$?
    if [ -s "$part" ] && { [ "$code" -eq 22 ] || [ "$code" -eq 33 ]; }; then
        rm -f "$part" # this server can't resume it
        fetch && return
        code=$?
    fi
    [ -s "$part" ] || rm -f "$part"
    has curl && full=23 || full=3
    [ "$code" -ne "$full" ] || fail "can't write $part: is the disk full? Make room and run this again"
    unavailable "can't download $url: check the address and the connection, then run this again to resume (or use a copy: DATA_URL=FILE sh get_data.sh)"
}

fetch() { # goes on with $part; shows its progress on a terminal
    if has curl; then
        [ -t 2 ] && progress=--progress-bar || progress=--silent
        curl "$progress" --fail --location --connect-timeout 20 --speed-time 60 --speed-limit 1 \
            --continue-at - --output "$part" "$url"
    else
        [ -t 2 ] && progress=--verbose || progress=--quiet
        wget "$progress" --continue --timeout=60 --tries=2 --output-document="$part" "$url"
    fi
}

# Without -o and -P, unzip asks its terminal about double names and for passwords. Its exit code is 1
# after warnings, as of paths with Windows' backslashes, and if it skips encrypted files.
quiet_unzip() {
    said=$(unzip -q -o -P '' "$@" 2>&1) || [ $? -eq 1 ] || return
    case $said in *'incorrect password'*) return 1 ;; esac
}

is_whole() { quiet_unzip -t "$1"; }

unpack() {
    is_whole "$archive" || {
        rm -f "$part"
        fail "$url is not a whole zip archive, or encrypted: run this again, or check the address"
    }
    quiet_unzip "$archive" -d "$new" ||
        fail "can't unpack into $new: is the disk full? Make room and run this again"
    [ -z "$(find "$new" -type l)" ] || fail "$url has links in it, which may lead anywhere: check the address"
    for found in "$new" "$new"/*; do
        is_data "$found" || continue
        [ "$(photos_in "$found/train")" ] && [ "$(photos_in "$found/val")" ] ||
            fail "$url has no photos in its train/ or val/: check the address"
        put "$found"
        return
    done
    fail "$url has no train/ and val/ folders, so it is not this data set: check the address"
}

draw_sample() {
    if is_sample; then
        echo "The drawn pictures are in $dir/ already: nothing changed."
        return
    fi
    [ ! -e "$dir" ] ||
        fail "$dir holds something else: draw into another folder with DATA_DIR=data-sample sh get_data.sh --sample"
    project=$(cd "$(dirname "$0")" && pwd)
    PATH=$project/.venv/bin:$PATH
    PYTHONPATH=$project python3 -m simplestack draw-sample "$new" 2>/dev/null ||
        fail "can't draw the pictures: that needs the packages (pip install -r requirements.txt) and room on the disk"
    put "$new"
}

put() { # replaces drawn pictures, which can be drawn again, and nothing else
    ! is_sample || mv "$dir" "$new.old"
    [ ! -e "$dir" ] || fail "$dir has appeared meanwhile: nothing changed. Move it away, or use it"
    mv "$1" "$dir"
}

clear_leftovers() { # of runs that were killed
    for left in "$dir".get_data.*; do
        process=${left#"$dir".get_data.}
        process=${process%.old}
        case $process in
        '' | *[!0-9]*) ;; # somebody else's
        *) kill -0 "$process" 2>/dev/null || rm -rf "$left" ;;
        esac
    done
}

show() {
    set -- "$dir"/*/
    ! is_data "$dir" || set -- "$dir"/train/*/ "$dir"/val/*/
    for class; do
        [ -d "$class" ] || continue # photos may lie there without a folder
        class=${class%/}
        photos=$(photos_in "$class" | wc -l)
        others=$(($(files_in "$class" | wc -l) - photos))
        [ "$others" -eq 0 ] && skipped='' || skipped=", $others other skipped"
        echo "${class#"$dir"/}: $((photos)) photos$skipped"
    done
    options=''
    case $dir in *[!A-Za-z0-9_./-]*) named="'$dir'" ;; *) named=$dir ;; esac
    [ "$dir" = data ] && ! is_sample || options=" --data-dir $named"
    if is_sample; then
        echo "These are drawn pictures, not photos."
        options="$options --from-scratch"
    fi
    [ -n "${NO_NEXT+set}" ] || printf '\nNext: python train.py%s\n' "$options"
}

trap 'rm -rf "$new" "$new.old"' EXIT
trap 'exit 130' INT TERM
clear_leftovers
case ${1-} in
"") get_photos ;;
--sample) draw_sample ;;
-h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit
    ;;
*) fail "unknown argument $1: see sh get_data.sh --help" ;;
esac
show
