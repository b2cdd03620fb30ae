#!/bin/sh
# Install the packages of requirements.txt, or of another such file, into .venv, or into the folder
# that VENV names: `sh install.sh [FILE]`. The environment's pip installs only the pinned one, by its hash.
#
#   TORCH_INDEX=…   the package index for torch and torchvision; empty: pip's own
#
# On Linux without an NVIDIA GPU, the default is PyTorch's index of CPU builds: those of pip's own index
# bring CUDA's libraries along, which are many times as large.
set -eu
trap 'exit 130' INT TERM
file=${1:-requirements.txt}

install() { "${VENV:-.venv}/bin/python" -m pip install --disable-pip-version-check "$@"; }

fail() { echo "error: can't install the packages of $file$1. Check the connection, then run this again" >&2; exit 1; }

index=
[ "$(uname -s)" != Linux ] || [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null ||
    index=https://download.pytorch.org/whl/cpu
index=${TORCH_INDEX-$index}

echo "Installing the packages of $file"
grep -A 2 '^pip==' requirements-serve.txt | install --quiet -r /dev/stdin 2>/dev/null ||
    fail ": the package index can't be reached, or has no pip of that version and hash"
if [ -n "$index" ] && torch=$(grep -E '^(torch|torchvision)==' "$file"); then
    echo "torch and torchvision from $index"
    # shellcheck disable=SC2086 # several words are meant
    install --index-url "$index" --no-deps --timeout 5 --retries 0 $torch 2>/dev/null ||
        echo "note: can't get them from there, so pip's own index is used: much larger, and as good" >&2
fi
install -r "$file" || fail ": see above"
