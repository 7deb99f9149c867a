"""The memory of a whole step of Qwen3-4B, on meta tensors, beside what plan.py says of it."""

import pytest

from abscot.bench.attention import document
from abscot.method.phases import BOTTLENECK
from abscot.model.shape import QWEN3
from abscot.pipeline.estimate import Sharding, memory_bytes
from kit.meta_step import meta_model, peak_bytes

DOCUMENTS = [document(n) for n in (16_384, 8192, 4096, 4096)]
TOKENS = sum(map(sum, DOCUMENTS))


@pytest.mark.filterwarnings("ignore:Expected a tensor or a traceable")  # a gradient is gone
@pytest.mark.parametrize(
    "checkpointing, keep_attention", [(True, True), (True, False), (False, False)]
)
def test_a_step_of_the_4b_takes_the_memory_that_is_planned(checkpointing, keep_attention):
    """Of 36 layers, from 2 and 4: each takes as much. Gradients, optimizer and what DeepSpeed
    gathers are of other sums.
    """
    shape = QWEN3["4B"]
    two, four = (
        peak_bytes(meta_model(shape, layers, checkpointing, keep_attention), DOCUMENTS, BOTTLENECK)
        for layers in (2, 4)
    )
    real = two + (four - two) / 2 * (shape.layers - 2)
    parts = memory_bytes(
        shape,
        Sharding(0),
        1,
        TOKENS,
        checkpointing=checkpointing,
        chunk_tokens=1024,
        keep_attention=keep_attention,
    )
    planned = parts["parameters"] + parts["activations"] + parts["loss head"]
    assert planned == pytest.approx(real, rel=0.05)
