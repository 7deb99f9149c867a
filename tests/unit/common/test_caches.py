"""Caches of compiled code: a slot for each process, found again, of nobody else."""

import os
import subprocess
import sys

import pytest

from abscot.common import caches
from abscot.common.errors import UserError

NAMES = tuple(caches.FOLDERS)
USE = """
import os, sys
from abscot.common.caches import FOLDERS, use_local_caches
use_local_caches()
print(*(os.environ[name] for name in FOLDERS), flush=True)
sys.stdin.read()
"""


class Process:
    """Uses the caches until it is let go."""

    def __init__(self, tmp, **environ):
        kept = {key: value for key, value in os.environ.items() if key not in NAMES}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", USE],
            env={**kept, "TMPDIR": str(tmp), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.directories = self.popen.stdout.readline().split()

    def killed(self) -> list[str]:
        self.popen.kill()
        self.popen.wait()
        return self.directories


def test_each_process_has_its_own_and_one_that_starts_again_finds_what_was_left(tmp_path):
    first, second = Process(tmp_path), Process(tmp_path)
    assert all(path.startswith(f"{tmp_path}/abscot-{os.geteuid()}/") for path in first.directories)
    assert not set(first.directories) & set(second.directories)
    first.killed()
    third = Process(tmp_path)
    assert third.directories == first.directories
    for process in (second, third):
        process.killed()
    assert os.stat(tmp_path / f"abscot-{os.geteuid()}").st_mode & 0o777 == 0o700


def test_what_the_user_has_set_stays(tmp_path):
    mine = {"TRITON_CACHE_DIR": "/mine"}
    directories = Process(tmp_path, **mine).killed()
    assert directories[2] == "/mine" and str(tmp_path) in directories[0]


@pytest.mark.parametrize("kind", ["writable by others", "a link", "somebody else's"])
def test_a_place_that_others_can_write_into_is_refused(tmp_path, monkeypatch, kind):
    """What lies in it is run as code."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path))
    place = tmp_path / f"abscot-{os.geteuid()}"
    if kind == "a link":
        (tmp_path / "other").mkdir()
        place.symlink_to(tmp_path / "other")
    else:
        place.mkdir()
    if kind == "writable by others":
        place.chmod(0o777)
    if kind == "somebody else's":
        if os.geteuid():
            pytest.skip("only root can give a directory away")
        os.chown(place, 12345, 12345)
    with pytest.raises(UserError, match=f"{place}: expected a directory that only you .*TMPDIR"):
        caches.use_local_caches()
    assert not any(name in os.environ for name in NAMES)
