#!/usr/bin/env bash
# From nothing to a report: makes .venv, installs mixprec and the embedded model, runs recipes/quickstart.yaml.
# Run it again at any time: what is done is kept. Needs Python 3.11 or newer and pip.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

make_environment base
cd "$root"
"$venv/bin/python" -m mixprec run recipes/quickstart.yaml

printf '\nThe report: %s\n' "$root/runs/quickstart/report.html"
printf 'For the command mixprec: source %s/bin/activate\n' "$venv"
