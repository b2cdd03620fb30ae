#!/bin/sh
# Install the packages of requirements.txt into .venv, or into the folder that VENV names.
#
#   TORCH_INDEX=…   where torch and torchvision come from: an index of packages, or nothing for pip's own
#
# Without an NVIDIA GPU, that is PyTorch's index of builds for CPUs on Linux: those that pip takes
# otherwise bring CUDA's libraries along, which are many times as large.
set -eu
pip="${VENV:-.venv}/bin/python -m pip install --disable-pip-version-check"

has_gpu() { [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; }

index=
[ "$(uname -s)" != Linux ] || has_gpu || index=https://download.pytorch.org/whl/cpu
index=${TORCH_INDEX-$index}

if [ -n "$index" ]; then
    echo "Installing torch and torchvision from $index"
    # shellcheck disable=SC2046,SC2086 # several words are meant
    $pip --index-url "$index" --no-deps --timeout 5 --retries 0 \
        $(grep -E '^(torch|torchvision)==' requirements.txt) ||
        echo "note: can't get them from there, so pip's usual index is used: much larger, and as good" >&2
fi
exec $pip -r requirements.txt
