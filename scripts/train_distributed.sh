#!/usr/bin/env bash
# Train on all GPUs of this machine, or of several: bash scripts/train_distributed.sh [CONFIG] [options of train_vae.sh].
# GPUS=4 takes fewer of them (processes, on a machine without GPUs). Several machines run the same command, each with
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine MASTER_PORT=29500
# and its own NODE_RANK; the work dir lies on a disk that all of them see. torchrun gives a run that is asked to stop 30 seconds to save.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"

fail() { echo "train_distributed.sh: $1" >&2; exit 2; }

if [[ -z ${GPUS:-} ]]; then
    GPUS=$("$root/.venv/bin/python" -c 'import torch; print(torch.cuda.device_count())')
    ((GPUS > 0)) || fail "no GPU was found; GPUS=2 trains with two processes on the CPU"
fi
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS is not a number of processes"

nodes=${NNODES:-1}
if ((nodes > 1)); then
    [[ -n ${MASTER_ADDR:-} ]] || fail "NNODES=$nodes needs MASTER_ADDR, the name of the machine with NODE_RANK=0"
    [[ -n ${NODE_RANK:-} ]] || fail "NNODES=$nodes needs NODE_RANK, from 0 to $((nodes - 1))"
    where=(--nnodes "$nodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
else
    where=(--standalone)
fi
exec "$root/.venv/bin/python" "$root/scripts/torchrun.py" "${where[@]}" --nproc-per-node "$GPUS" "$root/tools/train.py" "$@"
