#!/usr/bin/env bash
# Makes the environments of the quantizers that mixprec is compared with, and of the runtimes that have to load what it
# writes, one for each, as their pins exclude one another:
#
#   benchmarks/peers/build.sh [llmcompressor] [gptqmodel] [autoround] [modelopt] [llamacpp] [vllm] [mlx]     default: all
#
# They lie in $MIXPREC_PEERS (default .peers in the repository, ignored by git), 1 to 2 GB each. What is there with the
# same pins is left as it is; an environment whose pins have changed is made again.
#
# PYTHON         the interpreter to start from (default python3, 3.11 or newer)
# MIXPREC_PEERS  another folder
#
# Where pip's default torch for your platform brings GPU libraries that you don't want, point pip to the CPU builds first
# (PIP_INDEX_URL or PIP_EXTRA_INDEX_URL).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
peers=${MIXPREC_PEERS:-$root/.peers}
torch="torch==2.13.0"
known="llmcompressor gptqmodel autoround modelopt llamacpp vllm mlx"

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# What an environment was made from: its pins and its interpreter.
key_of() {
    local pins=("$here/pins/$1".txt) more
    for more in no-deps remove; do
        if [ -f "$here/pins/$1.$more.txt" ]; then pins+=("$here/pins/$1.$more.txt"); fi
    done
    { printf '%s\n' "$torch" "$("$python" -V)"; cat "${pins[@]}"; } | "$python" -c '
import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

build() {
    local name=$1 folder=$peers/$1 key
    key=$(key_of "$name")
    # Two builds at once would write into one environment; the second waits and finds it there.
    mkdir -p "$peers"
    exec 9>"$peers/.$name.lock"
    if command -v flock >/dev/null; then flock 9; fi
    if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/.mixprec-peer" 2>/dev/null)" = "$key" ]; then
        printf '%s is there\n' "$folder"
        return
    fi
    # An environment that was broken off half-way is made again; any other folder is left alone.
    if [ -e "$folder" ] && ! [ -f "$folder/pyvenv.cfg" ]; then
        fail "$folder is there but no virtual environment; remove it or set MIXPREC_PEERS"
    fi
    printf 'making %s (some minutes)\n' "$folder"
    "$python" -m venv --clear "$folder"
    # torch by itself and with its version, and nothing after it may replace it.
    printf '%s\n' "$torch" >"$folder/constraints.txt"
    if ! grep -q '^# needs no torch' "$here/pins/$name.txt"; then install "$folder" "$torch"; fi
    install "$folder" -r "$here/pins/$name.txt"
    if [ -f "$here/pins/$name.no-deps.txt" ]; then
        install "$folder" --no-deps -r "$here/pins/$name.no-deps.txt"
    fi
    # What a package asks for, and what breaks it when it is there.
    if [ -f "$here/pins/$name.remove.txt" ]; then
        "$folder/bin/python" -m pip uninstall --quiet --yes -r "$here/pins/$name.remove.txt"
    fi
    printf '%s\n' "$key" >"$folder/.mixprec-peer"
}

install() {
    local folder=$1
    shift
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$folder/constraints.txt" "$@" ||
        fail "pip could not install $*; run the same command again, or see pip's message above"
}

# llama.cpp is compiled (some 15 minutes on one core), without what reads pictures.
export CMAKE_ARGS=${CMAKE_ARGS:--DLLAVA_BUILD=OFF}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python is not there; name another one: PYTHON=python3.12 bash $0"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" -V) is too old; 3.11 or newer is needed"
for name in "${@:-$known}"; do
    for one in $name; do
        case " $known " in *" $one "*) ;; *) fail "$one is none of: $known" ;; esac
    done
done
mkdir -p "$peers"
printf '# Written by benchmarks/peers/build.sh.\n*\n' >"$peers/.gitignore"
# shellcheck disable=SC2086
for name in ${*:-$known}; do build "$name"; done
