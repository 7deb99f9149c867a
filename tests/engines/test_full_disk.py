"""A disk that is full in a checkpoint, on DeepSpeed's ranks as they are."""

import subprocess

import pytest

from kit.training_run import TAG, finish, make, start

pytestmark = pytest.mark.engine


def test_a_disk_that_is_full_ends_all_ranks_and_the_same_command_goes_on(tmp_path):
    recipe, run = make(tmp_path / "run", checkpoint_every_steps=2)
    folder = run.checkpoints(TAG)
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a file system here")
    try:
        filler = folder / "filler"
        filler.write_bytes(bytes((8 << 20) - 8 * 4096))
        code, output = finish(start(recipe, run))
        assert code == 2, output
        assert f"error: {folder}" in output and "No space left on device" in output
        assert "Traceback" not in output
        assert not any(folder.glob(".step_*")), "what was half-written takes room"
        filler.unlink()
        code, output = finish(start(recipe, run))
        assert code == 0, output
        assert (folder / "export" / "DONE").is_file()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
