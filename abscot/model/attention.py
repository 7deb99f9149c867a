"""The attention backends, registered with transformers' AttentionInterface.

`segments` (SDPA, any device) and `varlen` (FlashAttention, CUDA) execute the same two-call layout,
`dense` a boolean mask (the reference), `flex` a BlockMask (what benchmarks compare with). The
layers get what `layout_of` built as a keyword; `hidden_states` makes the call.
"""

import functools
import itertools

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention

from abscot.common.errors import UserError
from abscot.common.hardware import compute_dtype
from abscot.common.log import log
from abscot.method import masks
from abscot.method.phases import HiddenPairs
from abscot.model import kernels

PREFIX = "abscot_"


def register() -> None:
    """Makes the backends known to transformers as `attn_implementation="abscot_segments"` and so
    on.
    """
    from transformers import AttentionInterface

    for name, backend in BACKENDS.items():
        AttentionInterface.register(PREFIX + name, functools.partial(_attention, backend))


def choose(requested: str, device: torch.device, dtype: torch.dtype) -> str:
    """The registered name of the backend `requested` (model.attention) for weights of `dtype`;
    `auto` picks one. Logs it, with the FlashAttention that it runs on.

    Raises UserError for a backend that cannot run on `device` in `dtype`.
    """
    has_flash = (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    if requested == "auto":
        requested = "varlen" if has_flash else "segments"
    if requested == "varlen" and not has_flash:
        raise UserError(
            "model.attention: varlen needs a CUDA GPU of compute capability 8.0 and 16-bit "
            f"weights, found {dtype} on {device}; use --set model.attention=auto"
        )
    by = kernels.use_flash_attention(device) if requested == "varlen" else "SDPA"
    log(f"kernels: attention {requested} by {by}, {dtype} on {device.type}")
    return PREFIX + requested


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
    """FlexAttention over a BlockMask; on a CPU its eager form, forward only.

    No backend for training: it is compiled for each length of a bin, and the bins of a training
    hardly ever have the same.
    """
    kernel = _compiled_flex() if query.is_cuda else flex_attention
    return kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)


@functools.cache
def _compiled_flex():
    # At torch's own limit of 8 it would go on uncompiled, with all scores in memory.
    return torch.compile(flex_attention, dynamic=False, recompile_limit=64)


def varlen(
    query, key, value, layout: masks.Layout, scale: float | None = None, kernel=varlen_attn
) -> torch.Tensor:
    """The calls of `layout`, each one call of `kernel`, which has the signature of torch's
    varlen_attn. Where one call holds all rows in order nothing is copied.
    """
    of_queries = [call.query_index for call in layout.calls]
    of_keys = [call.key_index for call in layout.calls]
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    operands = (_taken(query, of_queries), _taken(key, of_keys), _taken(value, of_keys))
    parts = [
        kernel(
            *rows,
            call.cu_seqlens_q,
            call.cu_seqlens_k,
            call.max_seqlen_q,
            call.max_seqlen_k,
            scale=scale,
            window_size=(-1, 0),  # causal, the last query at the last key
            enable_gqa=True,
        )
        for call, *rows in zip(layout.calls, *operands, strict=True)
    ]
    if of_queries[0] is None:
        return parts[0][None]
    return _PutRows.apply(layout.num_tokens, of_queries, *parts)[None]


def _taken(x: torch.Tensor, indices: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """The rows of x [T, ..] at each index; None: x itself."""
    taken = iter(_TakeRows.apply(x, [index for index in indices if index is not None]))
    return [x if index is None else next(taken) for index in indices]


class _TakeRows(torch.autograd.Function):
    """x[index] for each index; none holds a row twice. The gradients are copied into one tensor
    like x, where indexing would add atomically into one for each index.
    """

    @staticmethod
    def forward(ctx, x, indices):
        ctx.num_rows, ctx.indices = x.shape[0], indices
        return tuple(x.index_select(0, index) for index in indices)

    @staticmethod
    def backward(ctx, first, *others):
        grad = first.new_zeros(ctx.num_rows, *first.shape[1:])
        grad.index_copy_(0, ctx.indices[0], first)
        for index, part in zip(ctx.indices[1:], others, strict=True):
            grad.index_copy_(0, index, part + grad.index_select(0, index))
        return grad, None


class _PutRows(torch.autograd.Function):
    """The parts at their indices, in which no row stands twice, of num_rows rows; the others 0."""

    @staticmethod
    def forward(ctx, num_rows, indices, *parts):
        ctx.indices = indices
        out = parts[0].new_empty(num_rows, *parts[0].shape[1:])
        if sum(map(len, parts)) < num_rows:
            out.zero_()
        for index, part in zip(indices, parts, strict=True):
            out.index_copy_(0, index, part)
        return out

    @staticmethod
    def backward(ctx, grad):
        return None, None, *(grad.index_select(0, index) for index in ctx.indices)


def segments(query, key, value, layout: masks.Layout, scale: float | None = None) -> torch.Tensor:
    """The calls of `layout`, sequence by sequence, each a square causal SDPA over views of the bin.

    A sequence with fewer queries than keys gets empty leading queries: a square causal call is over
    twice as fast as one with an explicit mask, and the rows it wastes are the few of X and Z.
    """
    dtype = compute_dtype(query)
    q, k, v = (x.squeeze(0).transpose(0, 1).to(dtype) for x in (query, key, value))
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
            outputs[first] = out.squeeze(0).transpose(0, 1)[missing:]
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
