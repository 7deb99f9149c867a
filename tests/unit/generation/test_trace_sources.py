"""Random traces keep the paper's rule and the limits; of sampled ones the best is kept."""

import numpy as np
import pytest
import torch

from abscot.common.draws import keyed_seed
from abscot.data.shards import ShardStore
from abscot.generation.requests import codebook_tokens_of
from abscot.generation.trace_sources import Item, ModelTraces, RandomTraces
from abscot.generation.transformers_engine import TransformersEngine
from abscot.method.sequence import cut_middle, z_tokens
from kit.tiny_run import KeyedEngine
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


def model_traces(tiny, engine, with_cot=False, **rules):
    """(source of traces, items of all rows)"""
    recipe, run, vocab = tiny
    store, config = ShardStore(run.shards), with_traces(recipe, **rules).traces
    source = ModelTraces(store, vocab, config, with_cot, (0, 1, "B"), engine)
    return source, [Item(row, id_, 0) for row, id_ in enumerate(store.ids())]


def test_the_candidate_behind_which_the_answer_is_most_likely_is_kept(tiny):
    """Against log p of a plain forward over each document alone."""
    recipe, run, vocab = tiny
    engine = TransformersEngine(run.base, recipe.inference)
    drawn = []
    stream = engine.stream
    engine.stream = lambda asked, *told: drawn.extend(done := list(stream(asked, *told))) or done
    source, items = model_traces(tiny, engine, best_of=3)
    found = source.traces(items[:12])

    drawn = [codebook_tokens_of(c, vocab, source.config) for _, (c,) in sorted(drawn)]
    not_first, first_sum, best_sum = 0, 0.0, 0.0
    for item, kept in zip(items, found, strict=False):
        row = source.store.row(item.row)
        candidates = drawn[3 * item.row : 3 * item.row + 3]
        scores = [log_p(engine.lm, vocab, row, trace) for trace in candidates]
        best = scores.index(max(scores))
        assert kept == candidates[best]
        not_first += best > 0
        first_sum, best_sum = first_sum + scores[0], best_sum + scores[best]
    choices = source.choices
    assert (choices.rows, choices.not_first, choices.distinct_candidates) == (12, not_first, 36)
    assert 0 < not_first < 12
    assert choices.first_log_p == pytest.approx(first_sum, rel=1e-5)
    assert choices.best_log_p == pytest.approx(best_sum, rel=1e-5)


def log_p(lm, vocab, row, trace) -> float:
    """Of the answer behind the document of a phase that does not see the CoT."""
    tokens = [*row.prompt.tolist(), vocab.begin_id, *trace, vocab.end_id, *row.answer.tolist()]
    with torch.no_grad():
        each = lm(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    each = each.gather(-1, torch.tensor(tokens[1:])[:, None])
    return float(each[-len(row.answer) :].sum())


def test_one_candidate_is_what_it_always_was_and_is_the_first_of_several(tiny):
    one, several = KeyedEngine(), KeyedEngine()
    source, items = model_traces(tiny, one)
    found = source.traces(items)
    assert one.texts == [] and source.choices.rows == 0
    seeds = [keyed_seed(0, 1, "B", item.id, 0) for item in items]
    assert [r.sampling.seed for r in one.requests] == seeds
    source, items = model_traces(tiny, several, best_of=4)
    told = []
    better = source.traces(items, lambda made, note="": told.append(made))
    assert sum(told) == len(items) and len(told) > 1
    assert several.requests[::4] == one.requests
    assert len({r.sampling.seed for r in several.requests}) == 4 * len(items)
    same = sum(a == b for a, b in zip(found, better, strict=True))
    assert same == len(items) - source.choices.not_first and 20 < same < 60


def test_equal_candidates_are_scored_once(tiny):
    _, run, vocab = tiny
    engine = KeyedEngine()
    source, items = model_traces(tiny, engine, best_of=8, m_min=1, m_max=1)
    engine.codebook_ids = vocab.codebook_ids[:3]
    source.traces(items)
    assert len(engine.texts) == len(set(map(tuple, engine.texts))) <= 3 * len(items)
    assert source.choices.distinct_candidates == len(engine.texts)


def test_equally_good_candidates_leave_the_first(tiny):
    engine, plain = KeyedEngine(), KeyedEngine()
    engine.surprisals = lambda texts, positions, stepped: [[1.0] * n for n in positions]
    source, items = model_traces(tiny, engine, best_of=4)
    assert source.traces(items) == model_traces(tiny, plain)[0].traces(items)
    assert source.choices.not_first == 0


def test_an_answer_that_does_not_fit_the_window_costs_the_prompt_its_middle(tiny):
    engine = KeyedEngine()
    source, items = model_traces(tiny, engine, best_of=2)
    row = source.store.row(0)
    x, y = row.prompt.tolist(), row.answer.tolist()
    engine.window_tokens = len(x) + len(y) + z_tokens(source.config.m_max) + 1 - 3
    source.traces(items[:1])
    for text in engine.texts:
        begin = text.index(source.vocab.begin_id)
        assert text[:begin] == cut_middle(x, len(x) - 3) and text[-len(y) :] == y
    assert len(engine.texts) == 2 and source.cut_prompts == 1


def test_a_teacher_sees_the_cot_where_its_phase_does_not(tiny):
    """And what is kept is scored without it."""
    engine = KeyedEngine()
    source, items = model_traces(tiny, engine, with_cot=True, best_of=2)
    source.traces(items)
    for item, request in zip(items, engine.requests[::2], strict=True):
        row = source.store.row(item.row)
        whole = [*row.prompt.tolist(), *row.cot.tolist(), source.vocab.begin_id]
        assert list(request.prompt) == whole or len(whole) > 256 - 13
    at = {text.index(source.vocab.begin_id) for text in engine.texts}
    assert at == {len(source.store.row(item.row).prompt) for item in items}
