"""Memory, activations and trace times against hand-made sums and measurements."""

import json

import pytest
import torch

from abscot.model.shape import GB, QWEN3, ModelShape
from abscot.pipeline import estimate
from abscot.pipeline.estimate import Sharding, memory_bytes
from abscot.recipe.load import ROOT
from abscot.recipe.schema_train import LoraConfig
from drills.shape_drill import shape_of
from kit.shapes import real_model


def test_activations_a_layer_saves_are_those_of_a_real_layer():
    def saved_bytes(layers: int, tokens: int = 512) -> int:
        model = real_model(layers, hidden_size=256, intermediate_size=768, head_dim=64).model
        model.train()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.randint(0, 100, (1, tokens)), use_cache=False)
        return sum(size for size, _ in storages.values())

    real = (saved_bytes(3) - saved_bytes(1)) / 2 / 512
    shape = ModelShape(256, 768, 1, 4, 2, 64, 128, True)
    assert estimate.saved_bytes_per_token(shape) == pytest.approx(real, rel=0.1)


def test_memory_of_zero_stages_by_hand():
    shape = QWEN3["4B"]
    parameters = shape.parameters

    def states(sharding: Sharding, trainable=None) -> float:
        parts = memory_bytes(
            shape, sharding, 8, 8192, checkpointing=True, chunk_tokens=1024, trainable=trainable
        )
        assert parts["total"] == pytest.approx(
            sum(v for k, v in parts.items() if k not in ("total", "host"))
        )
        return parts["parameters"] + parts["gradients"] + parts["optimizer"]

    assert states(Sharding(0)) == 18 * parameters
    assert states(Sharding(1)) == pytest.approx((2 + 4 + 12 / 8) * parameters)
    assert states(Sharding(2)) == pytest.approx((2 + 16 / 8) * parameters)
    assert states(Sharding(3)) == pytest.approx(18 / 8 * parameters)
    assert states(Sharding(3, offload_optimizer=True)) == pytest.approx(4 / 8 * parameters)
    assert states(Sharding(2), trainable=10**6) == pytest.approx(2 * parameters + 16 / 8 * 10**6)


# peak_bytes of rank 0 by tests/drills/shape_drill.py: shape, DeepSpeed file, ranks, tokens of
# the largest bin, LoRA, measured
CPU_PEAKS = [
    ("512x6", "cpu.json", 2, 1300, False, 3.06 * GB),
    ("0.6B", "zero3_offload.json", 2, 760, False, 12.28 * GB),
    ("4B", "zero3.json", 1, 1076, True, 17.94 * GB),
]


@pytest.mark.parametrize(
    ("name", "config", "world", "bin_tokens", "lora", "measured_bytes"), CPU_PEAKS
)
def test_the_estimate_of_a_cpu_rank_is_near_what_was_measured(
    name, config, world, bin_tokens, lora, measured_bytes
):
    shape = shape_of(name)
    sharding = Sharding.of_config(json.loads((ROOT / "ds_configs" / config).read_text()))
    trainable = shape.lora_parameters(LoraConfig(), 66) if lora else None
    parts = estimate.cpu_memory_bytes(
        shape,
        sharding,
        world,
        bin_tokens,
        checkpointing=True,
        chunk_tokens=256,
        trainable=trainable,
    )
    assert parts["total"] == pytest.approx(measured_bytes, rel=0.2)


def test_the_smallest_world_is_where_it_starts_to_fit():
    def memory_of(world: int) -> dict:
        return memory_bytes(
            QWEN3["32B"], Sharding(3), world, 32_768, checkpointing=True, chunk_tokens=1024
        )

    world = estimate.smallest_world_size(75 * GB, memory_of)
    assert memory_of(world)["total"] <= 75 * GB < memory_of(world // 2)["total"]
    assert estimate.smallest_world_size(10 * GB, memory_of) is None
