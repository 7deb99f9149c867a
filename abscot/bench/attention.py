"""Every attention backend of this device against dense, against plain causal attention and against
the floor.

The floor is what plain causal attention would take if it could run only the allowed pairs: its time
on the same number of tokens x (allowed pairs / causal pairs). On a GPU the heads are Qwen3-4B's.
"""

from dataclasses import dataclass

import torch

from abscot.bench import tools
from abscot.bench.tools import Bin, Document
from abscot.common import hardware
from abscot.method.phases import BOTTLENECK
from abscot.model import attention


def document(tokens: int) -> Document:
    """A phase A document: short prompt and trace, an answer of a few hundred tokens, the
    rest CoT.
    """
    x, z, y = min(200, tokens // 8), min(66, tokens // 16), min(600, tokens // 6)
    return x, tokens - x - z - y, z, y


MIXES = {  # documents of a bin, in tokens
    "2k": [2048],
    "8k, documents of 512": [512] * 16,
    "8k, documents of 2k": [2048] * 4,
    "8k, one document": [8192],
    "16k, documents of 4k-8k": [8192, 4096, 4096],
    "32k, documents of 4k-16k": [16384, 8192, 4096, 4096],
}
LONG = [name for name, documents in MIXES.items() if min(documents) >= 4096]
OF_2K = ["2k", "8k, documents of 2k"]
DENSE_TOKENS = (
    8192  # above it, dense takes minutes on a CPU, and on a GPU more memory than there is
)
HEADS = {"cuda": (32, 8, 128), "cpu": (4, 2, 64)}  # query heads, key-value heads, head_dim


@dataclass
class Inputs:
    """Queries, keys, values [1, heads, T, D] as a layer makes them, and a gradient."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    upstream: torch.Tensor  # [1, T, heads, D]

    @classmethod
    def of(cls, tokens: int, device: torch.device) -> "Inputs":
        heads, kv_heads, head_dim = HEADS[device.type]
        dtype = (
            torch.bfloat16 if device.type == "cuda" or hardware.cpu_has_bf16() else torch.float32
        )
        shapes = [(1, tokens, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
        *qkv, upstream = (torch.randn(shape, dtype=dtype, device=device) for shape in shapes)
        return cls(*(x.transpose(1, 2).requires_grad_() for x in qkv), upstream)

    def forward_of(self, backend, prepared):
        def forward():
            with torch.no_grad():
                backend(self.query, self.key, self.value, prepared)

        return forward

    def both_of(self, backend, prepared):
        inputs = (self.query, self.key, self.value)
        return lambda: torch.autograd.grad(backend(*inputs, prepared), inputs, self.upstream)


def causal(query, key, value, _):
    """Plain causal SDPA over the whole bin, as if it were one document without a bottleneck."""
    q, k, v = (x.to(hardware.compute_dtype(x)) for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).to(query.dtype)


def measure(
    packed: Bin, names: list[str], device: torch.device, repeats: int
) -> dict[str, dict[str, float]]:
    """{backend or `causal` or `floor`: {"forward": s, "both": s}} for one bin, and its `pairs`."""
    tokens = packed.document_id.numel()
    packed, inputs, runs = packed.to(device), Inputs.of(tokens, device), {}
    for name in [*names, "causal"]:
        backend = attention.BACKENDS.get(name, causal)
        prepared = attention.layout_of(packed, attention.PREFIX + name, BOTTLENECK)
        runs[name, "forward"] = inputs.forward_of(backend, prepared)
        runs[name, "both"] = inputs.both_of(backend, prepared)
    medians = tools.interleaved_medians(runs, repeats)
    seconds = {
        n: {kind: medians[n, kind] for kind in ("forward", "both")} for n in [*names, "causal"]
    }
    share = attention.layout_of(packed, "abscot_segments", BOTTLENECK).allowed_pairs / (
        tokens * (tokens + 1) / 2
    )
    return seconds | {"floor": {kind: s * share for kind, s in seconds["causal"].items()}}


def run() -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mixes = {}
    for mix, documents in MIXES.items():
        packed = tools.synthetic_bin([document(tokens) for tokens in documents])
        tokens, cuda = sum(documents), device.type == "cuda"
        names = ["varlen", "flex", "segments"] if cuda else ["segments"]
        if tokens <= DENSE_TOKENS:
            names.append("dense")
        repeats = 20 if cuda else max(1, 32_768 // tokens)
        mixes[mix] = seconds = measure(packed, names, device, repeats)
        floor = seconds["floor"]
        rows = [
            [n, s["forward"] * 1e3, s["both"] * 1e3, s["both"] / floor["both"]]
            for n, s in seconds.items()
        ]
        title = f"\n{mix}: {len(documents)} documents, {repeats} repeats"
        header = ["", "forward ms", "with backward ms", "over floor"]
        print(tools.table(title, header, rows), flush=True)
    return {**summary(mixes), "mixes": mixes, **tools.environment()}


def summary(mixes: dict) -> dict[str, float]:
    """The numbers that the README quotes, forward and backward; over several mixes the worst."""

    def worst(names: list[str], slow: str, fast: str) -> float:
        return max(mixes[name][slow]["both"] / mixes[name][fast]["both"] for name in names)

    return {
        "segments_over_floor_long": worst(LONG, "segments", "floor"),
        "segments_over_floor_2k": worst(OF_2K, "segments", "floor"),
        "dense_over_segments_8k": worst(["8k, documents of 2k"], "dense", "segments"),
    }
