"""Random traces keep the paper's rule and the limits."""

import numpy as np

from abscot.data.shards import ShardStore
from abscot.generation.trace_sources import Item, RandomTraces
from kit.trace_runs import with_traces


def random_lengths(recipe, run, vocab, samples=300):
    store = ShardStore(run.shards)
    source = RandomTraces(store, vocab, recipe.traces, (recipe.seed, 1, "A"))
    made = source.traces(
        [
            Item(row, f"{row}/{i}", 0)
            for row in range(len(store))
            for i in range(samples // len(store) + 1)
        ]
    )
    return store, made


def test_random_traces_have_up_to_half_the_tokens_of_each_step(tiny):
    recipe, run, vocab = tiny
    recipe = with_traces(recipe, m_min=1, m_max=128)
    store, made = random_lengths(recipe, run, vocab)
    each = len(made) // len(store)
    for row in range(len(store)):
        halves = np.maximum(1, store.row(row).cot_steps // 2)
        lengths = [len(t) for t in made[row * each : (row + 1) * each]]
        assert len(halves) <= min(lengths) and max(lengths) <= halves.sum()
    assert set(np.concatenate(made).tolist()) == set(vocab.codebook_ids)


def test_random_traces_keep_the_limits(tiny):
    recipe, run, vocab = tiny
    for kind, m_min, m_max in (("steps", 6, 8), ("uniform", 6, 8), ("uniform", 3, 3)):
        _, made = random_lengths(
            with_traces(recipe, random=kind, m_min=m_min, m_max=m_max), run, vocab
        )
        assert {len(t) for t in made} == set(range(m_min, m_max + 1))
