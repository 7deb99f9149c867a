"""One writer for each piece of a run: a live owner keeps it, a dead one loses it, its stages
inherit it.
"""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from abscot.common.errors import UserError
from abscot.pipeline import lease
from abscot.pipeline.lease import INHERITED, RUN, claimed, exclusive
from abscot.recipe.load import dump
from kit.corpus import one_line
from kit.tiny_run import tiny_recipe

LEASE_S = 0.6


def leases(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / ".leases").glob("*.json") if path.is_file())


def foreign_lease(directory, renewed_s_ago: float = 0.0, **fields) -> Path:
    """The lease of an owner on another host."""
    lease = directory / ".leases" / "0.json"
    lease.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": "elsewhere", "pid": 1, "job": None, "restarts": 0, "pieces": [RUN], **fields}
    lease.write_text(json.dumps(owner))
    os.utime(lease, (time.time() - renewed_s_ago,) * 2)
    return lease


def hold(directory, *pieces: str) -> float:
    """Seconds until the pieces were ours."""
    began_s = time.monotonic()
    with exclusive(directory, *(pieces or [RUN]), lease_s=LEASE_S):
        took_s = time.monotonic() - began_s
        assert os.getpid() in [json.loads(path.read_text())["pid"] for path in leases(directory)]
    return took_s


def forget() -> None:
    """What this process holds, those that it starts inherit; from here on it is a stranger."""
    del os.environ[INHERITED]


def test_a_second_process_is_told_who_works_there(tmp_path):
    with exclusive(tmp_path, RUN):
        forget()
        with pytest.raises(UserError, match=f"pid {os.getpid()} on {socket.gethostname()}") as said:
            hold(tmp_path)
        one_line(str(said.value), "another process works on this run", str(tmp_path), "wait for it")
        assert len(leases(tmp_path)) == 1
    hold(tmp_path)
    assert leases(tmp_path) == []


