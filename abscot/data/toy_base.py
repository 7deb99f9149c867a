"""The tokenizer and the base model of the embedded world.

Like Qwen3 the base is a hybrid: it was trained on rows with thinking and on rows without, each
under its own template, so that a verbal-CoT baseline and a direct answer are real.
"""

import json
import re
import time
from collections import defaultdict

import numpy as np
import torch

from abscot.common.draws import keyed_seed, rng
from abscot.common.hardware import one_thread
from abscot.common.log import Progress, log
from abscot.method.vocab import TABLE_MULTIPLE
from abscot.recipe.schema import WorldConfig

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
SPARE_ROWS = 66  # of the table: the abstract vocabulary fits into rows that exist, as in Qwen3
SEQUENCE_TOKENS = 1024
LEAST_ROWS = 2000  # for a tokenizer that has seen every word and cup


def rows_needed(config: WorldConfig) -> int:
    """Training rows that the base learns from, each at most once a mode; it needs no others."""
    a_step = max(config.base_thinking_rows, config.base_direct_rows)
    return max(LEAST_ROWS, config.base_steps * a_step)


def make_base(rows: list[dict], config: WorldConfig, seed: int, system_prompt: str | None):
    """(a bf16 Qwen3, its tokenizer), trained on `rows`."""
    tokenizer = make_tokenizer(_texts(rows, system_prompt))
    model = make_model(config, len(tokenizer), seed)
    log(f"base model: {len(tokenizer)} tokens, {model.num_parameters():,} parameters")
    train_base(model, base_documents(rows, tokenizer, system_prompt), config, seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.to(torch.bfloat16), tokenizer


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


class Muon(torch.optim.Optimizer):
    """Muon as Keller Jordan wrote it, its Newton-Schulz iteration in fp32 and on all matrices of a
    shape at once. torch.optim.Muon iterates in bf16, which most CPUs emulate ten times slower.
    """

    def __init__(self, matrices: list[torch.Tensor], lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            of_shape = defaultdict(list)
            for matrix in group["params"]:
                of_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in of_shape.items():
                updates = torch.stack([self._update(m, group["momentum"]) for m in matrices])
                lr = group["lr"] * max(1, rows / columns) ** 0.5
                for matrix, update in zip(matrices, orthogonalised(updates), strict=True):
                    matrix.add_(update, alpha=-lr)

    def _update(self, matrix: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient with Nesterov's momentum."""
        if "momentum" not in self.state[matrix]:
            self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        mean = self.state[matrix]["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """[n, rows, columns] -> the same with singular values near 1 (0.7 to 1.2), not all of them 1:
    five steps of a polynomial that grows small ones fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


@one_thread()
def train_base(
    model, documents: dict[bool, list[Document]], config: WorldConfig, seed: int
) -> None:
    """Plain training of the base on replies, in place: Muon on the matrices, AdamW on the rest.

    The products are small: a second thread gains nothing, and where another process takes its core,
    the first burns three times the time waiting for it.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=config.base_lr),
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
