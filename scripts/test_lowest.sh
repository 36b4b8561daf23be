#!/usr/bin/env bash
# A quick part of the tests with the lowest versions that pyproject.toml allows, in an environment of its own,
# .venv-lowest (or $MIXPREC_VENV): models loaded, converted and compressed, checkpoints of every format read back,
# importance beside full backpropagation, a whole run. Left out: what only newer versions refuse, and Gemma 4, whose
# blocks hand a table to one another there, so that it is refused. Arguments go to pytest.
#
# On x86 Linux PyPI has older torch with GPU libraries alone: 7.6 GB on disk. TORCH=2.13.0 takes another version of it.
set -euo pipefail
export MIXPREC_VENV=${MIXPREC_VENV:-.venv-lowest}
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

make_environment lowest
cd "$root"
# Conversions of other versions stay apart: their configurations differ in a few bytes.
export MIXPREC_CACHE=$venv/.cache
models=tests/models/test_architectures.py
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$venv/bin/python" -m pytest -q -n "${MIXPREC_TEST_WORKERS:-2}" --dist loadfile -m "not slow and not gpu" "$@" \
    tests/test_import.py tests/test_versions.py tests/models tests/importance/test_engine.py \
    tests/checkpoint/test_gguf_pieces.py tests/checkpoint/test_checkpoint_formats.py tests/pipeline/test_pipeline.py \
    --deselect tests/checkpoint/test_checkpoint_formats.py::test_transformers_refuses_packed_zero_points_otherwise \
    --deselect "$models::test_a_model_is_what_transformers_makes_of_it[gemma4_text]" \
    --deselect "$models::test_samples_end_where_the_whole_model_takes_each[2-gemma4_text]" \
    --deselect "$models::test_samples_end_where_the_whole_model_takes_each[3-gemma4_text]" \
    --deselect "$models::test_a_compressed_model_is_the_one_that_transformers_loads[gemma4_text]"
