"""Gradient checkpointing: a layer keeps its input, and in the backward pass computes its
activations again, with or without its attention.
"""

import collections

import torch
from torch.nn.attention import varlen  # noqa: F401  registers its operator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from abscot.common.log import log

_aten = torch.ops.aten
ATTENTION = {  # their first outputs are attention's, and its logsumexp
    torch.ops.torch_attn._varlen_attn.default,  # FlashAttention-2 and -3
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def checkpoint_layers(lm, keep_attention: bool) -> None:
    """Every decoder layer of `lm` recomputes its activations.

    keep_attention: but not its attention, whose outputs stay: per layer and token heads x head_dim
    in the dtype that it runs in, and heads logsumexps in fp32. Its backward needs queries, keys and
    values too, which are cheap to make again. Where the backend is `flex`, whose kernel is compiled
    and no operator, all is recomputed.

    Losses and gradients are the same bits either way. Keeping is the kind that is not reentrant:
    under ZeRO-3 it wants a DeepSpeed that holds frozen weights until the layer's backward
    (DeepSpeed#8148), and torch's early stop, for without it the weight of the layer's last module
    is released before its gradient is made.
    """
    if keep_attention and lm.config._attn_implementation.endswith("flex"):
        log("model.keep_attention: flex cannot, its attention is recomputed with the rest")
        keep_attention = False
    how = {"use_reentrant": False, "context_fn": _contexts} if keep_attention else {}
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True} | how)


def _contexts() -> tuple["_Kept", "_Kept"]:
    """For one layer of one forward pass: what it runs under, and its recomputation."""
    outputs = collections.deque()
    return _Kept(outputs, again=False), _Kept(outputs, again=True)


class _Kept(TorchDispatchMode):
    """Attention's outputs go into `outputs`, call by call; `again`: come from there.

    torch's own create_selective_checkpoint_contexts demands that all other operators are the same
    ones in both passes. Under ZeRO-3 they are not: what is gathered where depends on what was
    fetched ahead.
    """

    def __init__(self, outputs: collections.deque, again: bool):
        super().__init__()
        self.outputs, self.again = outputs, again

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator not in ATTENTION:
            return operator(*args, **(kwargs or {}))
        if self.again:
            return self.outputs.popleft()
        out = operator(*args, **(kwargs or {}))
        # Detached: what is returned will hold the graph, which holds this.
        self.outputs.append(tree_map_only(torch.Tensor, torch.Tensor.detach, out))
        return out
