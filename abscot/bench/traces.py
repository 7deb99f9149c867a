"""Traces a second: our path against a bare vLLM loop on the same engine and prompts, and against
transformers generate.

Our path is all that a chunk of traces goes through but the disk: prompts from rows, seeds, the
engine, validation. The bare loop is one call of vLLM's `LLM.generate` with ready prompts and
parameters. Both start with an empty prefix cache. The model is random and small: what it says does
not matter here.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot.common.arguments import whole_number
from abscot.common.draws import keyed_seed, rng
from abscot.generation.requests import trace_request
from abscot.generation.trace_sources import Item, ModelTraces
from abscot.generation.transformers_engine import TransformersEngine
from abscot.generation.vllm_engine import VllmEngine, sampling_params
from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import InferenceConfig, TraceConfig

VOCAB_SIZE = 4096
KEY = (0, 2, "A")  # seed, round, phase: of the draws
VOCAB = AbstractVocab(tuple(range(4000, 4064)), 4064, 4065)


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
    engine starts counted.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=whole_number(1), default=1024)
    parser.add_argument("--transformers-traces", type=whole_number(1), default=128)
    parser.add_argument("--m-max", type=whole_number(8), default=32)
    parser.add_argument("--repeats", type=whole_number(1), default=3)
    args = parser.parse_args(list(argv))
    rules = TraceConfig(m_min=8, m_max=args.m_max)
    items = [Item(i, str(i), 0) for i in range(args.traces)]
    with tempfile.TemporaryDirectory() as directory:
        _make_model(Path(directory))
        result = _measure(
            Path(directory), InferenceConfig(max_model_len_tokens=1024), rules, items, args
        )
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
    return result


def _measure(
    model: Path, config: InferenceConfig, rules: TraceConfig, items: list[Item], args
) -> dict:
    rows = _Rows()
    start = time.perf_counter()
    slow = TransformersEngine(model, config)
    slow_start_s = time.perf_counter() - start
    few = items[: args.transformers_traces]
    slow_s = (
        _seconds(lambda: ModelTraces(rows, VOCAB, rules, True, KEY, slow).traces(few))
        * len(items)
        / len(few)
    )

    start = time.perf_counter()
    engine = VllmEngine(model, config)
    start_s = time.perf_counter() - start
    ours = ModelTraces(rows, VOCAB, rules, True, KEY, engine)
    requests = [
        trace_request(ours.prompt(i.row), VOCAB, rules, keyed_seed(*KEY, i.id, 0)) for i in items
    ]

    def bare():
        engine.forget()
        prompts = [{"prompt_token_ids": list(map(int, r.prompt))} for r in requests]
        return engine.llm.generate(
            prompts, [sampling_params(r.sampling) for r in requests], use_tqdm=False
        )

    times = {"ours": [], "bare": []}
    for repeat in range(
        args.repeats + 1
    ):  # in turns, so that a busy machine slows both alike; the first is a warm-up
        for name, work in (("ours", lambda: ours.traces(items)), ("bare", bare)):
            seconds = _seconds(work)
            if repeat:
                times[name].append(seconds)
    ours_s, bare_s = (statistics.median(times[name]) for name in ("ours", "bare"))
    return {
        "traces": len(items),
        "traces_per_s": len(items) / ours_s,
        "over_bare_vllm": bare_s / ours_s,
        "over_transformers": slow_s / ours_s,
        "traces_per_s_with_start": len(items) / (ours_s + start_s),
        "over_bare_vllm_with_start": (bare_s + start_s) / (ours_s + start_s),
        "over_transformers_with_start": (slow_s + slow_start_s) / (ours_s + start_s),
        "engine_start_s": start_s,
    }


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _make_model(directory: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

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
