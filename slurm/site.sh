# What differs from cluster to cluster: edit it once. Sourced by submit.sh and by every job of this folder.

# Read by sbatch, so they matter where sbatch is called: submit.sh does it, by hand it is `source slurm/site.sh` first.
# export SBATCH_ACCOUNT=my-account
# export SBATCH_PARTITION=gpu
# export SBATCH_TIMELIMIT=1-00:00:00

# CUDA as torch has it (.venv/bin/python -c 'import torch; print(torch.version.cuda)'): DeepSpeed compiles its CPU Adam with
# it, and refuses another major version. CUDA 13 wants driver 580 or newer on the nodes.
# module load cuda/13.0 gcc/12

# The nodes see this folder, the virtual environment and the run directory under the same path, on a shared file system.
if [ -f .venv/bin/activate ]; then
    source .venv/bin/activate
fi

# Every process of a stage starts in this container; what calls srun, sbatch and scontrol stays outside. The image needs the
# Python that .venv was made with, at the same path, and sees this folder and the run directory under the same path too. The
# environment goes in (no --cleanenv): a stage knows by it whose it is.
# export ABSCOT_CONTAINER="apptainer exec --nv --bind $PWD /path/to/image.sif"

# How often a job may put itself back into the queue before it gives up.
export ABSCOT_MAX_RESTARTS=${ABSCOT_MAX_RESTARTS:-100}

# Evaluation is an array job of its own (eval.sbatch), so that the nodes of a round do not wait for it.
WITHOUT_EVALUATION=$([ "${ABSCOT_EVALUATE:-0}" = 1 ] || echo --without-evaluation)
