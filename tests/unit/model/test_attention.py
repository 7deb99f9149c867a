"""All backends are one function: outputs and gradients, alone and inside a Qwen3, packed
and apart.
"""

import dataclasses
import functools
import itertools

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from abscot.bench.tools import synthetic_bin
from abscot.common.errors import UserError
from abscot.method.phases import BOTTLENECK, NOTHING_HIDDEN
from abscot.model import attention
from kit.hidden_pairs import HIDDEN

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
# Largest deviation from fp64 of bf16 outputs and gradients for N(0, 1) inputs, relative to the
# largest entry.
BF16_BOUND = 2e-2

EDGES = [
    [(0, 0, 0, 1)],  # a document of one token
    [(1, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1)],
    [(5, 0, 3, 6), (4, 7, 2, 0), (3, 6, 0, 5)],  # empty CoT, answer, trace
    [(2, 297, 0, 1)],  # a CoT of 99%
    [(20, 60, 10, 38)],  # one document fills the bin
]
lengths = st.tuples(*[st.integers(0, 12)] * 4).filter(any)


def varlen_reference(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch.nn.attention.varlen.varlen_attn documents, one sequence at a time: it has no CPU
    kernel.
    """
    assert window_size == (-1, 0) and enable_gqa
    parts = []
    boundaries = zip(cu_q.tolist(), cu_k.tolist(), strict=True)
    for (q0, k0), (q1, k1) in itertools.pairwise(boundaries):
        assert q1 - q0 <= max_q and k1 - k0 <= max_k
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
        heads_first = (x.transpose(0, 1)[None] for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        out = scaled_dot_product_attention(
            *heads_first, attn_mask=mask, scale=scale, enable_gqa=True
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


FUNCTIONS = attention.BACKENDS | {
    "varlen": functools.partial(attention.varlen, kernel=varlen_reference)
}
COMPARED = sorted(FUNCTIONS.keys() - {"dense", "flex"})  # flex has no backward on a CPU


def run(
    name,
    packed,
    hidden,
    dtype,
    device="cpu",
    heads=(HEADS, KV_HEADS, HEAD_DIM),
    functions=FUNCTIONS,
):
    """The output and the gradients of q, k, v of one backend, on inputs that depend on the shapes
    alone.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = packed.document_id.numel()
    shapes = [(1, tokens, h, heads[2]) for h in (heads[0], heads[1], heads[1], heads[0])]
    *qkv, upstream = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    for x in qkv:
        x.requires_grad_()
    prepared = attention.layout_of(packed.to(device), attention.PREFIX + name, hidden)
    out = functions[name](*(x.transpose(1, 2) for x in qkv), prepared)
    out.backward(upstream)
    return [out.detach(), *(x.grad for x in qkv)]


def assert_close(got, expected, bound):
    for tensor, reference in zip(got, expected, strict=True):
        error = (tensor.cpu().double() - reference.double()).abs().max()
        assert error <= bound * max(1.0, reference.abs().max().item()), f"{error:.2e}"


@settings(max_examples=40, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=6), st.integers(0, 9), st.sampled_from(HIDDEN))
def test_every_backend_is_dense(documents, padding, hidden):
    packed = synthetic_bin(documents, pad_to_tokens=sum(map(sum, documents)) + padding)
    expected = run("dense", packed, hidden, torch.float32)
    for name in COMPARED:
        assert_close(run(name, packed, hidden, torch.float32), expected, 1e-5)


@pytest.mark.parametrize("documents", EDGES)
@pytest.mark.parametrize("pad_to_tokens", [0, 384])
def test_edges(documents, pad_to_tokens):
    packed = synthetic_bin(documents, pad_to_tokens=pad_to_tokens)
    for hidden in (BOTTLENECK, NOTHING_HIDDEN):
        expected = run("dense", packed, hidden, torch.float64)
        for name in COMPARED:
            assert_close(run(name, packed, hidden, torch.float32), expected, 1e-5)
            assert_close(run(name, packed, hidden, torch.bfloat16), expected, BF16_BOUND)


