"""One writer a run directory: a live owner keeps it, a dead one loses it."""

import json
import os
import signal
import socket
import threading
import time

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.pipeline.lease import exclusive

LEASE_S = 1.2


def foreign_lease(directory, renewed_s_ago: float = 0.0, job: str | None = None) -> None:
    """The lease of an owner on another host."""
    lease = directory / ".lease"
    files.write_json_atomic(lease, {"host": "elsewhere", "pid": 1, "job": job, "token": "t"})
    os.utime(lease, (time.time() - renewed_s_ago,) * 2)


def hold(directory) -> float:
    """Seconds until the directory was ours."""
    began_s = time.monotonic()
    with exclusive(directory, LEASE_S):
        owner = json.loads((directory / ".lease").read_text())
        assert owner["pid"] == os.getpid() and owner["host"] == socket.gethostname()
    assert not (directory / ".lease").exists()
    return time.monotonic() - began_s


def test_a_second_process_is_told_who_works_there(tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match=f"pid {os.getpid()} on {socket.gethostname()}"),
    ):
        hold(tmp_path)
    hold(tmp_path)


def test_a_killed_owner_on_this_host_is_succeeded_at_once(tmp_path):
    pid = os.fork()
    if pid == 0:
        with exclusive(tmp_path):
            time.sleep(60)
    while not (tmp_path / ".lease").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert hold(tmp_path) < 0.5


def test_a_silent_owner_on_another_host_is_outlived(tmp_path):
    foreign_lease(tmp_path)
    assert LEASE_S * 0.9 < hold(tmp_path) < LEASE_S + 2
    foreign_lease(tmp_path, renewed_s_ago=60)
    assert hold(tmp_path) < 0.5


def test_an_owner_on_another_host_that_renews_keeps_it(tmp_path):
    foreign_lease(tmp_path)
    renewal = threading.Timer(LEASE_S / 2, os.utime, [tmp_path / ".lease"])
    renewal.start()
    with pytest.raises(UserError, match="pid 1 on elsewhere"):
        hold(tmp_path)
    assert (tmp_path / ".lease").exists()


def test_a_requeued_job_succeeds_its_own_earlier_life(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    foreign_lease(tmp_path, job="17")
    assert hold(tmp_path) < 0.5


@pytest.fixture
def ignored_interrupts():
    """As for what a shell script starts with `&`, which is how slurm/job.sh starts a round."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_owner_whose_lease_was_taken_over_ends(tmp_path, ignored_interrupts):
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path, LEASE_S):
        foreign_lease(tmp_path)
        time.sleep(60)
    assert json.loads((tmp_path / ".lease").read_text())["host"] == "elsewhere"
