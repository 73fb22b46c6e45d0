#!/usr/bin/env bash
# Makes the virtual environment that `make run` needs, step by step, and says how large each step is.
#
#   builder/environment.sh .venv              TORCH=auto|cpu|cuda chooses torch's build
#
# torch's default wheel for Linux brings several gigabytes of CUDA libraries. `auto` takes it where there is an NVIDIA
# GPU, and elsewhere the CPU build, from PyTorch's own index where that can be reached.
set -euo pipefail

folder=$1
torch="${TORCH:-auto}"
python="${PYTHON:-python3}"
pin=$(grep '^torch==' requirements.txt)
cpu_index=https://download.pytorch.org/whl/cpu
pip=("$folder/bin/python" -m pip --disable-pip-version-check install)
[ -t 1 ] || pip+=(--quiet)

say() { echo "setup: $*"; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "Python 3.11 or newer is needed: make run PYTHON=python3.11" >&2
    exit 1
fi
case "$torch" in
    auto) if nvidia-smi -L >/dev/null 2>&1 || [ "$(uname)" != Linux ]; then torch=cuda; else torch=cpu; fi ;;
    cpu | cuda) ;;
    *) say "TORCH is $torch, it must be auto, cpu or cuda" >&2; exit 1 ;;
esac

has=$(cat "$folder/torch-build" 2>/dev/null || true)
if [ -n "$has" ] && [ "$has" != "$torch" ]; then
    say "$folder has torch's $has build: it is made anew"
    rm -rf "$folder"
fi

say "1 of 3: virtual environment in $folder"
"$python" -m venv "$folder"
if [ "$torch" = cpu ] && [ "$(uname)" = Linux ]; then
    say "2 of 3: $pin, CPU build (about 0.2 GB to download, 0.8 GB on disk; TORCH=cuda for the CUDA build)"
    PIP_RETRIES=1 "${pip[@]}" --no-deps --index-url "$cpu_index" "$pin" 2>/dev/null ||
        say "$cpu_index cannot be reached: torch comes from the usual index, whose build for Linux may be CUDA's, several GB"
else
    say "2 of 3: $pin, default build (with CUDA on Linux: several GB; TORCH=cpu for the CPU build)"
fi
"${pip[@]}" "$pin"
say "3 of 3: the other packages of requirements.txt (about 0.2 GB to download, 0.6 GB on disk)"
"${pip[@]}" -r requirements.txt
echo "$torch" >"$folder/torch-build"
say "done, $(du -sh "$folder" | cut -f1) in $folder"
