"""The attention backends, registered with transformers' AttentionInterface.

`segments` (SDPA, any device) and `varlen` (FlashAttention, CUDA) execute the same two-call layout,
`flex` a BlockMask (CUDA), `dense` a boolean mask (the reference). The layers get what
`layout_of` built as a keyword; `hidden_states` makes the call.
"""

import functools
import importlib.util
import itertools

import torch
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention

from abscot.common.errors import UserError
from abscot.common.hardware import compute_dtype
from abscot.common.log import log
from abscot.method import masks
from abscot.method.phases import HiddenPairs

PREFIX = "abscot_"


def register() -> None:
    """Makes the backends known to transformers as `attn_implementation="abscot_segments"` and so
    on.
    """
    from transformers import AttentionInterface

    for name, backend in BACKENDS.items():
        AttentionInterface.register(PREFIX + name, functools.partial(_attention, backend))


def choose(requested: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str:
    """The registered name of the backend `requested` (model.attention); `auto` picks one and says
    which.

    On Hopper, FlashAttention-3 takes the place of torch's own kernels where its package is
    installed. Raises UserError for a backend that cannot train on `device` in `dtype`.
    """
    cuda = device.type == "cuda"
    has_flash = (
        cuda and torch.cuda.get_device_capability(device) >= (8, 0) and dtype != torch.float32
    )
    if requested == "auto":
        requested = "varlen" if has_flash else "segments"
        log(f"attention: {requested} on {device.type}")
    if requested == "varlen" and not has_flash:
        raise UserError(
            "model.attention: varlen needs a CUDA GPU of compute capability 8.0 and 16-bit "
            f"weights, found {dtype} on {device}; use --set model.attention=auto"
        )
    if requested == "flex" and not cuda:
        raise UserError(
            f"model.attention: flex has no backward on {device}; use --set model.attention=auto"
        )
    if requested == "varlen" and _flash_attention_3(device):
        activate_flash_attention_impl("FA3")
    return PREFIX + requested


def _flash_attention_3(device: torch.device) -> bool:
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    return hopper and importlib.util.find_spec("flash_attn_interface") is not None


def layout_of(batch, backend: str, hidden: HiddenPairs):
    """What `backend` (a registered name) needs for a batch's attention: made once, shared by every
    layer.

    batch.document_id: int32 [1, T], -1 where padding; batch.segment_id: int8 [1, T].
    """
    builders = {"dense": masks.dense_mask, "flex": masks.block_mask}
    build = builders.get(backend.removeprefix(PREFIX), masks.Layout.of)
    return build(batch.document_id, batch.segment_id, hidden)


def hidden_states(decoder, layout, **inputs) -> torch.Tensor:
    """float [1, T, hidden]: the decoder's last layer over a packed bin that attends by `layout`.

    inputs: position_ids, and input_ids or inputs_embeds, for [1, T]. There is no mask beside the
    layout, and no cache: its keys are the bin's own.
    """
    return decoder(
        **inputs, attention_mask=None, use_cache=False, abscot_layout=layout
    ).last_hidden_state


def _attention(
    backend,
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    sliding_window=None,
    abscot_layout=None,
    **_,
):
    """transformers' attention function. query: [1, heads, T, D]; key, value: [1, kv_heads, T, D].

    Returns ([1, T, heads, D], None). Raises ValueError for what the packed rule cannot express.
    """
    if abscot_layout is None:
        raise ValueError(
            "this model attends by a packed layout: pass abscot_layout=attention.layout_of(..)"
        )
    if query.shape[0] != 1 or attention_mask is not None or dropout or sliding_window:
        raise ValueError(
            "packed attention takes one bin, and no other mask, dropout or sliding window"
        )
    return backend(query, key, value, abscot_layout, scaling), None


def dense(query, key, value, mask: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """The reference: SDPA with the boolean mask [T, T]; rows that see nothing give 0."""
    q, k, v = (x.to(compute_dtype(query)) for x in (query, key, value))
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=mask[None, None], scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).to(query.dtype)


def flex(query, key, value, mask, scale: float | None = None) -> torch.Tensor:
    """FlexAttention over a BlockMask; on a CPU its eager form, forward only."""
    kernel = (
        _compiled_flex() if query.is_cuda and not torch.compiler.is_compiling() else flex_attention
    )
    return kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)


@functools.cache
def _compiled_flex():
    return torch.compile(flex_attention, dynamic=False)


def varlen(
    query, key, value, layout: masks.Layout, scale: float | None = None, kernel=varlen_attn
) -> torch.Tensor:
    """The calls of `layout`, each one call of `kernel`, which has the signature of torch's
    varlen_attn.
    """
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    out = torch.zeros_like(query)
    for call in layout.calls:
        part = kernel(
            _TakeRows.apply(query, call.query_index),
            _TakeRows.apply(key, call.key_index),
            _TakeRows.apply(value, call.key_index),
            call.cu_seqlens_q,
            call.cu_seqlens_k,
            call.max_seqlen_q,
            call.max_seqlen_k,
            scale=scale,
            window_size=(-1, 0),  # causal, the last query at the last key
            enable_gqa=True,
        )
        out.index_copy_(0, call.query_index, part)
    return out[None]


class _TakeRows(torch.autograd.Function):
    """x[index] for an index without repeats: the gradient is a plain copy, where indexing adds
    atomically.
    """

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.num_rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy_(0, index, grad), None


def segments(query, key, value, layout: masks.Layout, scale: float | None = None) -> torch.Tensor:
    """The calls of `layout`, sequence by sequence, each a square causal SDPA over views of the bin.

    A sequence with fewer queries than keys gets empty leading queries: a square causal call is over
    twice as fast as one with an explicit mask, and the rows it wastes are the few of X and Z.
    """
    dtype = compute_dtype(query)
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    outputs = {}
    for call in layout.calls:
        q_at, k_at, v_at = (_views(x, call) for x in (q, k, v))
        for sequence in call.sequences:
            missing = sequence.num_keys - sequence.num_queries
            first, key_runs = sequence.queries[0], [start for start, _ in sequence.keys]
            empty = [q.new_zeros(missing, *q.shape[1:])] if missing else []
            out = scaled_dot_product_attention(
                _heads_first([*empty, q_at[first]]),
                _heads_first([k_at[start] for start in key_runs]),
                _heads_first([v_at[start] for start in key_runs]),
                is_causal=True,
                scale=scale,
                enable_gqa=True,
            )
            outputs[first] = out[0].transpose(0, 1)[missing:]
    out = torch.cat([outputs[start] for start in sorted(outputs)])
    # The padding at the end sees nothing.
    out = pad(out, (0, 0, 0, 0, 0, layout.num_tokens - out.shape[0]))
    return out.to(query.dtype)[None]


def _views(x, call: masks.CausalCall) -> dict[int, torch.Tensor]:
    """The runs of a call by their first row: views from one split, whose backward is one
    concatenation.
    """
    return dict(
        zip(call.cuts, x.split([b - a for a, b in itertools.pairwise(call.cuts)]), strict=False)
    )


def _heads_first(pieces: list[torch.Tensor]) -> torch.Tensor:
    """Pieces [T, heads, D] as SDPA's [1, heads, T, D]; a view where there is only one."""
    rows = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return rows.transpose(0, 1)[None]


BACKENDS = {"dense": dense, "segments": segments, "varlen": varlen, "flex": flex}
