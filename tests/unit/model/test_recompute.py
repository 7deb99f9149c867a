"""Gradient checkpointing: what is computed once, what twice, and that it changes no bit."""

from collections import Counter

import peft
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from abscot.bench.tools import synthetic_bin
from abscot.method.phases import BOTTLENECK
from abscot.model import attention, recompute
from kit.tiny_run import tiny_model

LAYERS = 3


class Calls(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.of[operator] += 1
        return operator(*args, **(kwargs or {}))

    @property
    def of_attention(self) -> int:
        return sum(self.of[operator] for operator in recompute.ATTENTION)


def lora_model(backend: str):
    attention.register()
    lm = tiny_model(
        0, num_hidden_layers=LAYERS, vocab_size=1000, attn_implementation=attention.PREFIX + backend
    )
    config = peft.LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear")
    return peft.get_peft_model(lm, config).train()


def step(lm):
    """(calls, hidden states, gradients) of one bin."""
    packed = synthetic_bin([(3, 5, 2, 4), (4, 0, 3, 2), (2, 6, 3, 1)])
    base = lm.get_base_model()
    layout = attention.layout_of(packed, base.config._attn_implementation, BOTTLENECK)
    torch.manual_seed(1)
    with Calls() as calls:
        states = attention.hidden_states(
            base.model, layout, input_ids=packed.input_ids, position_ids=packed.position_ids
        )
        states.square().sum().backward()
    return calls, states, [p.grad for p in lm.parameters() if p.requires_grad]


@pytest.mark.parametrize("backend", ["segments", "dense"])
def test_attention_is_kept_and_no_bit_differs(backend):
    plain, states, gradients = step(lora_model(backend))
    once = plain.of_attention
    assert once >= LAYERS
    for keep_attention, times in ((True, 1), (False, 2)):
        lm = lora_model(backend)
        recompute.checkpoint_layers(lm, keep_attention)
        calls, again, found = step(lm)
        assert calls.of_attention == times * once
        assert calls.of[torch.ops.aten.silu.default] == 2 * LAYERS  # of the MLP: always anew
        assert torch.equal(again, states)
        assert len(found) == len(gradients) and all(map(torch.equal, found, gradients))


def test_flash_attentions_varlen_call_is_kept():
    """The operator of FlashAttention-2 and -3, on tensors without values."""
    heads = torch.empty(64, 4, 32, dtype=torch.bfloat16, device="meta", requires_grad=True)
    starts = torch.tensor([0, 40, 64], dtype=torch.int32, device="meta")

    def layer(x):
        return varlen_attn(x * 2, x, x, starts, starts, 40, 40, window_size=(-1, 0)) * 2

    with Calls() as calls:
        checkpoint(
            layer, heads, use_reentrant=False, context_fn=recompute._contexts
        ).sum().backward()
    assert calls.of[torch.ops.torch_attn._varlen_attn.default] == 1
    assert calls.of[torch.ops.torch_attn._varlen_attn_backward.default] == 1
    assert heads.grad.shape == heads.shape


def test_flex_is_recomputed_and_says_so(capfd):
    lm = lora_model("flex")
    recompute.checkpoint_layers(lm, keep_attention=True)
    layer = lm.get_base_model().model.layers[0]
    assert layer._gradient_checkpointing_func.keywords == {"use_reentrant": True}
    assert "flex cannot" in capfd.readouterr().out
