#!/usr/bin/env bash
# Submits a whole run: prepare -> round 1 .. T -> eval -> report, each after the one before it is done.
#
#   bash slurm/submit.sh launch/recipes/qwen3-4b-full-600k.yaml --nodes 8 --gpus-per-node 8
#   bash slurm/submit.sh launch/recipes/tiny-cpu.yaml --nodes 2
#
#   --nodes N          nodes of a round (default 1)
#   --gpus-per-node G  GPUs, and so ranks, of each (default: CPUs only, two ranks per node)
#   --cpus-per-gpu C   CPUs of each rank and each engine (default with GPUs: 8, which nodes of 64 cores and 8 GPUs have)
#   --mem SIZE         memory of each node of a round, as sbatch takes it: 960G (default with GPUs: 0, all of it, for a
#                      round is meant to own its nodes). An evaluation cell gets a GPU's share of it; of 0, 64G for each GPU
#   --grid FILE        cells of the evaluation, like slurm/grid.yaml (default: every model, the recipe's benchmarks)
#   --set KEY=VALUE    change a recipe key (repeatable)
#   --dry-run          print the jobs and what each runs; submit nothing
#
# Account, partition and time limit: slurm/site.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source slurm/site.sh
fail() { echo "error: $*" >&2; exit 2; }

recipe= nodes=1 gpus=0 cpus= mem= dry= sets=() grid=()
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=1 ;;
        --nodes | --gpus-per-node | --cpus-per-gpu | --mem | --grid | --set)
            [ $# -gt 1 ] || fail "$1: expected a value"
            case $1 in
                --nodes) nodes=$2 ;;
                --gpus-per-node) gpus=$2 ;;
                --cpus-per-gpu) cpus=$2 ;;
                --mem) mem=$2 ;;
                --grid) grid=(--grid "$2") && export GRID=$2 ;;
                *) sets+=(--set "$2") ;;
            esac
            shift ;;
        -*) fail "$1: expected --nodes, --gpus-per-node, --cpus-per-gpu, --mem, --grid, --set or --dry-run" ;;
        *) [ -z "$recipe" ] || fail "$1: expected one recipe, and $recipe is given"; recipe=$1 ;;
    esac
    shift
done
[ -n "$recipe" ] || fail "no recipe given, e.g. bash slurm/submit.sh launch/recipes/tiny-cpu.yaml"
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[0-9]+$ ]] || fail "--nodes $nodes --gpus-per-node $gpus: expected whole numbers"
if [ "$gpus" = 0 ]; then
    [ -z "$cpus" ] || fail "--cpus-per-gpu $cpus: expected together with --gpus-per-node"
else
    cpus=${cpus:-8} mem=${mem:-0}
    [[ $cpus =~ ^[1-9][0-9]*$ ]] || fail "--cpus-per-gpu $cpus: expected a whole number"
fi
[[ $mem =~ ^[1-9][0-9]*$ ]] && mem+=M  # as sbatch reads it
[[ $mem =~ ^(0|[1-9][0-9]*[KMGT])?$ ]] || fail "--mem $mem: expected memory as sbatch takes it, such as 960G; 0: all of a node"
[ -n "$dry" ] || command -v sbatch > /dev/null || fail "sbatch not found: run this on a login node, or add --dry-run"

arguments=(--recipe "$recipe" "${sets[@]}")
shape=$(python - "${arguments[@]}" <<'PY'
import sys
from abscot import cli
def show():
    recipe = cli.recipe_of(cli.recipe_parser("").parse_args())
    print(recipe.rounds, recipe.inference.tensor_parallel)
cli.run(show)
PY
)
read -r rounds engine_gpus <<< "$shape"
tasks=$((gpus ? gpus : 2))
many=(--nodes="$nodes" --ntasks-per-node="$tasks" ${cpus:+--cpus-per-task="$cpus"} ${mem:+--mem="$mem"})
one=(${mem:+--mem="$mem"})
if [ "$gpus" != 0 ]; then  # an engine on inference.tensor_parallel GPUs, with their share of the node
    megabytes=65536
    [ "$mem" = 0 ] || megabytes=$(($(numfmt --from=iec "$mem") / 1048576 / gpus))
    one=(--gpus-per-node="$engine_gpus" --cpus-per-task=$((cpus * engine_gpus)) --mem=$((megabytes * engine_gpus))M)
fi
cells=$(python launch/evaluate.py "${arguments[@]}" "${grid[@]}" --cells)

# submit NAME SBATCH-ARGUMENT..: after the job before it. Sets `previous` to the new job's number.
previous=
submit() {
    local name=$1 command
    shift
    command=(sbatch --parsable ${previous:+--dependency="afterok:$previous"} "$@")
    if [ -n "$dry" ]; then
        previous="<$name>"
        printf '%s: %s\n' "$name" "${command[*]}"
    else
        previous=$("${command[@]}")
        previous=${previous%%;*}  # of several clusters Slurm names which
        printf '%-9s %s\n' "$previous" "$name"
    fi
}

# The stages of a round as they will run on `nodes` nodes of `tasks` tasks.
show() {
    [ -z "$dry" ] || SLURM_JOB_ID=0 SLURM_JOB_NUM_NODES=$2 SLURM_NTASKS=$3 SLURM_CPUS_PER_TASK=$cpus SLURM_GPUS_ON_NODE=$gpus \
        python launch/round.py --round "$1" $WITHOUT_EVALUATION --dry-run "${arguments[@]}" | sed 's/^/    /'
}

submit prepare "${many[@]}" slurm/prepare.sbatch "${arguments[@]}"
show 0 "$nodes" $((nodes * tasks))
if [ "$gpus" != 0 ]; then many+=(--gpus-per-node="$gpus"); fi
for round in $(seq 1 "$rounds"); do
    submit "round $round" --array="$round" "${many[@]}" slurm/round.sbatch "${arguments[@]}"
    show "$round" "$nodes" $((nodes * tasks))
done
submit eval --array="0-$(($(wc -l <<< "$cells") - 1))" "${one[@]}" slurm/eval.sbatch "${arguments[@]}"
[ -z "$dry" ] || sed 's/^/    cell /' <<< "$cells"
submit report "${one[@]}" slurm/report.sbatch "${arguments[@]}"
[ -n "$dry" ] || echo "follow it with: squeue --me, and python launch/status.py runs/NAME"
