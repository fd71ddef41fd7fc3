#!/usr/bin/env bash
# Trains a stage on GPU nodes under Slurm, one process for each GPU:
#
#   sbatch launch/gpu_slurm.sh --config=t2a --workdir=/shared/runs/t2a \
#     --config.data.data_dir=/shared/data [any flag of maa_jax.train]
#
# Submit from the checkout, with the environment (pip install -e ".[cuda,train]") in .venv, both on a
# disk that every node sees. Submit it again to resume from the latest checkpoint.
#
# Checked for syntax only, not run on a cluster yet. The sizes below are for 2 nodes of 8 GPUs.
#SBATCH --job-name=maa_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
# All of a node's GPUs are shown to each of its tasks: JAX picks one by SLURM_LOCALID.
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Five minutes before the time limit, every task is told to save and stop.
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail
if [ $# = 0 ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck disable=SC1091
. .venv/bin/activate
# maa_jax.train finds the other tasks by the variables that Slurm sets.
srun --kill-on-bad-exit=1 python -m maa_jax.train "$@"
