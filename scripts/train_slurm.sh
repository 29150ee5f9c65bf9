#!/usr/bin/env bash
# Train under Slurm, on as many machines as the job gets: sbatch --nodes 2 scripts/train_slurm.sh [CONFIG] [options of train_vae.sh].
# Run `bash install.sh` once before, where the compute nodes see it. Before the time limit Slurm asks the run to stop; it saves, leaves,
# and the job is queued again to continue.
#SBATCH --job-name=cascadev
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

# Slurm runs a copy of this script elsewhere: the project is where the job was submitted.
root=${CASCADEV:-$SLURM_SUBMIT_DIR}
[[ -f $root/scripts/train_distributed.sh ]] || { echo "train_slurm.sh: submit from the project's folder, or set CASCADEV to it" >&2; exit 2; }

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT NNODES=$SLURM_NNODES GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}

stopping=
# A step no longer takes --cpus-per-task over from its job (Slurm 22.05).
# shellcheck disable=SC2016  # each task fills in its own rank
srun --kill-on-bad-exit=1 --cpus-per-task "$SLURM_CPUS_PER_TASK" bash -c 'NODE_RANK=$SLURM_PROCID exec bash "$0" "$@"' "$root/scripts/train_distributed.sh" "$@" &
training=$!
trap 'stopping=1; kill -TERM "$training" 2>/dev/null || true' TERM
code=0
wait "$training" || code=$?
if [[ -n $stopping ]]; then
    wait "$training" || true # the first wait was cut short by the signal
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
