#!/usr/bin/env bash
# A task of srun: shard i of n of COMMAND, on its own GPUs among those that the node's tasks see together.
#
#   srun --ntasks=16 bash slurm/shard.sh GPUS_A_TASK COMMAND ..
set -euo pipefail
each=$1
shift
IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-}"
if [ ${#gpus[@]} -gt "$each" ]; then  # otherwise the site binds GPUs to tasks itself, or there are none
    mine=("${gpus[@]:SLURM_LOCALID * each:each}")
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}")
    export CUDA_VISIBLE_DEVICES
fi
exec "$@" --shard "$SLURM_PROCID" --of "$SLURM_STEP_NUM_TASKS"
