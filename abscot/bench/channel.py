"""Does the answer learn the CoT through the trace? One masked pass against a split in two causal
passes.

A CoT of random digits, of which the prompt tells nothing, then a trace of random abstract tokens,
then the digits as the answer. Whoever answers right has received them through the trace: C -> H_Z
-> Y. In the split the second pass, [X;Z;Y], has a trace that never saw the CoT.
"""

import time

import torch
import transformers

from abscot.bench import tools
from abscot.method import masks
from abscot.method.phases import BOTTLENECK, SEGMENT_OF

# Token ids: digits, then abstract tokens, then prompt tokens.
DIGITS, CODEBOOK, PROMPT_IDS = 10, 64, 16
DOCUMENT = {"X": 3, "C": 4, "Z": 10, "Y": 4}  # tokens
STEPS, BATCH_ROWS, EVALUATED_ROWS, LEARNING_RATE = 250, 32, 500, 2e-3


def run() -> dict:
    """Trains both ways on the same data; accuracies are of whole answers on fresh rows (chance:
    1e-4).
    """
    ways = {
        "mask": [Pass("XCZY", supervised="ZY")],
        "two_pass": [Pass("XCZ", supervised="Z"), Pass("XZY", supervised="Y")],
    }
    scores, rows, threads = {}, [], torch.get_num_threads()
    torch.set_num_threads(1)  # operations this small lose more to threads than they gain
    for name, passes in ways.items():
        started = time.perf_counter()
        own, swapped = evaluate(train(passes), passes[-1])
        seconds = time.perf_counter() - started
        rows.append([name, own, swapped, seconds])
        scores |= {f"{name}_accuracy": own, f"{name}_swap_followed": swapped, f"{name}_s": seconds}
    torch.set_num_threads(threads)
    channel = f"{DOCUMENT['C']} digits through {DOCUMENT['Z']} trace tokens"
    title = f"channel: {channel}, {STEPS} steps of {BATCH_ROWS} rows"
    print(tools.table(title, ["", "answers right", "follow a swapped CoT", "seconds"], rows))
    scores["swap_followed"] = scores["mask_swap_followed"]
    return {**scores, **tools.environment()}


class Pass:
    """One forward pass over the given segments of a row; without C or Y the rule is plain
    causal.
    """

    def __init__(self, segments: str, supervised: str):
        present = tuple(tokens if name in segments else 0 for name, tokens in DOCUMENT.items())
        row = tools.synthetic_bin([present])
        whole = tools.synthetic_bin([tuple(DOCUMENT.values())])
        self.columns = _columns(whole, segments)
        self.targets = _columns(row, supervised)
        self.mask = masks.dense_mask(row.document_id, row.segment_id, BOTTLENECK)[None, None]

    def logits_and_targets(self, lm, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids: [rows, tokens of X C Z Y]. Returns [rows, supervised, vocabulary] and [rows,
        supervised].
        """
        ids = ids[:, self.columns]
        mask = self.mask.expand(len(ids), -1, -1, -1)
        logits = lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[:, self.targets - 1], ids[:, self.targets]


def _columns(row: tools.Bin, segments: str) -> torch.Tensor:
    wanted = torch.tensor([SEGMENT_OF[name] for name in segments])
    return torch.isin(row.segment_id[0], wanted).nonzero().flatten()


def draw(rows: int, seed: int) -> torch.Tensor:
    """Token ids [rows, tokens of X C Z Y]: C and Y are the same random digits, X and Z of their own
    kinds.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(first: int, ids: int, segment: str) -> torch.Tensor:
        return first + torch.randint(ids, (rows, DOCUMENT[segment]), generator=generator)

    digits, trace = uniform(0, DIGITS, "C"), uniform(DIGITS, CODEBOOK, "Z")
    return torch.cat([uniform(DIGITS + CODEBOOK, PROMPT_IDS, "X"), digits, trace, digits], 1)


def train(passes: list[Pass]):
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=DIGITS + CODEBOOK + PROMPT_IDS,
        hidden_size=128,
        intermediate_size=256,
        head_dim=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        attn_implementation="sdpa",
    )
    lm = transformers.Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(STEPS):
        ids = draw(BATCH_ROWS, seed=step)
        for logits, targets in (part.logits_and_targets(lm, ids) for part in passes):
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return lm


@torch.no_grad()
def evaluate(lm, answering: Pass) -> tuple[float, float]:
    """(answers that are the row's digits, answers that are another row's digits with its CoT
    swapped in).
    """
    ids = draw(EVALUATED_ROWS, seed=STEPS)
    cot = _columns(tools.synthetic_bin([tuple(DOCUMENT.values())]), "C")
    swapped = ids.clone()
    swapped[:, cot] = ids[:, cot].roll(1, dims=0)
    return tuple(
        (answer(lm, answering, x) == x[:, cot]).all(1).float().mean().item() for x in (ids, swapped)
    )


def answer(lm, answering: Pass, ids: torch.Tensor) -> torch.Tensor:
    """Greedy answers [rows, tokens of Y]; the answers that stand in `ids` are not looked at."""
    ids = ids.clone()
    first = ids.shape[1] - DOCUMENT["Y"]
    ids[:, first:] = 0
    for offset in range(DOCUMENT["Y"]):
        logits, _ = answering.logits_and_targets(lm, ids)
        ids[:, first + offset] = logits[:, offset - DOCUMENT["Y"]].argmax(-1)
    return ids[:, first:]
