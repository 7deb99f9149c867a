"""How a process ends."""

import subprocess
import sys

from abscot.recipe.load import ROOT

RANK = """
import atexit, sys, torch.distributed
from abscot.common.process import free_port, leave

class Teardown:
    def __del__(self):
        print("teardown")

alive = Teardown()
atexit.register(print, "atexit")
url = f"tcp://127.0.0.1:{free_port()}"
if sys.argv[1] == "rank":
    torch.distributed.init_process_group("gloo", init_method=url, rank=0, world_size=1)
leave(75)
"""


def test_a_rank_ends_with_its_code_and_without_the_teardown_that_may_abort_it():
    def end(kind: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", RANK, kind], cwd=ROOT, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    assert end("rank") == (75, "atexit\n")
    assert end("alone") == (75, "atexit\nteardown\n")
