"""Part kernels of `bench.py gpu`: what the GPU multiplies and copies; attention and loss at
Qwen3-4B's heads, width and vocabulary, in speed and in deviation from fp64; the kernels' own tests.

Useful work is what the method needs: allowed pairs, logits at supervised positions.
"""

import contextlib
import inspect
import sys

import torch
from torch.nn.functional import linear

from abscot.bench import tools
from abscot.bench.gpu_command import Command
from abscot.bench.gpu_part import TINY_SHAPE, LeftOut, Part, documents_of, size_of
from abscot.common import hardware
from abscot.method.phases import BOTTLENECK
from abscot.model.shape import QWEN3, ModelShape
from abscot.recipe.load import ROOT

MATMUL_TOKENS, COPY_BYTES = 8192, 2**30
BACKWARD_PRODUCTS = 2.5  # matrix products of a FlashAttention backward over those of its forward
LOSS_TOKENS, EXACT_LOSS_TOKENS = 4096, 256  # supervised, of a 32k bin; compared with fp64
REPEATS = 20
FLASH_2 = "varlen, FlashAttention-2"
# What plan.py reads -> (case, key).
FOR_PLAN = {
    "matmul_tflops": ("matmul", "tflops"),
    "copy_bytes_per_s": ("copy", "bytes_per_s"),
    **{
        f"{backend}_{way}_tflops_{size_of(tokens)}": (
            f"{backend}, {size_of(tokens)}",
            f"{way}_tflops",
        )
        for backend in ("varlen", "flex", "segments")
        for way in ("forward", "backward")
        for tokens in (8192, 32_768)
    },
}


def measure(part: Part) -> None:
    """The cases in the order of what plan.py needs first."""
    kernels = Kernels(part)
    part.case("matmul", 15, kernels.matmul)
    part.case("copy", 5, kernels.copy)
    for tokens in reversed(part.bins):
        for name in kernels.backends(tokens):
            size = size_of(tokens)
            part.case(f"{name}, {size}", 20, lambda n=name, t=tokens: kernels.attention(n, t))
    longest = max(part.bins)
    for name in kernels.backends(longest):
        part.case(f"{name}, exact", 30, lambda n=name: kernels.exact(n, longest))
    part.case("loss", 15, kernels.loss)
    part.case("tests", 60, kernels.tests)
    cases = part.card.read()[part.name]["cases"]
    found = {key: cases.get(case, {}).get(value) for key, (case, value) in FOR_PLAN.items()}
    part.card.put(part.name, **{key: value for key, value in found.items() if value is not None})