@pytest.mark.parametrize("documents", EDGES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_forward(documents):
    """The CPU has no backward of FlexAttention; its forward proves the mask that the GPU gets."""
    packed = synthetic_bin(documents, pad_to_tokens=384)
    q, k, v = (torch.randn(1, h, 384, HEAD_DIM) for h in (HEADS, KV_HEADS, KV_HEADS))
    for hidden in (BOTTLENECK, NOTHING_HIDDEN):
        outputs = [
            attention.BACKENDS[name](
                q, k, v, attention.layout_of(packed, attention.PREFIX + name, hidden)
            )
            for name in ("dense", "flex")
        ]
        assert_close(outputs[:1], outputs[1:], 1e-5)


def model(**changes):
    attention.register()
    torch.manual_seed(0)
    shape = dict(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        attn_implementation="abscot_segments",
    )
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape | changes)).train()


def hidden_and_gradient(lm, packed, hidden=BOTTLENECK):
    """Final hidden states, and the gradient of every weight of their fixed random projection."""
    lm.zero_grad()
    layout = attention.layout_of(packed, lm.config._attn_implementation, hidden)
    states = attention.hidden_states(
        lm.model, layout, input_ids=packed.input_ids, position_ids=packed.position_ids
    )
    upstream = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    states.backward(upstream * (packed.document_id >= 0)[..., None])
    return [states.detach(), *(p.grad.clone() for p in lm.model.parameters())]


def test_qwen3_backends_agree_under_checkpointing():
    documents = [(3, 5, 2, 4), (1, 0, 0, 0), (4, 0, 3, 2), (2, 6, 3, 0), (3, 4, 0, 3)]
    packed = synthetic_bin(documents, pad_to_tokens=48)
    lm = model(attn_implementation="abscot_dense")
    expected = hidden_and_gradient(lm, packed)
    lm.set_attn_implementation("abscot_segments")
    real = slice(0, int((packed.document_id >= 0).sum()))
    for reentrant in (None, False, True):
        if reentrant is not None:
            lm.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": reentrant}
            )
            lm.enable_input_require_grads()
        got = hidden_and_gradient(lm, packed)
        assert_close([got[0][:, real]], [expected[0][:, real]], 1e-5)
        assert_close(got[1:], expected[1:], 1e-5)


def test_packed_is_each_document_alone():
    documents = [(3, 5, 2, 4), (6, 0, 3, 2), (1, 9, 3, 5), (2, 1, 0, 3)]
    lm = model()
    packed = synthetic_bin(documents)
    together = hidden_and_gradient(lm, packed)[0]
    for index, document in enumerate(documents):
        rows = packed.document_id[0] == index
        alone = synthetic_bin([document])
        alone.input_ids = packed.input_ids[:, rows]
        assert_close([hidden_and_gradient(lm, alone)[0]], [together[:, rows]], 1e-5)


@pytest.mark.parametrize("backend", ["segments", "dense"])
def test_a_neighbour_changes_nothing_bit_for_bit(backend):
    lm = model(attn_implementation=attention.PREFIX + backend)
    packed = synthetic_bin([(3, 5, 2, 4), (4, 6, 3, 2), (3, 4, 2, 3)])
    before = hidden_and_gradient(lm, packed)[0]
    neighbour = packed.document_id == 1
    packed.input_ids = torch.where(neighbour, (packed.input_ids + 1) % 1000, packed.input_ids)
    after = hidden_and_gradient(lm, packed)[0]
    assert torch.equal(before[~neighbour], after[~neighbour])
    assert not torch.equal(before[neighbour], after[neighbour])


def test_what_the_layers_refuse():
    lm, packed = model(), synthetic_bin([(3, 5, 2, 4)])
    with pytest.raises(ValueError, match="abscot_layout"):
        lm(input_ids=packed.input_ids)
    layout = attention.layout_of(packed, "abscot_segments", BOTTLENECK)
    with pytest.raises(ValueError, match="one bin"):
        lm(input_ids=packed.input_ids.expand(2, -1), abscot_layout=layout)
    with pytest.raises(ValueError, match="dropout"):
        model(attention_dropout=0.1)(input_ids=packed.input_ids, abscot_layout=layout)