@pytest.mark.parametrize(
    "held, asked, together",
    [
        (["a 0"], ["a 1"], True),
        (["a 0", "a 2"], ["a 1", "a 3"], True),
        (["a 0", "a 1"], ["a 1", "a 2"], False),
        ([RUN], ["a 0"], True),
        (["a 0"], [RUN], True),
        (["report"], ["report"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_only_those_with_a_piece_in_common_exclude_each_other(tmp_path, held, asked, together):
    with exclusive(tmp_path, *held):
        if together:
            hold(tmp_path, *asked)
        else:
            common = next(piece for piece in held if piece in asked)
            with pytest.raises(UserError, match=f"works on {common} of this run"):
                hold(tmp_path, *asked)


def forked(tmp_path, grandchild: bool = False) -> int:
    """A process that holds the run until it is killed; perhaps one that has a child."""
    pid = os.fork()
    if pid == 0:
        with exclusive(tmp_path, RUN):
            if not grandchild or os.fork() > 0:
                (tmp_path / "holds").touch()
            time.sleep(5)
            os._exit(0)
    while not (tmp_path / "holds").exists():
        time.sleep(0.01)
    return pid


@pytest.mark.parametrize("grandchild", [False, True])
def test_a_killed_owner_on_this_host_is_succeeded_at_once(tmp_path, grandchild):
    pid = forked(tmp_path, grandchild)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert hold(tmp_path) < 0.5
    assert leases(tmp_path) == []


def test_a_silent_owner_on_another_host_is_outlived(tmp_path):
    foreign_lease(tmp_path)
    assert LEASE_S * 0.9 < hold(tmp_path) < LEASE_S + 2
    foreign_lease(tmp_path, renewed_s_ago=60)
    assert hold(tmp_path) < 0.5


def test_an_owner_on_another_host_that_renews_keeps_it(tmp_path):
    lease = foreign_lease(tmp_path)
    renewal = threading.Timer(LEASE_S / 2, os.utime, [lease])
    renewal.start()
    with pytest.raises(UserError, match="pid 1 on elsewhere"):
        hold(tmp_path)
    assert leases(tmp_path) == [lease]


def test_a_requeued_job_succeeds_its_own_earlier_life(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    foreign_lease(tmp_path, job="17")
    assert hold(tmp_path) < 0.5


def test_two_tasks_of_one_job_are_no_lives_of_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    foreign_lease(tmp_path, job="17")
    assert hold(tmp_path) > LEASE_S * 0.9


@pytest.fixture
def ignored_interrupts():
    """As for what a shell script starts with `&`, which is how slurm/job.sh starts a round."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_owner_whose_lease_was_taken_over_ends(tmp_path, ignored_interrupts):
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path, RUN, lease_s=LEASE_S):
        leases(tmp_path)[0].unlink()
        time.sleep(60)


def test_an_owner_that_cannot_end_by_itself_is_ended(tmp_path, monkeypatch):
    """Its main thread waits for other ranks, and hears no signal."""
    monkeypatch.setattr(lease, "ENDING_S", 0.2)
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, [lease.TAKEN_OVER])
        with exclusive(tmp_path, RUN, lease_s=LEASE_S):
            leases(tmp_path)[0].unlink()
            time.sleep(10)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130


def test_stages_of_the_owner_inherit_its_lease(tmp_path):
    with exclusive(tmp_path, RUN):
        lease = Path(os.environ[INHERITED])
        with exclusive(tmp_path, RUN):  # as a stage, which has the environment of its owner
            assert leases(tmp_path) == [lease]
        with exclusive(tmp_path, "a"):
            assert len(leases(tmp_path)) == 2
            assert os.environ[INHERITED] == str(lease)
    assert INHERITED not in os.environ


def test_a_stage_whose_owner_lost_the_run_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setenv(INHERITED, str(tmp_path / ".leases" / "gone.json"))
    with pytest.raises(UserError, match="works on this run no more"):
        hold(tmp_path)


def test_a_lease_of_another_run_is_not_inherited(tmp_path):
    with exclusive(tmp_path / "one", RUN), exclusive(tmp_path / "two", RUN):
        assert len(leases(tmp_path / "two")) == 1


def test_a_refused_command_does_not_change_the_recipe_of_the_run(tmp_path):
    recipe = tiny_recipe(tmp_path)
    with claimed(recipe) as run:
        forget()
        recipe.hang_minutes += 1
        before = run.config.read_text()
        with pytest.raises(UserError, match="another process works on this run"), claimed(recipe):
            pass
        assert run.config.read_text() == before
    with claimed(recipe):
        assert run.config.read_text() == dump(recipe)


BAD = {
    "empty": b"",
    "cut": b'{"host": "elsew',
    "binary": bytes(range(256)),
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"17",
    "other_keys": b'{"host": "h", "pid": 1, "job": null, "restarts": 0, "pieces": [], "x": 1}',
    "missing_keys": b'{"host": "h"}',
    "other_types": b'{"host": 1, "pid": "1", "job": 2, "restarts": null, "pieces": "run"}',
    "deep": b"[" * 100_000,
    "pieces_of_numbers": b'{"host": "h", "pid": 1, "job": null, "restarts": 0, "pieces": [1]}',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_damaged_lease_runs_out_like_one_that_is_not_renewed(tmp_path, text):
    lease = foreign_lease(tmp_path)
    lease.write_bytes(text)
    assert hold(tmp_path) > LEASE_S * 0.9
    lease.write_bytes(text)
    os.utime(lease, (0, 0))
    assert hold(tmp_path) < 0.5
    assert leases(tmp_path) == []


def test_a_damaged_lease_of_a_live_owner_is_one_line(tmp_path):
    with exclusive(tmp_path, RUN):
        forget()
        lease = leases(tmp_path)[0]
        lease.write_bytes(b"")
        with pytest.raises(UserError) as said:
            hold(tmp_path)
        one_line(str(said.value), str(lease), "cannot be read", "wait for it or end it")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_file_is_no_lease(tmp_path, make):
    (tmp_path / ".leases").mkdir()
    make(tmp_path / ".leases" / "x.json")
    assert hold(tmp_path) < 0.5
