"""Started by test_kernels.py as `liger_layers.py cuda`, or `liger_layers.py cpu` in the interpreter
of Triton (TRITON_INTERPRET=1): Liger's kernels against torch's, in fp32. Prints the largest
deviations, each over the largest entry of its tensor.
"""

import json
import sys

import liger_kernel.ops.rms_norm
import numpy as np
import peft
import torch
import transformers
import triton.language as tl
from triton.runtime import interpreter

from abscot.bench.tools import synthetic_bin
from abscot.method.phases import BOTTLENECK
from abscot.model import attention, kernels
from abscot.model.lm import unwrapped
from abscot.model.loss import _fused_cross_entropy_

BACKEND = "abscot_segments"
DEVICE = sys.argv[1]
PACKED = synthetic_bin([(2, 4, 2, 2), (1, 0, 2, 2)], vocab_size=50).to(DEVICE)


def let_the_interpreter_do_what_a_gpu_does() -> None:
    """It hands numbers over as Python floats and not in fp32, and has no libdevice."""
    convert = interpreter._implicit_cvt

    def with_floats(argument):
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = with_floats
    liger_kernel.ops.rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)


def model(lora: bool, fused: bool):
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation=BACKEND,
    )
    lm = transformers.Qwen3ForCausalLM(config).to(DEVICE).train()
    if fused:
        assert kernels.fuse_layers(lm) == ["RMSNorm", "RoPE", "SwiGLU"]
    if lora:
        layers = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        adapters = peft.LoraConfig(r=4, target_modules=layers, init_lora_weights=False)
        lm = peft.get_peft_model(lm, adapters)  # random, by the seed
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    lm.enable_input_require_grads()
    return lm


def states_and_gradients(lm) -> list[torch.Tensor]:
    layout = attention.layout_of(PACKED, BACKEND, BOTTLENECK)
    states = attention.hidden_states(
        unwrapped(lm).model, layout, input_ids=PACKED.input_ids, position_ids=PACKED.position_ids
    )
    upstream = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    states.backward(upstream.to(DEVICE))
    trained = [p.grad for p in lm.parameters() if p.requires_grad and p.grad is not None]
    return [states.detach(), *trained]


def cross_entropies(fused: bool) -> list[torch.Tensor]:
    """Each row's, and its gradient."""
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(5, 300, generator=generator) * 3).to(DEVICE)
    targets = torch.randint(300, (5,), generator=generator).to(DEVICE)
    if fused:
        return [_fused_cross_entropy_(logits, targets), logits]
    logits.requires_grad_()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    losses.sum().backward()
    return [losses.detach(), logits.grad]


def deviation(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(got, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


attention.register()
if DEVICE == "cpu":
    let_the_interpreter_do_what_a_gpu_does()
# Plain ones first: what Liger does to transformers lasts.
plain = {lora: states_and_gradients(model(lora, fused=False)) for lora in (False, True)}
worst = {
    "full": deviation(states_and_gradients(model(lora=False, fused=True)), plain[False]),
    "lora": deviation(states_and_gradients(model(lora=True, fused=True)), plain[True]),
    "loss": deviation(cross_entropies(fused=True), cross_entropies(fused=False)),
}
print(json.dumps(worst))
