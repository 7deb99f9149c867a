import numpy as np
import pytest

from abscot.generation import collapse
from kit.tiny_run import random_flat

CODEBOOK = list(range(1000, 1064))
M_MIN, M_MAX = 4, 32


def healthy_probe(draw, prompts=40, samples=4):
    """Traces that tell their prompt: noisy copies of one trace a prompt."""
    probe = {}
    for row in range(prompts):
        base = draw.choice(CODEBOOK, draw.integers(M_MIN, M_MAX))
        probe[row] = [
            np.where(draw.random(len(base)) < 0.3, draw.choice(CODEBOOK, len(base)), base)
            for _ in range(samples)
        ]
    return probe


def random_probe(draw, prompts=40, samples=4):
    return {
        r: [draw.choice(CODEBOOK, draw.integers(M_MIN, M_MAX)) for _ in range(samples)]
        for r in range(prompts)
    }


def flags(flat, probe, from_model=True, m_min=M_MIN):
    stats = collapse.statistics(*flat, CODEBOOK, M_MAX, probe, seed=0)
    return collapse.warnings(stats, m_min, M_MAX, from_model)


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def test_a_healthy_set_is_not_flagged(draw):
    assert flags(random_flat(draw, 500, M_MIN, M_MAX, CODEBOOK), healthy_probe(draw)) == []


def test_constant_length_is_flagged_unless_the_recipe_asks_for_it(draw):
    flat = random_flat(draw, 500, 13, 13, CODEBOOK)
    (flag,) = flags(flat, healthy_probe(draw))
    assert flag.startswith("constant length") and "13 tokens" in flag
    fixed = random_flat(draw, 500, M_MAX, M_MAX, CODEBOOK)
    assert flags(fixed, healthy_probe(draw), m_min=M_MAX) == []


def test_one_dominating_token_is_flagged(draw):
    values, offsets = random_flat(draw, 500, M_MIN, M_MAX, CODEBOOK)
    values = np.where(draw.random(len(values)) < 0.8, np.int32(1007), values)
    (flag,) = flags((values, offsets), healthy_probe(draw))
    assert flag.startswith("one token dominates")


def test_prompt_independent_traces_are_flagged_unless_they_are_meant_to_be_random(draw):
    flat, probe = random_flat(draw, 500, M_MIN, M_MAX, CODEBOOK), random_probe(draw)
    (flag,) = flags(flat, probe)
    assert flag.startswith("no difference between prompts")
    assert flags(flat, probe, from_model=False) == []


def test_random_traces_may_all_fill_m_max_but_not_with_one_token(draw):
    """The paper's rule gives every long CoT a trace of m_max tokens."""
    values, offsets = random_flat(draw, 500, M_MAX, M_MAX, CODEBOOK)
    assert len(flags((values, offsets), {})) == 2  # a model's: constant length, no end
    assert flags((values, offsets), {}, from_model=False) == []
    (flag,) = flags((np.full_like(values, 1007), offsets), {}, from_model=False)
    assert flag.startswith("one token dominates")


def test_the_same_trace_for_every_prompt_is_flagged(draw):
    trace = draw.choice(CODEBOOK, 20).astype(np.int32)
    flat = np.tile(trace, 100), np.arange(101) * 20
    found = " / ".join(flags(flat, {r: [trace, trace] for r in range(10)}))
    for name in ("constant length", "few different traces", "no difference between prompts"):
        assert name in found


def test_traces_that_never_end_and_empty_sets_are_flagged(draw):
    assert any(
        f.startswith("no end") for f in flags(random_flat(draw, 100, M_MAX, M_MAX, CODEBOOK), {})
    )
    assert flags((np.zeros(0, np.int32), np.zeros(5, np.int64)), {}) == [
        "no trace holds a single token"
    ]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "", 1),
        ("kitten", "sitting", 3 / 7),
        ("ab", "ba", 1),
        ("abcd", "bcde", 2 / 4),
    ],
)
def test_edit_distance(a, b, distance):
    first, second = (np.array([ord(c) for c in text], np.int32) for text in (a, b))
    assert collapse.edit_distances([first], [second])[0] == pytest.approx(distance)


def test_edit_distances_of_many_pairs_are_those_of_each(draw):
    first, second = ([draw.choice(5, draw.integers(0, 9)) for _ in range(50)] for _ in range(2))
    together = collapse.edit_distances(first, second)
    assert together.tolist() == [
        collapse.edit_distances([a], [b])[0] for a, b in zip(first, second, strict=True)
    ]


def test_entropies_of_known_sets():
    tokens, offsets = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 2, 4, 6])
    stats = collapse.token_statistics(tokens, offsets, 4)
    assert stats["unigram_entropy_bits"] == pytest.approx(1.0)
    assert stats["entropy_given_position_bits"] == pytest.approx(0.0)  # position tells the token
    assert (stats["tokens_used"], stats["top_token_share"], stats["token_counts"]) == (
        2,
        0.5,
        [3, 3, 0, 0],
    )


def test_zipf_fit_recovers_its_exponent():
    counts = np.round(1e6 / np.arange(1, 65) ** 1.3).astype(int)
    exponent, fit = collapse.zipf_fit(counts)
    assert exponent == pytest.approx(1.3, abs=0.01) and fit > 0.99


def test_statistics_of_many_traces_repeat(draw):
    flat, probe = random_flat(draw, 60_000, M_MIN, M_MAX, CODEBOOK), healthy_probe(draw)
    first = collapse.statistics(*flat, CODEBOOK, M_MAX, probe, seed=1)
    assert first == collapse.statistics(*flat, CODEBOOK, M_MAX, probe, seed=1)
