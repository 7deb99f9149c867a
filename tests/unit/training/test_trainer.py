"""The rehearsal."""

from types import SimpleNamespace

import pytest

from abscot.common.errors import UserError
from abscot.method.phases import NOTHING_HIDDEN


def test_a_bin_that_does_not_fit_is_named_before_step_1(monkeypatch):
    import torch

    from abscot.training import trainer
    from abscot.training.trainer import rehearse

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(trainer, "forward_backward", out_of_memory)
    batch = SimpleNamespace(labels=torch.zeros(1, 32_768))
    model_engine = SimpleNamespace(set_gradient_accumulation_boundary=lambda on: None)
    with pytest.raises(
        UserError,
        match=r"most expensive bin of the plan \(32,768 tokens\) before step 1: lower "
        "train.capacity_tokens",
    ):
        rehearse(model_engine, batch, NOTHING_HIDDEN)
