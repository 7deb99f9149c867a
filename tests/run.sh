#!/usr/bin/env bash
# Set-up, then all tests. Arguments go to pytest:  bash tests/run.sh -m 'not engine and not vllm and not slurm'
# Tests that need a GPU or Slurm are skipped without one, and say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
if ! command -v slurmctld >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "tests: installing slurm-wlm and munge for the tests marked slurm"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge; } >/dev/null 2>&1 \
        || echo "tests: they could not be installed; the tests marked slurm are skipped"
fi
exec .venv/bin/python -m pytest "$@"
