#!/usr/bin/env bash
# A quick part of the tests with the lowest versions that pyproject.toml allows, in an environment of its own,
# .venv-lowest (or $MIXPREC_VENV): models loaded, converted and compressed, checkpoints of every format read back,
# importance beside full backpropagation, a whole run. Arguments go to pytest.
set -euo pipefail
export MIXPREC_VENV=${MIXPREC_VENV:-.venv-lowest}
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

make_environment lowest
cd "$root"
"$venv/bin/python" -m pip check
"$venv/bin/python" -m pytest -q -m "not slow and not gpu" "$@" \
    tests/test_import.py tests/test_versions.py tests/test_models.py tests/models tests/importance/test_engine.py \
    tests/checkpoint/test_checkpoint_formats.py tests/checkpoint/test_gguf_pieces.py tests/pipeline/test_pipeline.py
