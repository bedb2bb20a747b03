#!/usr/bin/env bash
# Several nodes under Slurm: the pipeline runs on the first, each training stage on all of them.
#   sbatch deployments/accelerate/slurm.sh node-8 --home /shared/bessemer
# The home folder and this checkout must lie on a file system that all nodes share.
#SBATCH --job-name=bessemer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run me with sbatch from the checkout}"
gpus=8
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export BESSEMER_LAUNCHER="srun --nodes=$SLURM_NNODES --ntasks=$SLURM_NNODES --kill-on-bad-exit=1 \
  .venv/bin/torchrun --nnodes=$SLURM_NNODES --nproc-per-node=$gpus --max-restarts=0 \
  --rdzv-id=$SLURM_JOB_ID --rdzv-backend=c10d --rdzv-endpoint=$head_node:29500"
exec .venv/bin/bessemer run "$@" --processes $((SLURM_NNODES * gpus)) --strategy fsdp2
