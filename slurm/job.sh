# Sourced by the jobs of this folder: the site's settings, and `requeueing COMMAND`.

cd "${SLURM_SUBMIT_DIR:?run it with sbatch, from the project folder}"
if [ ! -f slurm/site.sh ]; then
    echo "error: $PWD is not the project folder; call sbatch from there" >&2
    exit 2
fi
source slurm/site.sh

# .venv's Python, in the site's container where there is one.
contained=()
if [ -n "${ABSCOT_CONTAINER:-}" ]; then
    words=$(xargs -rn1 printf '%s\n' <<< "$ABSCOT_CONTAINER" 2> /dev/null) || {
        echo "error: ABSCOT_CONTAINER: $ABSCOT_CONTAINER: a quote is left open; mend it in slurm/site.sh" >&2
        exit 2
    }
    mapfile -t contained <<< "$words"
fi
contained+=("$(command -v python)")

# srun does not take this over from the job since Slurm 22.05. Where it is not said, a step has all CPUs of the job.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# Slurm's name of this job: <array>_<task>, or its number.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
restarts=${SLURM_RESTART_COUNT:-0}

# Runs COMMAND. SIGUSR1, which Slurm sends the batch shell alone when the time limit is near, is handed on to it: it
# saves and exits with 75, or is ended by the signal (138) where it keeps its work piece by piece. The job then queues
# again, as it does after a crash that need not happen again (1; 137: no memory left for COMMAND itself).
# After SIGTERM (scancel, a preemption without warning) nothing is done: Slurm itself ends or requeues the job.
requeueing() {
    local pid code=0 next interrupted
    "$@" &
    pid=$!
    trap 'interrupted=1; kill -USR1 $pid 2>/dev/null || true' USR1
    while :; do  # a signal ends `wait` early: the command is then still to be waited for
        interrupted= next=0
        wait "$pid" || next=$?
        [ $next = 127 ] || code=$next
        [ -n "$interrupted" ] || break
    done
    case $code in 1 | 75 | 137 | 138) ;; *) exit $code ;; esac
    if [ "$restarts" -ge "$ABSCOT_MAX_RESTARTS" ]; then
        echo "error: job $job is not done after $restarts restarts, and ABSCOT_MAX_RESTARTS allows no more" >&2
        exit 1
    fi
    echo "job $job: goes back into the queue (restart $((restarts + 1)) of $ABSCOT_MAX_RESTARTS)"
    scontrol requeue "$job"
    exit 75
}
