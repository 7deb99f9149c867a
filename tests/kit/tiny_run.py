"""A run directory with a random tiny model and a tiny shard store: what trace and evaluation tests
start from.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from abscot.common import files
from abscot.common.draws import rng
from abscot.data.chat import ChatTokenizer
from abscot.data.rows import Row
from abscot.data.shards import ShardWriter, manifest_of
from abscot.generation.requests import Completion, untold
from abscot.method.lineage import Training
from abscot.method.phases import PHASES
from abscot.method.vocab import AbstractVocab, extend_tokenizer
from abscot.model.handover import ExportMeta, Probe
from abscot.recipe.load import dump
from abscot.recipe.run import Run
from abscot.recipe.schema import (
    DataConfig,
    EvalConfig,
    InferenceConfig,
    ModelConfig,
    Recipe,
    TraceConfig,
)

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def tiny_recipe(root: Path, rows: int = 40) -> Recipe:
    """A recipe whose run directory is root/tiny and whose benchmark is a file of five sums."""
    problems = root / "sums.jsonl"
    problems.write_text(
        "".join(
            json.dumps({"id": i, "problem": f"{i}+1=?", "answer": str(i + 1)}) + "\n"
            for i in range(5)
        )
    )
    return Recipe(
        name="tiny",
        run_root=str(root),
        rounds=2,
        model=ModelConfig(base=str(root)),
        data=DataConfig(source=str(problems), rows=rows, system_prompt="Think."),
        traces=TraceConfig(m_min=2, m_max=12, probe_prompts=6, probe_samples=2),
        inference=InferenceConfig(
            dtype="fp32",
            max_model_len_tokens=256,
            max_num_seqs=16,
            cpu_kv_cache_gib=1,
            chunk_tokens=800,  # eight rows with their CoTs
        ),
        eval=EvalConfig(
            benchmarks=["world"],
            files={"world": str(problems)},
            max_reasoning_tokens=16,
            max_answer_tokens=8,
        ),
    )


EXPORT_META = ExportMeta(  # of a model that nobody trained
    tag="pi1_phaseB",
    round=1,
    phase="B",
    start="0",
    step=1,
    epoch=1,
    tokens=1,
    plan_hash="0",
    world_size=1,
    probe=Probe(tokens=[1, 2], surprisals=[0.5]),
)


def tiny_tokenizer():
    """`plain_tokenizer` with the abstract tokens."""
    tokenizer = plain_tokenizer()
    extend_tokenizer(tokenizer)
    return tokenizer


def plain_tokenizer():
    """Byte-level, with the control tokens and the template of a hybrid thinking model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(CONTROL),
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module", name="tiny_run")
def _tiny_run(tmp_path_factory):
    """(recipe, run, vocab) of `make_tiny_run`."""
    return make_tiny_run(tmp_path_factory.mktemp("tiny"))


def make_tiny_run(
    root: Path, rows: int = 40, question="question {}".format, answer="{}".format
) -> tuple[Recipe, Run, AbstractVocab]:
    """base/ (random weights, doubling as every other model's source) and shards/ of a tiny run;
    question: row -> prompt; answer: row -> what stands in the box.
    """
    recipe = tiny_recipe(root, rows)
    run, tokenizer = Run.of(recipe), tiny_tokenizer()
    run.root.mkdir(parents=True)
    run.config.write_text(dump(recipe))
    make_model(run.base, tokenizer, seed=0)
    with files.publish(run.shards) as directory:
        write_shards(directory, ChatTokenizer(tokenizer), rows, question, answer)
    return recipe, run, AbstractVocab.of(tokenizer)


def training_of(recipe: Recipe, run: Run, round_: int, phase: str) -> Training:
    return Training(recipe, run, PHASES[phase], round_)


def make_model(directory: Path, tokenizer, seed: int) -> None:
    with files.publish(directory) as temp:
        tiny_model(seed).save_pretrained(temp)
        tokenizer.save_pretrained(temp)


def tiny_model(seed: int, **changes):
    """A random Qwen3 with spare rows in its tied table. changes: of its config."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    settings = dict(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return Qwen3ForCausalLM(Qwen3Config(**settings | changes))


def write_shards(
    directory: Path,
    chat: ChatTokenizer,
    rows: int,
    question="question {}".format,
    answer="{}".format,
) -> None:
    writer = ShardWriter(directory / "shard_00000.arrow")
    for i in range(rows):
        draw = rng("tiny", i)
        cot = "\n".join(
            f"{a} + {b} = {a + b}" for a, b in draw.integers(1, 99, (draw.integers(1, 6), 2))
        )
        prompt = chat.prompts([[{"role": "user", "content": question(i)}]])[0]
        (tokens, steps), y = chat.cots([cot])[0], chat.answers([f"\\boxed{{{answer(i)}}}"])[0]
        writer.add(Row(f"row/{i}", prompt, tokens, steps, y, "tiny"))
    manifest = manifest_of(directory, [writer.close()], {}, chat)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def random_flat(
    draw: np.random.Generator, count: int, m_min: int, m_max: int, codebook
) -> tuple[np.ndarray, np.ndarray]:
    """(values, offsets) of healthy traces."""
    offsets = np.cumsum([0, *draw.integers(m_min, m_max + 1, count)])
    return draw.choice(np.asarray(codebook, np.int32), offsets[-1]), offsets


class KeyedEngine:
    """Stands in for vLLM, which takes seconds to start: a trace depends on its prompt and seed, a
    probability on its text, and both come after a while. It keeps what it was asked.
    """

    window_tokens = 256

    def __init__(self):
        self.requests, self.texts = [], []
        self.codebook_ids = AbstractVocab.of(tiny_tokenizer()).codebook_ids

    def forget(self):
        self.forgotten = True

    def stream(self, requests, stepped=untold):
        assert self.forgotten
        self.requests += requests
        # Requests finish in any order.
        for index in np.random.default_rng().permutation(len(requests)):
            time.sleep(0.002)
            prompt, sampling = list(requests[index].prompt), requests[index].sampling
            draw = rng("keyed", sampling.seed, prompt)
            length = draw.integers(sampling.m_min, sampling.m_max + 1)
            tokens = draw.choice(self.codebook_ids, length).tolist()
            yield int(index), [Completion(tokens, "length", len(prompt), 0)]

    def surprisals(self, texts, positions, stepped=untold):
        assert max(map(len, texts)) < self.window_tokens
        self.texts += texts
        time.sleep(0.002)
        return [rng("keyed", *t).random(n).tolist() for t, n in zip(texts, positions, strict=True)]
