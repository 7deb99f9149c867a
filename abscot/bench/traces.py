"""Traces and answers a second: our path against bare vLLM on the same engine, and against
transformers generate.

Our path is all that a chunk of traces goes through but the disk: prompts from rows, seeds, the
engine, validation. Bare vLLM is one call of `LLM.generate` with ready prompts and vLLM's own
allowed_token_ids and min_tokens; its prompts end in another token, so that the rules of abstract
decoding leave them alone. Answers behind their traces in one request are measured against the same
in two, the second behind the prompt in the prefix cache. All start with an empty prefix cache. The
model is random and small: what it says does not matter here.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot.common.arguments import whole_number
from abscot.common.draws import keyed_seed, rng
from abscot.generation.requests import (
    Request,
    Sampling,
    answered_request,
    codebook_tokens_of,
    trace_request,
)
from abscot.generation.trace_sources import Item, ModelTraces
from abscot.generation.transformers_engine import TransformersEngine
from abscot.generation.vllm_engine import VllmEngine
from abscot.method.sequence import answer_prompt
from abscot.method.vocab import AbstractVocab, extend_tokenizer
from abscot.recipe.schema import InferenceConfig, TraceConfig

VOCAB_SIZE, TEXT_TOKENS = 4096, 4000
ANSWER_TOKENS = 48
KEY = (0, 2, "A")  # seed, round, phase: of the draws


@dataclass(frozen=True)
class _Row:
    prompt: np.ndarray
    cot: np.ndarray


class _Rows:
    """Stands in for a shard store: prompts of 60 to 140 tokens behind one system prompt, CoTs of 50
    to 250.
    """

    def row(self, i: int) -> _Row:
        draw = rng("bench traces", i)
        prompt = np.concatenate([np.arange(20), draw.integers(20, 4000, draw.integers(40, 120))])
        return _Row(prompt, draw.integers(20, 4000, draw.integers(50, 250)))


def run(argv: Sequence[str] = ()) -> dict:
    """Prints a table; returns traces_per_s, over_bare_vllm, over_transformers and the same with
    engine starts counted, answers_per_s and answers_over_two_requests.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=whole_number(1), default=1024)
    parser.add_argument("--answers", type=whole_number(1), default=256)
    parser.add_argument("--transformers-traces", type=whole_number(1), default=128)
    parser.add_argument("--m-max", type=whole_number(8), default=32)
    parser.add_argument("--repeats", type=whole_number(1), default=3)
    args = parser.parse_args(list(argv))
    rules = TraceConfig(m_min=8, m_max=args.m_max)
    items = [Item(i, str(i), 0) for i in range(args.traces)]
    with tempfile.TemporaryDirectory() as directory:
        vocab, newline = _make_model(Path(directory))
        config = InferenceConfig(max_model_len_tokens=1024)
        parts = _Parts(Path(directory), config, rules, vocab, newline)
        result = _measure(parts, items, args)
    print(
        f"{args.traces:,} traces of {rules.m_min} to {rules.m_max} tokens, phase A prompts, random "
        "4-layer model"
    )
    for name, label in (
        ("", "engine starts not counted"),
        ("_with_start", "engine starts counted"),
    ):
        print(f"  {label}:")
        print(f"    this path               {result['traces_per_s' + name]:8.1f} traces/s")
        print(f"    over a bare vLLM loop   {result['over_bare_vllm' + name]:8.2f}x")
        print(f"    over transformers       {result['over_transformers' + name]:8.2f}x")
    print(f"{args.answers:,} traces, each with an answer of {ANSWER_TOKENS} tokens:")
    print(f"    in one request          {result['answers_per_s']:8.1f} answers/s")
    print(f"    over two requests       {result['answers_over_two_requests']:8.2f}x")
    return result


@dataclass(frozen=True)
class _Parts:
    model: Path
    config: InferenceConfig
    rules: TraceConfig
    vocab: AbstractVocab
    newline: list[int]

    def source(self, engine) -> ModelTraces:
        return ModelTraces(_Rows(), self.vocab, self.rules, True, KEY, engine)


