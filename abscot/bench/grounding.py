"""Grounded traces: tokens a second of the stage, beside plain forwards of the same tokens.

The stage is all that a chunk of rows goes through but the disk: steps found in the CoTs, bins, the
layers below the recipe's, states, codes. A plain forward has its bins ready and computes the layers
alone: as many as the stage, or all of them; neither runs the LM head. One process, in turns; on a
CPU one thread, as in the stage. The model is random: what its states say does not matter here.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch

from abscot.bench import tools
from abscot.common.arguments import whole_number
from abscot.common.draws import rng
from abscot.common.files import publish
from abscot.common.hardware import one_thread
from abscot.data.rows import Row
from abscot.generation.codebook_job import Steps, fitted, states_of
from abscot.generation.grounding import GroundedTraces
from abscot.generation.trace_sources import Item
from abscot.method.sequence import Marks
from abscot.method.vocab import AbstractVocab, extend_tokenizer, load_tokenizer
from abscot.model import attention, states
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

WORDS = 1000
STEP_TOKENS = (8, 40)
# rows, tokens of a row, hidden size, layers: seconds of work for a core, and for a GPU
ON_CPU, ON_GPU = (16, 700, 128, 6), (256, 8000, 2048, 28)


def run(argv: Sequence[str] = ()) -> dict:
    """Prints a table; returns tokens_per_s of the stage, over_same_layers and over_all_layers: its
    speed as a multiple of the plain forwards'.
    """
    rows, tokens, hidden, layers = ON_GPU if torch.cuda.is_available() else ON_CPU
    parser = argparse.ArgumentParser(
        prog="bench.py grounding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=whole_number(1), default=rows)
    parser.add_argument("--tokens", type=whole_number(100), default=tokens, help="of a row, about")
    parser.add_argument("--hidden", type=whole_number(64), default=hidden)
    parser.add_argument("--layers", type=whole_number(1), default=layers)
    parser.add_argument("--layer", default="0.34", help="grounding.layer of the stage")
    parser.add_argument("--repeats", type=whole_number(1), default=5)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        keys = [f"run_root={root}", f"grounding.layer={args.layer}", "grounding.fit_steps=500"]
        keys.append("train.channel_rows=0")
        recipe = load_recipe(None, [*keys, "train.capacity_tokens=32768"])
        _write_base(Run.of(recipe), args.hidden, args.layers)
        return _measure(recipe, _Rows(args.rows, args.tokens), args.repeats)


class _Rows:
    """Stands in for a shard store: prompts of an eighth of `tokens`, CoTs of half to all of the
    rest, in steps of 8 to 40 tokens.
    """

    def __init__(self, count: int, tokens: int):
        self.count, self.tokens = count, tokens

    def __len__(self) -> int:
        return self.count

    def ids(self) -> list[str]:
        return [str(i) for i in range(self.count)]

    def marks(self, vocab: AbstractVocab) -> Marks:
        return Marks.of(vocab, [], [], [])

    def row(self, i: int) -> Row:
        draw = rng("bench grounding", i)
        prompt, room = self.tokens // 8, self.tokens - self.tokens // 8
        steps = draw.integers(*STEP_TOKENS, max(1, room // STEP_TOKENS[0]), dtype=np.int32)
        steps = steps[: max(1, int((steps.cumsum() < draw.integers(room // 2, room)).sum()))]
        tokens = draw.integers(0, WORDS, prompt + steps.sum(), dtype=np.int32)
        return Row(str(i), tokens[:prompt], tokens[prompt:], steps, tokens[:1], "bench")


def _measure(recipe: Recipe, rows: _Rows, repeats: int) -> dict:
    run = Run.of(recipe)
    steps = Steps.of(recipe, run, rows)
    with publish(run.codebook) as directory:
        fitted(recipe, run, steps, recipe.grounding.tokens_per_step).write(directory)
    vocab = AbstractVocab.of(load_tokenizer(run.base), recipe.codebook_size)
    source = GroundedTraces(recipe, run, rows, vocab)
    items = [Item(row, str(row), 0) for row in range(len(rows))]
    documents = [steps.document(i, steps.reading(i)) for i in range(len(rows))]
    whole = dataclasses.replace(recipe.grounding, layer=1.0)
    every = states_of(dataclasses.replace(recipe, grounding=whole), run)
    runs = {
        "the stage": lambda: source.traces(items),
        "the same layers": _plain(source.model, documents),
        "all layers": _plain(every, documents),
    }
    seconds = tools.interleaved_medians(runs, repeats)
    tokens = sum(len(d.tokens) for d in documents)
    speeds = {name: tokens / s for name, s in seconds.items()}
    layers = {"the stage": source.model.layer_number, "the same layers": source.model.layer_number}
    table = [
        [name, layers.get(name, every.layer_number), speed, speeds["the stage"] / speed]
        for name, speed in speeds.items()
    ]
    count = sum(len(d.positions) for d in documents)
    title = f"{tokens:,} tokens of {len(rows)} rows, {count:,} states"
    print(tools.table(title, ["", "layers", "tokens/s", "stage over it"], table))
    return {
        "tokens_per_s": speeds["the stage"],
        "over_same_layers": speeds["the stage"] / speeds["the same layers"],
        "over_all_layers": speeds["the stage"] / speeds["all layers"],
        **tools.environment(),
    }


def _plain(model: states.HiddenStates, documents: list[states.Document]) -> Callable[[], None]:
    """A forward of all documents, in the bins of the stage."""
    batches = [model.packed(bin_) for bin_ in states.bins(documents, model.capacity_tokens)]

    @one_thread()
    @torch.inference_mode()
    def forward() -> None:
        for layout, inputs in batches:
            attention.hidden_states(model.decoder, layout, **inputs)

    return forward


def _write_base(run: Run, hidden: int, layers: int) -> None:
    """A random Qwen3 and a tokenizer of words."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocab = {"a": 0, **{f"word{i}": i for i in range(1, WORDS)}}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    extend_tokenizer(tokenizer)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        tie_word_embeddings=True,
    )
    with publish(run.base) as directory:
        Qwen3ForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
