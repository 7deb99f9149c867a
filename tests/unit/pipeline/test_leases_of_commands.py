"""Which command is kept out by which other."""

import os

import pytest

from abscot.pipeline.lease import INHERITED, REPORT, RUN, exclusive
from kit.corpus import launch, one_line
from kit.tiny_run import make_tiny_run

TRACES = ["traces.py", "--round", "1", "--phase", "A"]
CHUNK_0, CHUNK_1 = "traces pi1_phaseA chunk 0", "traces pi1_phaseA chunk 1"
SHARD_0 = [*TRACES, "--shard", "0", "--of", "2"]
EVALUATE = ["evaluate.py", "--model", "base", "--mode", "no_cot"]


@pytest.mark.parametrize(
    "held, command",
    [
        (RUN, ["round.py", "--round", "1"]),
        (RUN, ["ladder.py"]),
        (RUN, ["extend.py"]),
        (RUN, ["prepare.py"]),
        (CHUNK_0, TRACES),
        (CHUNK_1, TRACES),
        (CHUNK_0, SHARD_0),
        ("no_cot_base_world sample 0", EVALUATE),
        (REPORT, ["report.py"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_the_second_is_refused_in_one_line(capfd, monkeypatch, tmp_path, held, command):
    _, run, _ = make_tiny_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    script, *arguments = command
    with exclusive(run.root, held):
        os.environ.pop(INHERITED, None)
        code, line = launch(capfd, monkeypatch, script, "--recipe", str(run.config), *arguments)
    assert code == 2, line
    one_line(line, f"{run.root}: another process works on ", f"pid {os.getpid()} on ")
    after = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()}
    written = {path for path, time in after.items() if before.get(path) != time}
    assert {path.name for path in written if ".leases" not in path.parts} <= {"lock"}


@pytest.mark.parametrize(
    "held, command",
    [
        (RUN, TRACES),
        (CHUNK_1, SHARD_0),
        (REPORT, TRACES),
        ("no_cot_base_world sample 0", TRACES),
        (CHUNK_0, ["report.py"]),
        (RUN, ["report.py"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_other_pieces_are_made_beside_it(capfd, monkeypatch, tmp_path, held, command):
    _, run, _ = make_tiny_run(tmp_path)
    script, *arguments = command
    with exclusive(run.root, held):
        os.environ.pop(INHERITED, None)
        code, line = launch(capfd, monkeypatch, script, "--recipe", str(run.config), *arguments)
    assert code == 0, line


def test_a_world_is_made_once(capfd, monkeypatch, tmp_path):
    keys = ["--set", f"run_root={tmp_path}", "--set", "name=w"]
    with exclusive(tmp_path / "w", RUN):
        (tmp_path / "w" / "config.yaml").write_text("name: w")
        os.environ.pop(INHERITED, None)
        code, line = launch(capfd, monkeypatch, "world.py", *keys)
    assert code == 2
    one_line(line, "another process works on this run")
