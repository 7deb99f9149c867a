"""A training step of a real model on meta tensors: its operators and their shapes, no numbers."""

import dataclasses
import functools

import peft
import torch
import transformers
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import varlen  # noqa: F401  registers its operator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from abscot.bench.gpu_run import qwen3_config
from abscot.bench.tools import Document, synthetic_bin
from abscot.method.phases import HiddenPairs
from abscot.model import attention
from abscot.model.lm import SupervisedLM
from abscot.model.recompute import checkpoint_layers
from abscot.model.shape import ModelShape
from abscot.recipe.schema_train import LoraConfig

META = torch.device("meta")
BACKEND = "abscot_varlen"


def meta_model(
    shape: ModelShape,
    layers: int,
    checkpointing: bool = True,
    keep_attention: bool = False,
    lora: LoraConfig | None = None,
) -> SupervisedLM:
    """A Qwen3 in bf16, as it trains on a GPU without further packages."""
    attention.register()
    config = transformers.Qwen3Config(
        **qwen3_config(dataclasses.replace(shape, layers=layers)),
        attn_implementation=BACKEND,
    )
    with META:
        lm = transformers.AutoModelForCausalLM.from_config(config)
        if lora:
            targets = lora.target_modules
            lm = peft.get_peft_model(lm, peft.LoraConfig(r=lora.r, target_modules=targets))
    lm.to(torch.bfloat16)
    if checkpointing:
        checkpoint_layers(lm, keep_attention)
    return SupervisedLM(lm.train(), BACKEND, chunk_tokens=1024)


def forward_backward(model: SupervisedLM, documents: list[Document], hidden: HiddenPairs) -> None:
    """Of one bin; what is known of it beforehand stays on the CPU."""
    packed = synthetic_bin(documents)
    layout = attention.layout_of(packed, BACKEND, hidden)
    calls = [
        dataclasses.replace(
            call,
            **{k: v.to(META) for k, v in vars(call).items() if isinstance(v, torch.Tensor)},
        )
        for call in layout.calls
    ]
    layout = dataclasses.replace(layout, calls=tuple(calls))
    inputs = packed.input_ids.to(META), packed.position_ids.to(META)
    total, _, _ = model(*inputs, packed.labels, packed.segment_id, layout)
    total.backward()


def peak_bytes(model: SupervisedLM, documents: list[Document], hidden: HiddenPairs) -> int:
    """Of parameters, activations and temporaries; each gradient is taken as soon as it is made, as
    DeepSpeed does.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        forward_backward(model, documents, hidden)
    return tracker.get_tracker_snapshot("peak")[META]["Total"]


class Operators(TorchDispatchMode):
    """moved_bytes: read and written by all that runs inside, but for large matrix products and
    attention's kernels. attention: forward calls of those.
    """

    FREE = ("_unsafe_view", "detach", "empty", "empty_like", "new_empty")
    FILLED = ("zeros", "zeros_like", "new_zeros", "new_full", "full", "fill_")
    PICKED = ("index", "index_select", "gather", "embedding")  # read as much as they write
    PRODUCTS, THIN = ("mm", "addmm", "addmm_", "bmm"), 64  # by adapters: they wait for memory

    def __init__(self):
        super().__init__()
        self.moved_bytes = self.attention = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        name = operator.name().partition("::")[2].partition(".")[0]
        self.attention += name == "_varlen_attn"
        if not operator.is_view and name not in self.FREE and "_varlen_attn" not in name:
            self.moved_bytes += self._bytes(name, args, kwargs, out)
        return out

    def _bytes(self, name: str, args, kwargs, out) -> int:
        read, written = _tensors((args, kwargs)), _tensors(out)
        everything = sum(map(_bytes_of, read + written))
        if name in self.PRODUCTS:
            return everything * any(min(t.shape[-2:]) < self.THIN for t in read)
        if name in self.FILLED:
            return sum(map(_bytes_of, written))
        if name in self.PICKED:
            return 2 * sum(map(_bytes_of, written))
        if name == "index_copy_":
            return 2 * _bytes_of(args[-1])
        if name == "scatter_add_":
            return 3 * _bytes_of(args[-1])
        return everything - (_bytes_of(args[0]) if name == "copy_" else 0)


def _tensors(tree) -> list[torch.Tensor]:
    leaves = (x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.device == META)
    return list(leaves)


def _bytes_of(tensor: torch.Tensor) -> int:
    """What is expanded is there once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return functools.reduce(lambda a, b: a * b, sizes, tensor.element_size())
