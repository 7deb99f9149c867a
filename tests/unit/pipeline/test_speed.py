"""The model of speed: its bytes and passes counted in the real model, its levers, communication."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from abscot.bench.attention import document
from abscot.common.errors import UserError
from abscot.common.hardware import FLASH_ATTENTION_2, FLASH_ATTENTION_3, GPUS
from abscot.method.phases import BOTTLENECK, NOTHING_HIDDEN
from abscot.model.loss import supervised_loss
from abscot.model.shape import QWEN3, ModelShape
from abscot.pipeline.estimate import Sharding
from abscot.pipeline.scorecard import with_measured
from abscot.pipeline.speed import TORCH, Levers, Load, Speed, causal
from abscot.recipe.schema_train import LoraConfig
from kit.meta_step import META, Operators, forward_backward, meta_model

SHAPE = QWEN3["4B"]
DOCUMENTS = [document(n) for n in (16_384, 8192, 4096, 4096)]
TOKENS, PAIRS, SUPERVISED = 32_768, 166_983_360, 2664  # of them, in phase A
BIN = Load(TOKENS, PAIRS, SUPERVISED, calls=2)
NONE, ALL = Levers(False, False, False), Levers(True, True, True)
A100, H100, H200 = GPUS


def speed(levers=NONE, gpu=H100, **changes) -> Speed:
    plain = Speed(SHAPE, gpu, levers, True, Sharding(3), 8, SHAPE.parameters)
    return dataclasses.replace(plain, **changes)


def operators(layers: int, hidden, **settings) -> Operators:
    small_table = dataclasses.replace(SHAPE, vocab=1024)
    model = meta_model(small_table, layers, **settings)
    with Operators() as counted:
        forward_backward(model, DOCUMENTS, hidden)
    return counted


@pytest.mark.parametrize("hidden", [BOTTLENECK, NOTHING_HIDDEN], ids=["two_calls", "one_call"])
@pytest.mark.parametrize("lora", [None, LoraConfig()], ids=["full", "lora"])
def test_a_layer_moves_the_bytes_that_the_model_of_speed_says(hidden, lora):
    one, two = (operators(layers, hidden, lora=lora).moved_bytes for layers in (1, 2))
    layer = dataclasses.replace(SHAPE, layers=1)
    load = BIN._replace(calls=2 if hidden else 1)
    forward, backward = speed(shape=layer, lora=lora).moved_bytes(load)
    assert 2 * forward + backward == pytest.approx(two - one, rel=0.02)


def test_the_loss_moves_the_bytes_that_the_model_of_speed_says():
    rows, vocab = 4096, 8192
    hidden, weight = (
        torch.empty(shape, dtype=torch.bfloat16, device=META, requires_grad=True)
        for shape in ((1, rows + 1, 64), (vocab, 64))
    )
    labels, segment = torch.zeros(1, rows + 1, dtype=torch.long), torch.zeros(1, rows + 1)
    with Operators() as counted:
        supervised_loss(hidden, weight, labels, segment, chunk_tokens=rows).total.backward()
    assert counted.moved_bytes == pytest.approx(TORCH.loss * rows * vocab, rel=0.05)


def test_attention_that_is_kept_runs_once_and_its_seconds_say_so():
    again, once = (operators(1, BOTTLENECK, keep_attention=k).attention for k in (False, True))
    assert (again, once) == (4, 2)
    forward_s = SHAPE.forward_flops(0, PAIRS) / 268e12
    kept, recomputed = (
        speed(levers).training_s(BIN)["attention"]
        for levers in (dataclasses.replace(NONE, keep_attention=True), NONE)
    )
    assert recomputed - kept == pytest.approx(forward_s)
    assert (
        speed(checkpointing=False, levers=ALL).training_s(BIN)["matrix products"]
        < (speed(levers=ALL).training_s(BIN)["matrix products"])
    )


def test_each_lever_makes_a_bin_faster_and_fa3_on_hopper_alone():
    def seconds(gpu, *on: bool) -> float:
        return sum(speed(Levers(*on), gpu).training_s(BIN).values())

    for gpu in GPUS:
        steps = [seconds(gpu, *(i < n for i in range(3))) for n in range(4)]
        assert steps[0] >= steps[1] > steps[2] > steps[3] > 0
        assert (steps[0] == steps[1]) is (gpu is A100)
    assert seconds(A100, True, True, True) > seconds(H100, True, True, True)
    assert seconds(H100, False, False, False) > seconds(H200, False, False, False)


def test_a_plain_7b_at_8k_is_as_fast_as_published():
    """43% MFU on H100s, all recomputed but attention."""
    shape = ModelShape(4096, 11_008, 32, 32, 32, 128, 32_000, False)
    plain = speed(ALL, shape=shape, trained=shape.parameters)
    load = causal(np.array([8192]), scored=True)
    mfu = plain.training_flops(load) / sum(plain.training_s(load).values()) / H100.flops
    assert mfu == pytest.approx(0.43, abs=0.02)


def test_zero_stages_communicate_what_they_must():
    def alone_s(stage: int, world: int, micro_steps: int = 1, **changes) -> float:
        setting = speed(sharding=Sharding(stage, overlap=False), world_size=world, **changes)
        return setting.communication_s(micro_steps, compute_s=2.0)

    weights_s = 2 * SHAPE.parameters * 63 / 64 / 200e9  # between machines
    assert alone_s(3, 1) == 0 and alone_s(3, 8) < alone_s(3, 64) / 1.5
    assert alone_s(3, 64) == pytest.approx((2 + 2) * weights_s)  # two gathers; fp32 gradients
    assert alone_s(2, 64) == pytest.approx((2 + 1) * weights_s)
    assert alone_s(1, 64) == pytest.approx((4 + 1) * weights_s)  # an all-reduce
    assert alone_s(1, 64, micro_steps=4) == alone_s(1, 64)
    assert alone_s(2, 64, micro_steps=4) == pytest.approx((4 * 2 + 1) * weights_s)
    adapters = {"lora": LoraConfig(), "trained": 10**7}
    assert alone_s(1, 64, **adapters) < 0.01 * alone_s(3, 64, **adapters)
    overlapped = speed(world_size=64)
    assert overlapped.communication_s(1, 2.0) == pytest.approx(0.2 * 4 * weights_s)
    assert overlapped.communication_s(1, 0.0) == pytest.approx(4 * weights_s)


def test_longer_prompts_and_slower_gpus_take_longer_to_trace():
    def seconds(gpu: int, tokens: int) -> float:
        return speed(gpu=GPUS[gpu]).of_vllm().trace_s(np.full(100, tokens), 128)

    assert seconds(0, 20_000) > seconds(1, 20_000) > seconds(2, 20_000) > seconds(2, 200) > 0


def test_half_the_layers_take_half_a_forward_without_the_head():
    headless = BIN._replace(supervised=0)
    assert speed().forward_s(headless, SHAPE.layers // 2) == pytest.approx(
        speed().forward_s(headless) / 2
    )
    assert speed().forward_s(BIN) > speed().forward_s(headless)


@pytest.fixture
def card(tmp_path):
    def written(device="NVIDIA H200", third=True, **kernels):
        file = tmp_path / "card.json"
        machine = {"device": device, "flash_attention_3": third}
        file.write_text(json.dumps({"kernels": {"machine": machine, **kernels}}))
        return file

    return written


def test_a_scorecard_takes_the_place_of_what_was_published(card):
    file = card(matmul_tflops=700, varlen_forward_tflops_32k=500, copy_bytes_per_s=4.4e12)
    *others, measured = with_measured(GPUS, file)
    assert others == [A100, H100] and measured.name == H200.name
    reached, published = measured.reached, H200.reached
    assert (reached.matmul, reached.copy) == (700e12, 4.4e12)
    assert reached.attention[FLASH_ATTENTION_3] == (500e12, 320e12)
    assert reached.attention[FLASH_ATTENTION_2] == published.attention[FLASH_ATTENTION_2]
    without = with_measured(GPUS, card(third=False, varlen_backward_tflops_32k=200))[2].reached
    assert without.attention[FLASH_ATTENTION_2] == (268e12, 200e12)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"device": "NVIDIA L40S", "matmul_tflops": 1}, "measured on NVIDIA L40S; expected full"),
        ({}, "none of matmul_tflops"),
        ({"matmul_tflops": 300, "tiny": True}, "expected full shapes"),
        ({"matmul_tflops": 675e12}, "kernels.matmul_tflops: expected a number above 0, at most"),
        ({"matmul_tflops": "fast"}, "found 'fast'"),
        ({"matmul_tflops": True}, "found True"),
        ({"copy_bytes_per_s": 4.4}, None),  # slow, but a number
        ({"copy_bytes_per_s": 4.4e15}, "at most 4.8e\\+12"),
        ({"device": None, "matmul_tflops": 1}, "TypeError"),
    ],
)
def test_what_is_no_scorecard_is_refused(card, content, message):
    if message is None:
        assert with_measured(GPUS, card(**content))
        return
    with pytest.raises(UserError, match=message):
        with_measured(GPUS, card(**content))


@pytest.mark.parametrize("text", ["", "[]", '{"kernels": 1}', '{"kernels": {}}', "{NaN}"])
def test_another_file_is_refused(tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(UserError, match="other.json: expected the JSON of"):
        with_measured(GPUS, file)
    with pytest.raises(UserError, match="expected the JSON of"):
        with_measured(GPUS, tmp_path / "none.json")
