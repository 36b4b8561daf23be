#!/usr/bin/env bash
# Style, types, import walls and tests, in .venv (or $MIXPREC_VENV). Arguments go to pytest:
#
#   bash scripts/test.sh                 everything but slow and GPU tests
#   bash scripts/test.sh -m slow         the slow ones
#   bash scripts/test.sh -k groupwise    by name
#   bash scripts/test.sh --cov=mixprec   with coverage, which takes a third more
#
# Files of tests are shared among two processes of one thread each; MIXPREC_TEST_WORKERS says among how many.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

make_environment dev
cd "$root"
in_venv() {
    printf '== %s\n' "$*"
    "$venv/bin/python" -m "$@"
}
in_venv ruff check .
in_venv ruff format --check .
in_venv mypy
printf '== lint-imports\n'
"$venv/bin/python" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
# Last, so that the summary of the tests is the last thing to read.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
in_venv pytest -n "${MIXPREC_TEST_WORKERS:-2}" --dist loadfile -m "not slow and not gpu" "$@"