class Operations(TorchDispatchMode):
    """The names of all operations, forward and backward."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def on_meta(layout):
    """A layout for tensors without data; it is built where the data is."""
    calls = []
    for call in layout.calls:
        tensors = {n: x.to("meta") for n, x in vars(call).items() if isinstance(x, torch.Tensor)}
        calls.append(dataclasses.replace(call, **tensors))
    return dataclasses.replace(layout, calls=tuple(calls))


COPIES = {
    "index_select",
    "index_copy_",
    "index_copy",
    "index",
    "cat",
    "clone",
    "zero_",
    "copy_",
    "select",
}


@pytest.mark.parametrize("hidden, calls", [(NOTHING_HIDDEN, 1), (BOTTLENECK, 2)])
def test_the_real_varlen_at_the_heads_of_qwen3_4b(hidden, calls):
    """Forward and backward on meta tensors; one call for the whole bin copies nothing."""
    packed = synthetic_bin([(20, 60, 10, 38), (30, 500, 20, 40)])
    layout = on_meta(attention.layout_of(packed, "abscot_varlen", hidden))
    assert len(layout.calls) == calls
    tokens, kind = layout.num_tokens, dict(dtype=torch.bfloat16, device="meta", requires_grad=True)
    qkv = [torch.empty(1, tokens, heads, 128, **kind) for heads in (32, 8, 8)]
    with Operations() as seen:
        out = attention.varlen(*(x.transpose(1, 2) for x in qkv), layout)
        assert (
            out.shape == (1, tokens, 32, 128)
            and out.dtype == torch.bfloat16
            and out.is_contiguous()
        )
        out.backward(torch.empty_like(out))
    for x in qkv:
        assert x.grad.shape == x.shape and x.grad.dtype == x.dtype
    assert {"_varlen_attn", "_varlen_attn_backward"} <= seen.names
    assert bool(seen.names & COPIES) == (calls > 1), seen.names


def test_varlen_repeats_its_bits_where_torch_is_asked_to():
    """Gathers and scatters of two calls have deterministic kernels, on a CPU too."""
    packed = synthetic_bin([(3, 5, 2, 4), (4, 6, 3, 2)])
    expected = run("varlen", packed, BOTTLENECK, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        got = run("varlen", packed, BOTTLENECK, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_choose_on_a_cpu():
    cpu = torch.device("cpu")
    assert attention.choose("auto", cpu, torch.bfloat16) == "abscot_segments"
    assert attention.choose("dense", cpu, torch.float32) == "abscot_dense"
    with pytest.raises(UserError, match="model.attention: varlen.*model.attention=auto"):
        attention.choose("varlen", cpu, torch.bfloat16)


# ---- on a GPU: the kernels themselves


def gpu(test):
    return pytest.mark.gpu(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")(test)
    )


GPU_HEADS = (8, 2, 64)
GPU_EDGES = [*EDGES, [(200, 1500, 60, 300), (100, 0, 40, 200), (300, 3000, 128, 400)]]


@gpu
@pytest.mark.parametrize("documents", GPU_EDGES)
@pytest.mark.parametrize("name", ["varlen", "flex", "segments", "dense"])
def test_gpu_kernels(documents, name):
    packed = synthetic_bin(documents, pad_to_tokens=-(-sum(map(sum, documents)) // 128) * 128)
    for hidden in (BOTTLENECK, NOTHING_HIDDEN):
        expected = [x.cpu() for x in run("dense", packed, hidden, torch.float64, "cuda", GPU_HEADS)]
        got = run(name, packed, hidden, torch.bfloat16, "cuda", GPU_HEADS, attention.BACKENDS)
        assert_close(got, expected, BF16_BOUND)


@gpu
def test_gpu_neighbour_changes_nothing_bit_for_bit():
    lm = model(attn_implementation="abscot_varlen", head_dim=64).to("cuda", torch.bfloat16)
    packed = synthetic_bin([(30, 500, 20, 40), (40, 600, 30, 20), (30, 400, 20, 30)]).to("cuda")
    before = hidden_only(lm, packed)
    neighbour = packed.document_id == 1
    packed.input_ids = torch.where(neighbour, (packed.input_ids + 1) % 1000, packed.input_ids)
    assert torch.equal(before[~neighbour], hidden_only(lm, packed)[~neighbour])


@torch.no_grad()
def hidden_only(lm, packed):
    layout = attention.layout_of(packed, lm.config._attn_implementation, BOTTLENECK)
    return attention.hidden_states(
        lm.model, layout, input_ids=packed.input_ids, position_ids=packed.position_ids
    )
