#!/usr/bin/env bash
# Set-up, then all tests. Arguments go to pytest:  bash tests/run.sh -m 'not engine and not vllm and not slurm'
# Tests that need a GPU, Slurm or a browser are skipped without one, and say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
install() {  # COMMAND MARKER PACKAGE ..: what a marker needs, once, where there is apt and root
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests: no $1, and no root and apt to install it by; the tests marked $2 are skipped"
        return
    fi
    echo "tests: installing $1 for the tests marked $2"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${@:3}"; } >/dev/null 2>&1 \
        || echo "tests: it could not be installed; the tests marked $2 are skipped"
}
install slurmctld slurm slurm-wlm munge
install chromium browser --no-install-recommends chromium
code=0
pytest() { .venv/bin/python -m pytest "$@" || code=$?; }
if [ $# != 0 ]; then
    pytest "$@"
else  # engines want the machine for themselves
    pytest -n logical --maxprocesses 4 tests/corpus tests/unit
    pytest tests/engines
    if compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
        echo "tests: CUDA was hidden from all of these; now those of the GPU"
        pytest -m gpu
    fi
fi
exit $code
