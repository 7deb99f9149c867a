"""What a training does before its ranks join."""

from types import SimpleNamespace

import pytest
import torch


class Joined(Exception):
    pass


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_key_asks_for_bits_that_repeat_before_cuda_starts(monkeypatch, tmp_path, deterministic):
    from abscot.training import train_phase

    found = []

    def join():
        found.append(torch.are_deterministic_algorithms_enabled())
        raise Joined

    monkeypatch.setattr(train_phase, "init_ranks", join)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # and gone behind the test
    train = SimpleNamespace(deterministic=deterministic)
    training = SimpleNamespace(
        recipe=SimpleNamespace(train=train), inputs=[], outputs=[tmp_path / "missing"]
    )
    try:
        with pytest.raises(Joined):
            train_phase.train(training)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    assert found == [deterministic]
