"""Ranks that find something out together, as real ranks of gloo."""

import os

import torch
import torch.multiprocessing

from abscot.common.errors import DamagedInput, UserError
from abscot.common.process import free_port, leave
from abscot.training.together import on_all_ranks, on_first_rank


def rank_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    assert on_all_ranks(lambda: 10 + rank) == [10, 11]
    assert on_first_rank(lambda: rank) == 0

    def look():
        if rank == 1:
            raise DamagedInput(folder, "a file: damaged")

    try:
        on_all_ranks(look)
    except UserError as error:
        assert str(error) == f"a file: damaged; delete {folder}"
        open(f"{folder}/{rank}", "w").close()
    leave(0)


def test_an_error_of_one_rank_is_raised_on_all(tmp_path):
    arguments = (free_port(), str(tmp_path))
    torch.multiprocessing.spawn(rank_of_two, arguments, nprocs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_one_process_needs_no_group():
    assert on_all_ranks(lambda: "found") == ["found"]
