"""A whole training step on the same rows, ours against three other ways: tokens per second and peak
memory.

A small Qwen3 with the real vocabulary of 151,936 entries; forward, backward with checkpointing,
optimizer.

  ours          packed bins, two-call attention, logits at supervised positions only
  one_by_one    (a) the public reproduction's way: rows one by one, dense 4-D mask, full logits
  two_pass      (b) its split: [X;C;Z] and [X;Z;Y] apart, plain causal, full logits; less work,
                and no channel
  padded        (c) padded batches with a dense 4-D mask and full logits
"""

import sys
from collections.abc import Callable

import torch
import transformers

from abscot.bench import tools
from abscot.bench.attention import document
from abscot.bench.tools import Bin, Document, synthetic_bin
from abscot.common import hardware
from abscot.method import masks
from abscot.method.phases import BOTTLENECK, SEGMENT_C, SEGMENT_Y, SEGMENT_Z, HiddenPairs
from abscot.method.sequence import IGNORE
from abscot.model import attention
from abscot.model.loss import supervised_loss

VOCAB = 151_936
ROWS_TOKENS = {  # capacity of a bin -> rows of the step
    4096: [4096, 1950, 1350, 700],
    8192: [8192, 3900, 2700, 1400],
    16_384: [16_384],
}
REPEATS, REPEATS_WITHOUT_BF16 = 3, 1  # a machine without bf16 instructions takes minutes for a step
HEAD_TOKENS, HEAD_SUPERVISED_TOKENS = 32_768, 4096
FULL_LOGITS_COPIES = (
    3  # logits, their log-softmax and its gradient, in fp32: what Hugging Face's loss holds
)


def small_qwen3():
    attention.register()
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" or hardware.cpu_has_bf16() else torch.float32
    lm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).train()
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return lm


def packed_loss(lm, packed: Bin, hidden: HiddenPairs = BOTTLENECK) -> torch.Tensor:
    """The summed loss of one bin, as in training."""
    layout = attention.layout_of(packed, lm.config._attn_implementation, hidden)
    states = attention.hidden_states(
        lm.model, layout, input_ids=packed.input_ids, position_ids=packed.position_ids
    )
    return supervised_loss(states, lm.lm_head.weight, packed.labels, packed.segment_id).total


def ours(lm, rows: list[Document], capacity_tokens: int) -> None:
    lm.set_attn_implementation(
        attention.PREFIX + ("varlen" if lm.device.type == "cuda" else "segments")
    )
    for documents in bins(rows, capacity_tokens):
        packed_loss(lm, synthetic_bin(documents, VOCAB).to(lm.device)).backward()


def one_by_one(lm, rows: list[Document], capacity_tokens: int) -> None:
    padded(lm, rows, 0)


def padded(lm, rows: list[Document], capacity_tokens: int) -> None:
    """As many rows per batch as fit after padding, at least one."""
    batches = [[]]
    for row in sorted(rows, key=sum, reverse=True):
        if batches[-1] and (len(batches[-1]) + 1) * sum(batches[-1][0]) > capacity_tokens:
            batches.append([])
        batches[-1].append(row)
    for batch in batches:
        padded_rows = [synthetic_bin([row], VOCAB, pad_to_tokens=sum(batch[0])) for row in batch]
        mask = [
            masks.dense_mask(r.document_id, r.segment_id, BOTTLENECK)[None] for r in padded_rows
        ]
        input_ids = torch.cat([row.input_ids for row in padded_rows])
        labels = torch.cat([row.labels for row in padded_rows])
        full_logits_loss(lm, input_ids, labels, torch.stack(mask))


def two_pass(lm, rows: list[Document], capacity_tokens: int) -> None:
    for row in rows:
        packed = synthetic_bin([row], VOCAB)
        for left_out, supervised in ((SEGMENT_Y, SEGMENT_Z), (SEGMENT_C, SEGMENT_Y)):
            kept = packed.segment_id[0] != left_out
            labels = torch.where(packed.segment_id == supervised, packed.labels, IGNORE)
            full_logits_loss(lm, packed.input_ids[:, kept], labels[:, kept], None)


def full_logits_loss(lm, input_ids, labels, mask) -> None:
    lm.set_attn_implementation("sdpa")
    mask = None if mask is None else mask.to(lm.device)
    lm(
        input_ids=input_ids.to(lm.device),
        attention_mask=mask,
        labels=labels.to(lm.device),
        use_cache=False,
    ).loss.backward()


WAYS = {"ours": ours, "one_by_one": one_by_one, "two_pass": two_pass, "padded": padded}
TIMED = {4096: [*WAYS], 8192: ["ours", "one_by_one"], 16_384: ["ours"]}


def bins(rows: list[Document], capacity_tokens: int) -> list[list[Document]]:
    """Rows in order, a new bin whenever the next does not fit."""
    packed = [[]]
    for row in rows:
        if sum(map(sum, packed[-1])) + sum(row) > capacity_tokens:
            packed.append([])
        packed[-1].append(row)
    return packed