def _measure(parts: _Parts, items: list[Item], args) -> dict:
    start = time.perf_counter()
    slow = TransformersEngine(parts.model, parts.config)
    slow_start_s = time.perf_counter() - start
    few = items[: args.transformers_traces]
    slow_s = _seconds(lambda: parts.source(slow).traces(few)) * len(items) / len(few)

    start = time.perf_counter()
    engine = VllmEngine(parts.model, parts.config)
    start_s = time.perf_counter() - start
    ours, asked = parts.source(engine), items[: args.answers]
    spent_s = _in_turns(
        {
            "ours": lambda: ours.traces(items),
            "bare": _bare(parts, engine, ours, items),
            "one": lambda: _answer(parts, engine, ours, asked, together=True),
            "two": lambda: _answer(parts, engine, ours, asked, together=False),
        },
        args.repeats,
    )
    ours_s, bare_s = spent_s["ours"], spent_s["bare"]
    return {
        "traces": len(items),
        "traces_per_s": len(items) / ours_s,
        "over_bare_vllm": bare_s / ours_s,
        "over_transformers": slow_s / ours_s,
        "traces_per_s_with_start": len(items) / (ours_s + start_s),
        "over_bare_vllm_with_start": (bare_s + start_s) / (ours_s + start_s),
        "over_transformers_with_start": (slow_s + slow_start_s) / (ours_s + start_s),
        "engine_start_s": start_s,
        "answers": len(asked),
        "answers_per_s": len(asked) / spent_s["one"],
        "answers_over_two_requests": spent_s["two"] / spent_s["one"],
    }


def _in_turns(works: dict, repeats: int) -> dict[str, float]:
    """name -> median seconds. In turns, so that a busy machine slows all alike; the first turn is a
    warm-up.
    """
    times = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            seconds = _seconds(work)
            if repeat:
                times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _bare(parts: _Parts, engine: VllmEngine, ours: ModelTraces, items: list[Item]):
    """One call of vLLM alone for the same traces."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [*map(int, ours.prompt(item.row)[:-1]), 0]} for item in items]
    rules = [
        SamplingParams(
            max_tokens=parts.rules.m_max,
            min_tokens=parts.rules.m_min,
            temperature=1.0,
            allowed_token_ids=parts.vocab.allowed_ids,
            stop_token_ids=[parts.vocab.end_id],
            seed=keyed_seed(*KEY, item.id, 0),
            detokenize=False,
        )
        for item in items
    ]

    def work():
        engine.forget()
        return engine.llm.generate(prompts, rules, use_tqdm=False)

    return work


def _answer(
    parts: _Parts, engine: VllmEngine, ours: ModelTraces, items: list[Item], together: bool
) -> list:
    """Greedy traces and answers, in one request each or in two. All traces are as long: the random
    model's answers never end, and one decode has room for what a shorter trace leaves.
    """
    engine.forget()
    vocab, newline = parts.vocab, parts.newline
    rules = dataclasses.replace(parts.rules, m_min=parts.rules.m_max, temperature=0.0)

    def request(item: Item) -> Request:
        prompt, seed = ours.prompt(item.row), keyed_seed(*KEY, item.id, 0)
        free = Sampling(ANSWER_TOKENS, seed=seed)
        if together:
            return answered_request(prompt, vocab, rules, newline, free)

        def answer(completion):
            trace = codebook_tokens_of(completion, vocab, rules)
            return Request(answer_prompt(vocab, newline, prompt[:-1], trace), free)

        return dataclasses.replace(trace_request(prompt, vocab, rules, seed), then=answer)

    return list(engine.stream(list(map(request, items))))


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _make_model(directory: Path) -> tuple[AbstractVocab, list[int]]:
    """A random model with the tokens of a trace; returns those, and the newline's."""
    import tokenizers
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = {"\n": 0} | {f"w{i}": i for i in range(1, TEXT_TOKENS)}
    model = tokenizers.models.WordLevel(words, unk_token="w1")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))
    vocab = extend_tokenizer(tokenizer)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return vocab, tokenizer.encode("\n", add_special_tokens=False)
