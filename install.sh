#!/bin/sh
# Install the packages of requirements.txt, or of another such file, into .venv, or into the folder
# that VENV names: `sh install.sh [FILE]`.
#
#   TORCH_INDEX=…   where torch and torchvision come from: an index of packages, or nothing for pip's own
#
# Without an NVIDIA GPU, that is PyTorch's index of builds for CPUs on Linux: those that pip takes
# otherwise bring CUDA's libraries along, which are many times as large.
set -eu
file=${1:-requirements.txt}
python=${VENV:-.venv}/bin/python
log=$(mktemp)
pip=
trap 'rm -f "$log"' EXIT
trap 'kill $pip 2>/dev/null; exit 130' INT TERM

has_gpu() { [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; }

install() { # says what pip downloads, if it is more than 1 MB, and on a terminal how long it has taken
    seen=0 seconds=0
    "$python" -m pip install --disable-pip-version-check --progress-bar off "$@" >"$log" 2>&1 &
    pip=$!
    while kill -0 $pip 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1)) lines=$(wc -l <"$log")
        if [ "$lines" -gt "$seen" ]; then
            sed -n "$((seen + 1)),$((lines))s/^ *Downloading \([^-]*-[^-]*\).*\( (.* [MG]B)\)/downloading \1\2/p" "$log"
            seen=$lines
        fi
        [ ! -t 1 ] || printf '%s s\r' "$seconds"
    done
    wait $pip || {
        grep -v '^ *\(Collecting\|Downloading\|Using cached\|Requirement already\)' "$log" >&2
        return 1
    }
}

index=
[ "$(uname -s)" != Linux ] || has_gpu || index=https://download.pytorch.org/whl/cpu
index=${TORCH_INDEX-$index}

echo "Installing the packages of $file"
if [ -n "$index" ] && torch=$(grep -E '^(torch|torchvision)==' "$file"); then
    echo "torch and torchvision from $index"
    # shellcheck disable=SC2086 # several words are meant
    install --index-url "$index" --no-deps --timeout 5 --retries 0 $torch ||
        echo "note: can't get them from there, so pip's usual index is used: much larger, and as good" >&2
fi
install -r "$file"