def step_of(
    way: Callable, lm, optimizer, capacity_tokens: int, rows_tokens: list[int]
) -> Callable[[], None]:
    rows = [document(tokens) for tokens in rows_tokens]

    def step():
        way(lm, rows, capacity_tokens)
        optimizer.step()
        optimizer.zero_grad()

    return step


def adamw(lm):
    return torch.optim.AdamW(lm.parameters(), lr=1e-5, fused=True)


def run() -> dict:
    result, peaks = {}, {}
    repeats = (
        REPEATS if torch.cuda.is_available() or hardware.cpu_has_bf16() else REPEATS_WITHOUT_BF16
    )
    for capacity_tokens, names in TIMED.items():
        names = [name for name in names if _fits(name, capacity_tokens)]
        lm = small_qwen3()
        optimizer, rows_tokens = adamw(lm), ROWS_TOKENS[capacity_tokens]
        steps = {n: step_of(WAYS[n], lm, optimizer, capacity_tokens, rows_tokens) for n in names}
        seconds = tools.interleaved_medians(steps, repeats, warm_up=repeats > 1)
        del lm, optimizer, steps  # before the memory is measured elsewhere
        speed = {name: sum(rows_tokens) / s for name, s in seconds.items()}
        peaks |= {(n, capacity_tokens): _peak_bytes(n, capacity_tokens) for n in names}
        rows = [
            [n, seconds[n], speed[n], speed["ours"] / speed[n], peaks[n, capacity_tokens] / 2**30]
            for n in names
        ]
        header = ["", "seconds per step", "tokens/s", "ours is faster x", "peak GiB"]
        title = f"\nrows of {rows_tokens} tokens in bins of {capacity_tokens}"
        print(tools.table(title, header, rows), flush=True)
        label = f"{capacity_tokens // 1024}k"
        result |= {f"{n}_tokens_per_s_{label}": speed[n] for n in names}
        result |= {f"{n}_peak_bytes_{label}": peaks[n, capacity_tokens] for n in names}
        if "one_by_one" in names:
            result[f"speedup_{label}"] = speed["ours"] / speed["one_by_one"]
            ratio = peaks["ours", capacity_tokens] / peaks["one_by_one", capacity_tokens]
            result[f"memory_ratio_{label}"] = ratio
        if "two_pass" in names:
            result[f"speedup_two_pass_{label}"] = speed["ours"] / speed["two_pass"]
    head = tools.in_own_process("abscot.bench.step", "head")["extra_bytes"]
    print(
        f"\nloss head, {HEAD_TOKENS} tokens x {VOCAB} entries: {head / 2**30:.2f} GiB beside its "
        "gradients"
    )
    return result | {"head_extra_bytes_32k": head} | tools.environment()


def _fits(way: str, capacity_tokens: int) -> bool:
    """Full logits can need more memory than the machine has: such a way is left out, and that is
    said.
    """
    if way == "ours":
        return True
    needed = FULL_LOGITS_COPIES * capacity_tokens * VOCAB * 4 + 2 * 2**30
    fits = needed < tools.available_memory_bytes()
    if not fits:
        print(f"{way} at {capacity_tokens} tokens needs about {needed / 2**30:.0f} GiB: left out")
    return fits


def _peak_bytes(way: str, capacity_tokens: int) -> int:
    """Peak memory of a step on one row that fills the bin, in a process of its own."""
    return tools.in_own_process("abscot.bench.step", way, str(capacity_tokens))["peak_bytes"]


def measure_peak(way: str, capacity_tokens: int) -> dict:
    lm = small_qwen3()
    step_of(WAYS[way], lm, adamw(lm), capacity_tokens, [capacity_tokens])()
    return {"peak_bytes": hardware.peak_memory_bytes()}


def measure_head() -> dict:
    """What the loss head adds to the weight, the hidden states and their gradients, forward and
    backward.
    """
    lm = small_qwen3()
    weight = lm.lm_head.weight
    hidden = torch.randn(
        1, HEAD_TOKENS, weight.shape[1], dtype=lm.dtype, device=lm.device
    ).requires_grad_()
    unsupervised = HEAD_TOKENS - HEAD_SUPERVISED_TOKENS
    packed = synthetic_bin([(0, unsupervised, 0, HEAD_SUPERVISED_TOKENS)], VOCAB).to(lm.device)
    gradients = [torch.ones_like(weight), torch.ones_like(hidden)]
    tools.reset_peak_memory()
    before = hardware.peak_memory_bytes()
    del gradients  # theirs is the memory that any head needs
    supervised_loss(hidden, weight, packed.labels, packed.segment_id).total.backward()
    return {"extra_bytes": hardware.peak_memory_bytes() - before}


if __name__ == "__main__":
    import json

    measured = (
        measure_head() if sys.argv[1] == "head" else measure_peak(sys.argv[1], int(sys.argv[2]))
    )
    print(json.dumps(measured))