class Kernels:
    def __init__(self, part: Part):
        self.part, self.device = part, torch.device("cuda" if part.on_gpu else "cpu")
        self.shape: ModelShape = TINY_SHAPE if part.tiny else QWEN3["4B"]
        bf16 = part.on_gpu or hardware.cpu_has_bf16()
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.repeats = 2 if part.tiny else REPEATS
        self.reference: dict[int, list[torch.Tensor]] = {}

    def backends(self, tokens: int) -> list[str]:
        if not self.part.on_gpu:
            return ["segments", "dense"]
        flash_2 = [FLASH_2] * self.part.machine["flash_attention_3"]
        return ["varlen", *flash_2, "flex", "segments"]

    def matmul(self) -> dict[str, float]:
        """TFLOP/s of the matrix products of a layer: its projections forward."""
        shape, tokens = self.shape, 64 if self.part.tiny else MATMUL_TOKENS
        ends = shape.linear_layers.values()
        pairs = [(self._random(tokens, a), self._random(b, a)) for a, b in ends]
        seconds = self._seconds(lambda: [linear(x, weight) for x, weight in pairs])
        return {"tflops": 2 * tokens * shape.linear_parameters_per_layer / seconds / 1e12}

    def copy(self) -> dict[str, float]:
        """Bytes read and written per second."""
        size = 2**20 if self.part.tiny else COPY_BYTES
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return {"bytes_per_s": 2 * size / self._seconds(lambda: target.copy_(source))}

    def attention(self, name: str, tokens: int) -> dict[str, float]:
        """TFLOP/s over the allowed pairs of a bin, forward and backward."""
        packed = tools.synthetic_bin(documents_of(tokens)).to(self.device)
        with self._backend(name) as (backend, prepared_by):
            from abscot.model import attention

            prepared = prepared_by(packed)
            query, key, value, upstream = self._inputs(tokens)
            inputs = (query, key, value)

            def forward():
                with torch.no_grad():
                    backend(*inputs, prepared)

            def both():
                torch.autograd.grad(backend(*inputs, prepared), inputs, upstream)

            seconds = tools.interleaved_medians({"forward": forward, "both": both}, self.repeats)
            layout = attention.layout_of(packed, "abscot_segments", BOTTLENECK)
        tflop = 4 * self.shape.heads * self.shape.head_dim * layout.allowed_pairs / 1e12
        backward_s = seconds["both"] - seconds["forward"]
        return {
            "forward_tflops": tflop / seconds["forward"],
            "backward_tflops": BACKWARD_PRODUCTS * tflop / backward_s,
        }

    def exact(self, name: str, tokens: int) -> dict[str, float]:
        """Largest deviation from fp64 of output and gradients, over the largest entry."""
        from abscot.bench.gpu_exact import exact_attention

        packed = tools.synthetic_bin(documents_of(tokens)).to(self.device)
        inputs = self._inputs(tokens)
        if tokens not in self.reference:
            self.reference[tokens] = exact_attention(packed, *inputs)
        with self._backend(name) as (backend, prepared_by):
            out = backend(*inputs[:3], prepared_by(packed))
            found = [out, *torch.autograd.grad(out, inputs[:3], inputs[3])]
        errors = map(_deviation, found, self.reference[tokens])
        return dict(zip(("out", "query", "key", "value"), errors, strict=True))

    def loss(self) -> dict[str, float]:
        """Of the loss head: seconds and TFLOP/s of loss and gradients, and deviations from fp64."""
        from abscot.bench.gpu_exact import exact_loss
        from abscot.model.loss import supervised_loss

        shape, few = self.shape, 16 if self.part.tiny else EXACT_LOSS_TOKENS
        tokens = 64 if self.part.tiny else LOSS_TOKENS
        weight = (0.02 * self._random(shape.vocab, shape.hidden)).requires_grad_()

        def made(tokens: int):
            packed = tools.synthetic_bin([(1, 0, tokens, 0)], shape.vocab).to(self.device)
            return packed, self._random(1, tokens + 1, shape.hidden, seed=1).requires_grad_()

        def both(packed, hidden) -> list[torch.Tensor]:
            total = supervised_loss(hidden, weight, packed.labels, packed.segment_id).total
            return [total, *torch.autograd.grad(total, (hidden, weight))]

        timed, (packed, hidden) = made(tokens), made(few)
        seconds = self._seconds(lambda: both(*timed))
        found, exact = both(packed, hidden), exact_loss(hidden, weight, packed.labels)
        names = ("loss_error", "hidden_gradient_error", "weight_gradient_error")
        return {
            "seconds": seconds,
            "tflops": 6 * tokens * shape.vocab * shape.hidden / seconds / 1e12,
            **dict(zip(names, map(_deviation, found, exact), strict=True)),
        }

    def tests(self) -> dict[str, str]:
        """The tests that are marked gpu. Raises RuntimeError where one fails."""
        if not self.part.on_gpu:
            raise LeftOut("its tests need a CUDA GPU")
        unit = (ROOT / "tests" / "unit").rglob("test_*.py")
        files = [str(path) for path in sorted(unit) if "mark.gpu" in path.read_text()]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
        with Command(command, self.part.log("tests")) as pytest:
            code = pytest.wait(self.part.left_s)
            last = pytest.lines[-1][1].strip(" =") if pytest.lines else "no output"
            if code:
                raise RuntimeError(f"{last}; its log: {pytest.log}")
        return {"pytest": last}

    @contextlib.contextmanager
    def _backend(self, name: str):
        """(the function of a backend, what prepares a bin for it) while it is set up."""
        from abscot.model import attention

        plain = name.partition(",")[0]
        if plain == "varlen":
            attention.choose(plain, self.device, self.dtype)  # FlashAttention-3 where it can be had
        if name == FLASH_2:
            torch.nn.attention.restore_flash_attention_impl()
        backend = attention.BACKENDS[plain]
        if plain == "varlen" and (kernel := older_varlen()):
            backend = lambda *inputs: attention.varlen(*inputs, kernel=kernel)  # noqa: E731
        yield (
            backend,
            lambda packed: attention.layout_of(packed, attention.PREFIX + plain, BOTTLENECK),
        )

    def _inputs(self, tokens: int) -> list[torch.Tensor]:
        """Query, key, value [1, heads, T, D] as a layer makes them, and a gradient [1, T, heads,
        D]; always the same.
        """
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        *qkv, upstream = (
            self._random(1, tokens, n, self.shape.head_dim, seed=seed)
            for seed, n in enumerate((heads, kv_heads, kv_heads, heads))
        )
        return [*(x.transpose(1, 2).requires_grad_() for x in qkv), upstream]

    def _random(self, *shape: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)

    def _seconds(self, run) -> float:
        return tools.interleaved_medians({"": run}, self.repeats)[""]


def _deviation(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.detach().double() - exact).abs().max() / exact.abs().max())


def older_varlen():
    """varlen_attn of a torch before the pinned one, called as it can be: key-value heads repeated
    where it has no grouped queries; None where it has all that the project asks of it.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    if {"scale", "window_size", "enable_gqa"} <= known.keys():
        return None

    def kernel(q, k, v, *lengths, scale, window_size, enable_gqa):
        if "enable_gqa" not in known:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        options = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        if "window_size" not in known:
            options["is_causal"] = True
        return varlen_attn(q, k, v, *lengths, **{n: o for n, o in options.items() if n in known})

    return kernel
