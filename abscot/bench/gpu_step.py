"""Part step of `bench.py gpu`: whole training steps of the model alone, on one GPU, without
DeepSpeed: what each lever is worth.

A step is forward, backward with checkpointing, and AdamW, over one synthetic bin. MFU counts what
the method needs: allowed pairs, logits at supervised positions, no recomputation.
"""

import json
import sys
from dataclasses import asdict, dataclass

import torch

from abscot.bench import tools
from abscot.bench.gpu_command import json_of
from abscot.bench.gpu_part import (
    BINS,
    TINY,
    TINY_BINS,
    LeftOut,
    Part,
    documents_of,
    shape_of,
    size_of,
)
from abscot.common import hardware
from abscot.common.process import die_with_parent
from abscot.method.phases import PHASES, loop
from abscot.recipe.schema_train import LoraConfig

REPEATS, TINY_REPEATS = 5, 1
CHUNK_TOKENS = 1024
NEEDS_S = {"0.6B": 20, "1.7B": 25, "4B": 35, TINY: 5}
COMPILING_S = 60


@dataclass(frozen=True)
class Case:
    """kind: full or lora. keeps_attention: attention's outputs are kept and not computed again."""

    shape: str
    kind: str
    phase: str
    bin_tokens: int
    fused: bool = True
    keeps_attention: bool = True
    compiled: bool = False

    @property
    def name(self) -> str:
        size = size_of(self.bin_tokens)
        layers = "compiled" if self.compiled else "Liger" if self.fused else "eager"
        kept = "selective" if self.keeps_attention else "reentrant"
        return f"{self.shape} {self.kind}, phase {self.phase}, {size}, {layers}, {kept}"

    @property
    def needs_s(self) -> int:
        return NEEDS_S[self.shape] + COMPILING_S * self.compiled


def cases(tiny: bool) -> list[Case]:
    """Levers first, where they matter most, then the other shapes, bins and phases."""
    first, *_, last = (phase.name for phase in loop())
    if tiny:
        (tokens,) = TINY_BINS
        levers = {"fused": False, "keeps_attention": False}
        return [Case(TINY, "lora", first, tokens, **levers)]
    long, short = max(BINS), min(BINS)
    layers = ({"fused": False}, {}, {"fused": False, "compiled": True})
    levers = [
        Case("4B", "lora", first, long, keeps_attention=kept, **of_layers)
        for kept in (False, True)
        for of_layers in layers
    ]
    sizes = [("4B", "lora"), ("1.7B", "full"), ("0.6B", "full")]
    bins = [(first, long), (first, short), (last, long)]
    return [*levers, *(c for s in sizes for b in bins if (c := Case(*s, *b)) not in levers)]


def measure(part: Part) -> None:
    for case in cases(part.tiny):
        part.case(case.name, case.needs_s, lambda c=case: _measured(part, c))


def _measured(part: Part, case: Case) -> dict:
    """In a process of its own: its peak memory is of nothing else."""
    if case.fused and not part.machine["liger"]:
        raise LeftOut("Liger is not active here")
    arguments = ["abscot.bench.gpu_step", json.dumps(asdict(case))]
    return json_of(arguments, part.log(case.name), part.left_s)


def measure_step(case: Case) -> dict[str, float | None]:
    """Tokens per second, MFU (None on a CPU and on a GPU of unknown peak) and peak bytes."""
    from abscot.bench.step import adamw
    from abscot.method.phases import BOTTLENECK
    from abscot.model import attention

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda or hardware.cpu_has_bf16() else torch.float32
    shape, module = shape_of(case.shape), model(case, device, dtype)
    packed = tools.synthetic_bin(phase_documents(case.phase, case.bin_tokens), shape.vocab)
    layout = attention.layout_of(packed.to(device), module.backend, BOTTLENECK)
    num_tokens, supervised = packed.labels.numel(), int((packed.labels >= 0).sum())
    packed, optimizer = packed.to(device), adamw(module)

    def step():
        total, _, _ = module(
            packed.input_ids, packed.position_ids, packed.labels, packed.segment_id, layout
        )
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    repeats = TINY_REPEATS if case.shape == TINY else REPEATS
    seconds = tools.interleaved_medians({"step": step}, repeats)["step"]
    frozen = case.kind == "lora"
    flops = shape.training_flops(num_tokens, layout.allowed_pairs, supervised, frozen)
    gpu = hardware.gpu_named(torch.cuda.get_device_name()) if cuda else None
    return {
        "tokens_per_s": num_tokens / seconds,
        "mfu": flops / seconds / gpu.flops if gpu else None,
        "peak_bytes": hardware.peak_memory_bytes(),
    }


def model(case: Case, device: torch.device, dtype: torch.dtype):
    """A SupervisedLM with random weights, as training has it."""
    import transformers

    from abscot.bench.gpu_run import qwen3_config
    from abscot.model import attention, kernels
    from abscot.model.lm import SupervisedLM
    from abscot.model.recompute import checkpoint_layers

    attention.register()
    backend = attention.choose("auto", device, dtype)
    config = transformers.Qwen3Config(
        **qwen3_config(shape_of(case.shape)), attn_implementation=backend
    )
    with device:
        lm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    if case.fused:
        kernels.fuse(lm, device)
    if case.kind == "lora":
        lm = _with_lora(lm)
    checkpoint_layers(lm, case.keeps_attention)
    module = SupervisedLM(lm.train(), backend, CHUNK_TOKENS)
    if case.compiled:
        for layer in module.parts[0].layers:
            layer.compile(dynamic=False)
    return module


def _with_lora(lm):
    import peft

    lora = LoraConfig()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
    )
    lm.enable_input_require_grads()  # its table is frozen, and a layer's input needs a gradient
    return peft.get_peft_model(lm, config, autocast_adapter_dtype=False)


def phase_documents(phase: str, bin_tokens: int) -> list[tools.Document]:
    """With the CoT as they are; without it as many as fill the bin."""
    documents = documents_of(bin_tokens)
    if PHASES[phase].sees_cot:
        return documents
    x, _, z, y = documents[0]
    return [(x, 0, z, y)] * (bin_tokens // (x + z + y))


if __name__ == "__main__":
    die_with_parent()
    print(json.dumps(measure_step(Case(**json.loads(sys.argv[1])))))
