r"""The embedded world: word problems with worked steps, a tokenizer and a small hybrid base, all
from a seed.

    Max has 14 shells. Max gets 1, drops 3 and wins 5. How many shells are left?
    -> <think>
       Max has 14 shells and gets 1, so 14+1=15.
       Max has 15 shells and drops 3, so 15-3=12.
       Max has 12 shells and wins 5, so 12+5=17.
       </think>

       \boxed{17}

Rows are shaped like Dolci-Think-SFT. Like Qwen3 the base is a hybrid: it was trained on rows with
thinking and on rows without, each under its own template, so that a verbal-CoT baseline and a
direct answer are real.
"""

import json
import re
import time
from pathlib import Path

import numpy as np

from abscot.common import files
from abscot.common.draws import keyed_seed, rng
from abscot.common.errors import UserError
from abscot.common.log import Progress, log
from abscot.method.vocab import TABLE_MULTIPLE
from abscot.recipe.schema import WorldConfig

NAMES = ("Mia", "Tom", "Ana", "Ben", "Eva", "Sam", "Zoe", "Max")
THINGS = ("pens", "cups", "eggs", "coins", "cards", "books", "shells", "stamps")
VERBS = {True: ("buys", "finds", "gets", "wins"), False: ("sells", "loses", "drops", "gives away")}
# Qwen3's control tokens in its order. The last twelve are plain tokens there too: decoding keeps
# <think>.
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()
PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|> <tool_response> </tool_response> <think> </think>"
).split()
TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% "
    "endif %}"
    "{% endif %}"
)
BPE_SIZE = 640  # at most: bytes and merges
MAX_ATTEMPTS = 200  # at a problem that is new
SPARE_ROWS = 66  # of the table: the abstract vocabulary fits into rows that exist, as in Qwen3
SEQUENCE_TOKENS = 1024


