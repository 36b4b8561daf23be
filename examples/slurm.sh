#!/usr/bin/env bash
# A recipe under Slurm. A job that reaches its time limit, or is preempted, is put back into the queue and continues.
#
#   sbatch examples/slurm.sh mine.yaml /shared/runs/mine
#
#SBATCH --job-name=mixprec
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
recipe=${1:?usage: sbatch slurm.sh RECIPE RUN_FOLDER}
out=${2:?usage: sbatch slurm.sh RECIPE RUN_FOLDER}

# Two minutes before the end: mixprec stops in a state that the next start continues from.
again() {
    kill -INT "$work"
    wait "$work" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again TERM

mixprec run "$recipe" --out "$out" --set model.device=cuda &
work=$!
wait "$work"
