"""Parameters and FLOPs of a shape against real models."""

import pytest

from abscot.model.shape import QWEN3, ModelShape
from abscot.recipe.schema_train import LoraConfig
from kit.shapes import real_model


@pytest.mark.parametrize("tied", [True, False])
def test_a_shape_read_from_a_saved_model_counts_its_parameters(tmp_path, tied):
    model = real_model(2, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert ModelShape.of_directory(tmp_path).parameters == sum(
        p.numel() for p in model.parameters()
    )


def test_qwen3_shapes_have_the_published_sizes():
    sizes = {"0.6B": 0.6, "1.7B": 1.7, "4B": 4.0, "8B": 8.2, "14B": 14.8, "32B": 32.8}
    assert {name: round(shape.parameters / 1e9, 1) for name, shape in QWEN3.items()} == sizes


def test_flops_are_six_a_weight_and_token_and_twelve_a_dimension_and_pair():
    shape = ModelShape(
        hidden=8, intermediate=16, layers=3, heads=2, kv_heads=1, head_dim=4, vocab=32, tied=True
    )
    weights = 3 * (8 * 4 * (2 + 2 * 1 + 2) + 3 * 8 * 16)
    by_hand = 6 * weights * 100 + 12 * 3 * 2 * 4 * 500 + 6 * 8 * 32 * 20
    assert shape.training_flops(tokens=100, pairs=500, supervised=20) == pytest.approx(by_hand)


def test_lora_counts_what_peft_trains(tmp_path):
    import peft

    model = real_model(2)
    model.save_pretrained(tmp_path)
    lora = LoraConfig(r=4)
    config = peft.LoraConfig(
        r=4,
        target_modules=lora.target_modules,
        trainable_token_indices={"embed_tokens": list(range(66))},
    )
    trained = sum(
        p.numel() for p in peft.get_peft_model(model, config).parameters() if p.requires_grad
    )
    shape = ModelShape.of_directory(tmp_path)
    assert shape.lora_parameters(lora, 66) == trained + (0 if shape.tied else 66 * shape.hidden)
    assert QWEN3["4B"].lora_parameters(LoraConfig(), 66) < 0.02 * QWEN3["4B"].parameters