def make_rows(config: WorldConfig, seed: int) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows). Held-out rows carry id, problem, cot, answer.

    No problem occurs twice, and no held-out start and changes occur in training, whatever the
    names. The answers take turns, so that always giving the same one scores 1 / (max_total + 1).
    Raises UserError where the world is too small for so many rows.
    """
    made, told, heldout_sums = [], set(), set()
    for number in range(config.heldout + config.rows):
        is_heldout = number < config.heldout
        for attempt in range(MAX_ATTEMPTS):
            draw = rng("world", seed, number, attempt)
            start, changes = _sum(draw, number % (config.max_total + 1), config)
            problem, cot, answer = _tell(draw, start, changes)
            if problem not in told and (is_heldout or (start, *changes) not in heldout_sums):
                break
        else:
            raise UserError(
                f"world.rows: only {number} different problems found; raise world.changes"
            )
        told.add(problem)
        if is_heldout:
            heldout_sums.add((start, *changes))
        made.append((problem, cot, answer))
    heldout = [
        {"id": f"heldout-{number}", "problem": problem, "cot": cot, "answer": answer}
        for number, (problem, cot, answer) in enumerate(made[: config.heldout])
    ]
    return [_dolci_row(number, *row) for number, row in enumerate(made[config.heldout :])], heldout


def _sum(draw: np.random.Generator, answer: int, config: WorldConfig) -> tuple[int, list[int]]:
    """(start, changes) that lead to `answer`, drawn backwards; all totals lie within 0 and
    max_total.
    """
    total, changes = answer, []
    for _ in range(config.changes):
        steps = range(-config.max_change, config.max_change + 1)
        change = _pick(draw, [c for c in steps if c and 0 <= total - c <= config.max_total])
        changes.insert(0, change)
        total -= change
    return total, changes


def _tell(draw: np.random.Generator, start: int, changes: list[int]) -> tuple[str, str, str]:
    """(problem, CoT, answer) in words: each line of the CoT restates the total and makes one
    change.
    """
    name, thing = _pick(draw, NAMES), _pick(draw, THINGS)
    total, told, worked = start, [], []
    for change in changes:
        step = f"{_pick(draw, VERBS[change > 0])} {abs(change)}"
        told.append(step)
        worked.append(
            f"{name} has {total} {thing} and {step}, so {total}{change:+}={total + change}."
        )
        total += change
    happened = f"{', '.join(told[:-1])} and {told[-1]}" if told[1:] else told[0]
    problem = f"{name} has {start} {thing}. {name} {happened}. How many {thing} are left?"
    return problem, "\n".join(worked), str(total)


def _pick(draw: np.random.Generator, options):
    return options[draw.integers(len(options))]


def _dolci_row(number: int, problem: str, cot: str, answer: str) -> dict:
    reply = f"<think>\n{cot}\n</think>\n\n\\boxed{{{answer}}}"
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": reply}]
    return {"id": f"world-{number}", "dataset_source": "world", "messages": messages}


def _texts(rows: list[dict], system_prompt: str | None) -> list[str]:
    """What lies between control tokens: prompts, CoTs, answers, role names."""
    contents = [message["content"] for row in rows for message in row["messages"]]
    pieces = [piece for content in contents for piece in re.split("</?think>", content) if piece]
    return ["system\nuser\nassistant\n", system_prompt or "", *pieces]


def make_tokenizer(texts: list[str]):
    """A byte-level BPE of `texts`, split as Qwen3 splits (digits one by one); <|im_end|> ends a
    turn.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=BPE_SIZE, initial_alphabet=alphabet, show_progress=False),
    )
    bpe = json.loads(trained.to_str())["model"]
    vocab = bpe["vocab"] | {
        token: len(bpe["vocab"]) + i for i, token in enumerate((*SPECIAL, *PLAIN))
    }
    merges = [tuple(pair) for pair in bpe["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", chat_template=TEMPLATE
    )
    for tokens, special in ((SPECIAL, True), (PLAIN, False)):
        tokenizer.add_tokens(
            [AddedToken(t, special=special, normalized=False) for t in tokens], special
        )
    return tokenizer


def make_model(config: WorldConfig, vocab_size: int, seed: int):
    """A random Qwen3 with tied embeddings and a table padded beyond the abstract
    vocabulary, fp32.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(keyed_seed("world model", seed))
    heads = config.hidden_size // 32
    shape = Qwen3Config(
        vocab_size=-(-(vocab_size + SPARE_ROWS) // TABLE_MULTIPLE) * TABLE_MULTIPLE,
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=SEQUENCE_TOKENS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return Qwen3ForCausalLM(shape)


Document = tuple[list[int], int]  # token ids, and how many of them are the prompt


def base_documents(
    rows: list[dict], tokenizer, system_prompt: str | None
) -> dict[bool, list[Document]]:
    """thinking -> (token ids, prompt tokens) of every row: with its CoT, and answering at once."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    made = {}
    for thinking in (True, False):
        texts = []
        for row in rows:
            user, reply = row["messages"][0], row["messages"][1]["content"]
            prompt = tokenizer.apply_chat_template(
                [*system, user],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
            texts += [
                prompt,
                (reply if thinking else reply.partition("</think>\n\n")[2]) + "<|im_end|>",
            ]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        made[thinking] = [(p + r, len(p)) for p, r in zip(ids[::2], ids[1::2], strict=True)]
    return made


def train_base(
    model, documents: dict[bool, list[Document]], config: WorldConfig, seed: int
) -> None:
    """Plain training of the base on replies, in place: Muon on the matrices, AdamW on the rest."""
    import torch

    # The products are small: more threads would wait for each other.
    torch.set_num_threads(min(2, torch.get_num_threads()))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=config.base_lr, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=config.base_lr / 5, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    streams = {
        kind: _stream(made, rng("world base", seed, kind)) for kind, made in documents.items()
    }
    tokens, began_s = 0, time.monotonic()
    with Progress(config.base_steps, "steps", "base model") as progress:
        for step in range(config.base_steps):
            factor = min(1.0, (step + 1) / 20) * max(0.02, 1 - step / config.base_steps)
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * factor
            total = count = 0
            for thinking, size in (
                (True, config.base_thinking_rows),
                (False, config.base_direct_rows),
            ):
                batch = [next(streams[thinking]) for _ in range(size)]
                loss, n = _reply_loss(model, batch)
                total, count = total + loss, count + n
                tokens += sum(len(ids) for ids, _ in batch)
            (total / count).backward()
            if not torch.isfinite(total):
                raise FloatingPointError(f"base model: loss is {float(total)} at step {step}")
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            tokens_per_s = tokens / (time.monotonic() - began_s)
            progress.update(
                1, f"loss {float(total.detach()) / count:.4f}, {tokens_per_s:,.0f} tokens/s"
            )


def _stream(items: list, draw: np.random.Generator):
    while True:
        for index in draw.permutation(len(items)):
            yield items[index]


def _reply_loss(model, batch: list[Document]):
    """(summed cross-entropy, its number of tokens) over the replies of a batch.

    Padded on the right without a mask: attention is causal, so no token of a document sees padding.
    """
    import torch

    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    is_reply = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, (tokens, start) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_reply[row, start : len(tokens)] = True
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    labels = ids[:, 1:][is_reply[:, 1:]]
    logits = model.lm_head(hidden[:, :-1][is_reply[:, 1:]])
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), labels.numel()


def write(directory: Path, config: WorldConfig, seed: int, system_prompt: str | None) -> None:
    """Publishes rows.jsonl, heldout.jsonl and model/ (a bf16 Qwen3 with tokenizer) in
    `directory`.
    """
    import torch

    began_s = time.monotonic()
    rows, heldout = make_rows(config, seed)
    tokenizer = make_tokenizer(_texts(rows, system_prompt))
    model = make_model(config, len(tokenizer), seed)
    log(
        f"world: {len(rows):,} problems, {len(tokenizer)} tokens, {model.num_parameters():,} "
        "parameters"
    )
    train_base(model, base_documents(rows, tokenizer, system_prompt), config, seed)
    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with files.publish(directory, {"seconds": time.monotonic() - began_s}) as temp:
        for name, lines in (("rows", rows), ("heldout", heldout)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (temp / f"{name}.jsonl").write_text(text, encoding="utf-8")
        model.save_pretrained(temp / "model")
        tokenizer.save_pretrained(temp / "model")
