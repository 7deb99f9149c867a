"""Runs of random rows around a random model of a real shape: what the product is driven on. Base
and traces are made by the product; the rows have the very lengths that are asked for.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from abscot.bench.gpu_part import shape_of
from abscot.bench.tools import Document
from abscot.common import files
from abscot.common.draws import rng
from abscot.method.sequence import DELIMITER_TOKENS
from abscot.model.shape import ModelShape
from abscot.recipe.load import default_recipe
from abscot.recipe.run import Run, claim
from abscot.recipe.schema import Recipe

MAX_POSITION = 40_960


def qwen3_config(shape: ModelShape) -> dict:
    """The arguments of Qwen3Config."""
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": MAX_POSITION,
        "tie_word_embeddings": shape.tied,
    }


class Workshop:
    """A directory in which runs are made. Each shape has one base, which its runs share."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, shape: str, name: str, rows: Sequence[Document], **keys) -> tuple[Recipe, Run]:
        """A run with base and shards. rows: X, C, Z, Y tokens, Z as long in all of them where
        traces are random. keys: of the recipe, `__` for the dot.
        """
        base = self._base(shape)
        recipe = self._recipe(shape, name, trace_tokens=rows[0][2] - DELIMITER_TOKENS, **keys)
        run = claim(recipe)
        os.symlink(base, run.base)
        _write_shards(run, recipe, shape_of(shape).vocab, rows)
        return recipe, run

    def _recipe(self, shape: str, name: str, trace_tokens: int = 8, **keys) -> Recipe:
        settings = {
            "name": name,
            "run_root": self.root,
            "schedule": "paper",
            "codebook_size": 64,
            "world": "null",
            "trackers": "[]",
            "model.base": self.root / f"model-{shape}",
            "model.dtype": "bf16",
            "model.gradient_checkpointing": "true",
            "model.random_init": "true",
            "data.source": self.root / f"model-{shape}" / "config.json",  # nothing is prepared
            "data.decontaminate": "false",
            "eval.benchmarks": "[]",
            "eval.max_answer_tokens": 32,  # within any window
            "traces.random": "uniform",
            "traces.random_min": trace_tokens,
            "traces.random_max": trace_tokens,
            "train.channel_rows": 0,
            **{key.replace("__", "."): value for key, value in keys.items()},
        }
        return default_recipe([f"{key}={value}" for key, value in settings.items()])

    def _base(self, shape: str) -> Path:
        """base/ of the shape's own run, made as launch/extend.py makes it: random weights."""
        from transformers import Qwen3Config

        from abscot.data.toy_base import make_tokenizer
        from abscot.model.extend import check_base, extend_base

        directory = self.root / f"model-{shape}"
        if not directory.exists():
            Qwen3Config(**qwen3_config(shape_of(shape))).save_pretrained(directory)
            make_tokenizer(["system\nuser\nassistant\n"]).save_pretrained(directory)
        recipe = self._recipe(shape, f"base-{shape}")
        run = claim(recipe)
        if not files.is_done(run.base):
            extend_base(recipe, run, check_base(recipe, run))
        return run.base


def _write_shards(run: Run, recipe: Recipe, vocab: int, rows: Sequence[Document]) -> None:
    """Tokens from that part of the table that has no text: none of them is a control token."""
    from abscot.data.chat import ChatTokenizer
    from abscot.data.rows import Row
    from abscot.data.shards import ShardWriter, manifest_of
    from abscot.method.vocab import load_tokenizer

    tokenizer = load_tokenizer(run.base)
    with files.publish(run.shards) as directory:
        writer = ShardWriter(directory / "shard_00000.arrow")
        for number, (x, c, _, y) in enumerate(rows):
            draw = rng("gpu bench", recipe.seed, number)
            prompt, cot, answer = (
                draw.integers(len(tokenizer), vocab, n).astype(np.int32) for n in (x, c, y)
            )
            steps = np.array([c], np.int32)
            writer.add(Row(f"row/{number}", prompt, cot, steps, answer, "random"))
        manifest = manifest_of(directory, [writer.close()], {}, ChatTokenizer(tokenizer))
        files.write_json_atomic(directory / "manifest.json", manifest)
