"""On one CUDA GPU: the kernels' tests, attention TFLOP/s of each backend, useful MFU of whole
training steps.

Useful work is what the method needs: allowed pairs, logits at supervised positions, no
recomputation.
"""

import subprocess
import sys
from dataclasses import dataclass

import torch
import transformers

from abscot.bench import tools
from abscot.bench.attention import HEADS, document, measure
from abscot.bench.step import VOCAB, adamw, packed_loss
from abscot.common import hardware
from abscot.common.errors import UserError
from abscot.method.phases import BOTTLENECK, PHASES
from abscot.model import attention
from abscot.recipe.load import ROOT
from abscot.recipe.schema import LoraConfig

DENSE_BF16_TFLOPS = {"H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312}
# TFLOP/s forward, backward on causal-document masks, 8k tokens, H100; MFU of a plain 7B at 8k.
ANCHORS = {
    "FlashAttention-3": (485, 320),
    "FlexAttention": (181, 110),
}
ANCHOR_MFU = 0.43
BACKWARD_PRODUCTS = 2.5  # matrix products of a FlashAttention backward over those of its forward
BINS = {8192: [4096, 4096], 32_768: [16_384, 8192, 4096, 4096]}  # phase A documents, tokens
REPEATS = 5


@dataclass(frozen=True)
class Shape:
    """A Qwen3, as its config names it; tied embeddings, head_dim 128."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int = 8
    head_dim: int = 128

    def build(self, backend: str):
        config = transformers.Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            tie_word_embeddings=True,
            attn_implementation=backend,
        )
        with torch.device("cuda"):
            return transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16
            ).train()

    @property
    def layer_parameters(self) -> int:
        attention_parameters = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention_parameters + 3 * self.hidden * self.intermediate

    def useful_flops(
        self, tokens: int, pairs: int, supervised_tokens: int, weight_gradients: bool
    ) -> float:
        """Forward and backward of one bin. Frozen weights need no gradient: two products instead of
        three.
        """
        products = 6 if weight_gradients else 4
        layers, head = (
            self.layers * self.layer_parameters * tokens,
            VOCAB * self.hidden * supervised_tokens,
        )
        return products * (layers + head) + 12 * self.layers * self.heads * self.head_dim * pairs


SHAPES = {
    "Qwen3-0.6B": Shape(1024, 3072, 28, 16),
    "Qwen3-1.7B": Shape(2048, 6144, 28, 16),
    "Qwen3-4B": Shape(2560, 9728, 36, 32),
}
CASES = [("Qwen3-4B", "lora"), ("Qwen3-1.7B", "full"), ("Qwen3-0.6B", "full")]


def run() -> dict:
    """Prints the scorecard. Raises UserError without a CUDA GPU."""
    if not torch.cuda.is_available():
        raise UserError(
            "bench.py gpu: no CUDA GPU here; run it on a machine with one, e.g. srun --gpus=1"
        )
    result = {"kernel_tests_passed": kernel_tests_pass(), **tools.environment()}
    result |= attention_scores()
    for name, kind in CASES:
        for phase in "AB":
            for tokens in BINS:
                key = f"{name}_{kind}_phase{phase}_{tokens // 1024}k"
                result[key] = tools.in_own_process(
                    "abscot.bench.gpu", name, kind, phase, str(tokens)
                )
    print(scorecard(result))
    return result


def kernel_tests_pass() -> bool:
    files = ["tests/unit/model/test_attention.py", "tests/unit/model/test_loss.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def attention_scores() -> dict[str, float]:
    """TFLOP/s over the allowed pairs, forward and backward, per backend and bin."""
    device, scores = torch.device("cuda"), {}
    heads, _, head_dim = HEADS["cuda"]
    attention.choose("varlen", device)  # FlashAttention-3 where it can be had
    for tokens, documents in BINS.items():
        packed = tools.synthetic_bin([document(n) for n in documents])
        pairs = attention.layout_of(packed, "abscot_varlen", BOTTLENECK).allowed_pairs
        seconds = measure(packed, ["varlen", "flex", "segments"], device, repeats=20)
        for name in ("varlen", "flex", "segments"):
            forward, backward = (
                seconds[name]["forward"],
                seconds[name]["both"] - seconds[name]["forward"],
            )
            tflop = 4 * heads * head_dim * pairs / 1e12
            scores[f"{name}_forward_tflops_{tokens // 1024}k"] = tflop / forward
            scores[f"{name}_backward_tflops_{tokens // 1024}k"] = (
                BACKWARD_PRODUCTS * tflop / backward
            )
    return scores


def measure_step(name: str, kind: str, phase: str, tokens: int) -> dict[str, float]:
    """Tokens per second, useful MFU (None on a GPU of unknown peak) and peak bytes of steps on one
    bin.
    """
    attention.register()
    shape = SHAPES[name]
    lm = shape.build(attention.choose("auto", torch.device("cuda")))
    if kind == "lora":
        import peft

        lora = LoraConfig()
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            target_modules=lora.target_modules,
        )
        lm = peft.get_peft_model(lm, config, autocast_adapter_dtype=False).get_base_model()
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed = tools.synthetic_bin(phase_documents(phase, tokens), VOCAB)
    pairs = attention.layout_of(packed, "abscot_varlen", BOTTLENECK).allowed_pairs
    packed, optimizer = packed.to("cuda"), adamw(lm)

    def step():
        packed_loss(lm, packed).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = tools.interleaved_medians({"step": step}, REPEATS)["step"]
    num_tokens, supervised = packed.labels.numel(), int((packed.labels >= 0).sum())
    flops = shape.useful_flops(num_tokens, pairs, supervised, weight_gradients=kind == "full")
    peak = next(
        (t for gpu, t in DENSE_BF16_TFLOPS.items() if gpu in torch.cuda.get_device_name()), None
    )
    return {
        "tokens_per_s": num_tokens / seconds,
        "useful_mfu": flops / seconds / (peak * 1e12) if peak else None,
        "peak_bytes": hardware.peak_memory_bytes(),
    }


def phase_documents(phase: str, tokens: int) -> list[tools.Document]:
    """With the CoT as they are; without it as many as fill the bin."""
    documents = [document(n) for n in BINS[tokens]]
    if PHASES[phase].sees_cot:
        return documents
    x, _, z, y = documents[0]
    return [(x, 0, z, y)] * (tokens // (x + z + y))


def scorecard(result: dict) -> str:
    rows = []
    for tokens in BINS:
        size = f"{tokens // 1024}k"
        for name in ("varlen", "flex", "segments"):
            speeds = [result[f"{name}_{way}_tflops_{size}"] for way in ("forward", "backward")]
            rows.append([f"{name}, {size}", *speeds])
    rows += [[f"anchor: {name}, 8k, H100", *speeds] for name, speeds in ANCHORS.items()]
    kernels = tools.table(
        "\nattention, TFLOP/s over allowed pairs", ["", "forward", "backward"], rows
    )
    steps = [
        [key, value["tokens_per_s"], value["useful_mfu"] or "?", value["peak_bytes"] / 2**30]
        for key, value in result.items()
        if isinstance(value, dict)
    ]
    steps.append(["anchor: a 7B at 8k", "", ANCHOR_MFU, ""])
    passed = "passed" if result["kernel_tests_passed"] else "FAILED"
    header = ["", "tokens/s", "useful MFU", "peak GiB"]
    training = tools.table("\ntraining steps", header, steps)
    return "\n".join([kernels, training, f"\nkernel tests: {passed}"])


if __name__ == "__main__":
    import json

    print(json.dumps(measure_step(*sys.argv[1:4], int(sys.argv[4]))))
