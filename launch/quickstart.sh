#!/usr/bin/env bash
# Set-up, then the whole three-round warm-up on the embedded tiny world: a laptop's CPU is enough.
# Started again it goes on from the last finished stage, or prints the table if there is nothing left to do.
#
#   bash launch/quickstart.sh                                  runs/tiny-cpu
#   bash launch/quickstart.sh --set name=mine --set seed=1     any recipe key
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
exec .venv/bin/python launch/round.py --round all "$@"
