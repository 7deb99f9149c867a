"""What every command shares: light imports, one line and exit code 2."""

import subprocess
import sys

import pytest

from abscot.recipe.load import ROOT


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["round.py", "--round", "all", "--set", "no_such=1"], "unknown key no_such"),
        (["round.py", "--round", "all", "--recipe", "no/such.yaml"], "no/such.yaml"),
        (["round.py", "--round", "all", "--set", "model.base=./no-such-model"], "no-such-model"),
        (["round.py", "--round", "all", "--set", "data.source=./no-such.jsonl"], "no-such.jsonl"),
        (["round.py", "--round", "9"], "expected all, 0"),
        (["round.py", "--round", "2"], "round.py --round 0"),
        (["train.py", "--phase", "C"], "--phase C: expected one of A, B"),
        (["train.py", "--phase", "A", "--round", "7"], "--round 7"),
    ],
)
def test_a_user_mistake_is_one_line_with_exit_code_2(arguments, says, tmp_path):
    root = tmp_path / "runs"
    command = [
        sys.executable,
        str(ROOT / "launch" / arguments[0]),
        *arguments[1:],
        "--set",
        f"run_root={root}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and says in done.stderr
    assert "Traceback" not in done.stderr
    assert not root.exists(), "a refused command writes nothing"


def test_import_is_light():
    """`import abscot` and what the launch scripts need for --help and --dry-run load no torch."""
    modules = "sys, abscot.cli, abscot.pipeline.runner, abscot.method.phases"
    code = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
