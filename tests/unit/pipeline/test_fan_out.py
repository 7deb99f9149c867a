"""Shards of one machine."""

import sys

from abscot.pipeline.fan_out import generate_on_this_machine


def test_shards_of_one_machine_run_together_and_a_failure_is_the_exit_code(tmp_path):
    script = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1], sys.argv[3]).touch(); sys.exit(3 * "
        "(sys.argv[3] == '1'))"
    )
    assert generate_on_this_machine([sys.executable, "-c", script, str(tmp_path)], 3, 1) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]
