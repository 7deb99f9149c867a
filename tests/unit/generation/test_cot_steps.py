"""Which tokens of a CoT are read, and how many codes a step has."""

import numpy as np
import pytest

from abscot.data.chat import ChatTokenizer
from abscot.data.rows import Row
from abscot.generation.cot_steps import Words, read_steps
from abscot.recipe.schema import GroundingConfig, TraceConfig
from kit.tiny_run import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # a token a byte
CHAT, WORDS = ChatTokenizer(TOKENIZER), Words.of(TOKENIZER)
X = np.arange(5, dtype=np.int32)


def row_of(cot: str) -> Row:
    tokens, steps = CHAT.cots([cot])[0]
    return Row("r", X, tokens, steps, X, "test")


def read(cot: str, m_min=1, m_max=12, **grounding):
    traces = TraceConfig(m_min=m_min, m_max=m_max)
    return read_steps(
        row_of(cot), WORDS, traces, GroundingConfig(**{"position": "end", **grounding})
    )


def read_before(cot: str, **more) -> list[str]:
    """What of the CoT stands before each state, its own token included."""
    return [cot[: p + 1] for p in read(cot, **more).positions]


def test_the_end_of_a_step_is_its_last_token():
    first, second = "1+1=2\n", "2+3=5\n\n"
    assert read_before(first + second + "so 5") == [first, first + second, first + second + "so 5"]


@pytest.mark.parametrize(
    ("step", "before"),
    [
        ("7+8=15", "7+8="),
        ("it is under C.", "it is under "),
        ("under C .\n", "under "),
        ("done", ""),
        ("so \\boxed{15}", "so \\boxed{"),
        ("x = é", "x = "),
    ],
)
def test_before_result_is_the_token_before_the_last_word(step, before):
    assert read_before(step, position="before_result") == [before]


def test_a_token_that_spells_a_space_and_a_letter_begins_a_word():
    """` C` is one token of a trained tokenizer: the state is read at the token before."""
    ids = {text: i for i, text in enumerate([" under", " C", "1", "5", ".", "\n"])}
    words = Words(
        np.array([True, True, True, True, False, False]),
        np.array([False, False, True, True, False, False]),
        np.array([True, True, True, True, False, False]),
    )
    cot = np.array([ids[t] for t in (" under", " C", ".", "\n", " under", "1", "5", "\n")])
    row = Row("r", X, cot, np.array([4, 4]), X, "test")
    found = read_steps(row, words, TraceConfig(m_min=1), GroundingConfig(position="before_result"))
    # ` under15` is one word, at the beginning of its step: the state is that of the newline before.
    assert found.positions.tolist() == [0, 3]


def test_the_state_before_the_first_token_of_a_cot_is_that_of_the_prompts_last():
    assert read("C", position="before_result").positions.tolist() == [-1]


def test_lines_without_a_word_belong_to_the_step_before_them():
    found = read("---\na=1\n***\nb=2")
    assert (found.steps, found.blank_steps) == (2, 2)
    assert read_before("---\na=1\n***\nb=2") == ["---\na=1\n***\n", "---\na=1\n***\nb=2"]
    assert read_before("a=1\n***\nb=2", position="before_result") == ["a=", "a=1\n***\nb="]


@pytest.mark.parametrize("cot", ["", "...", "...\n---"])
@pytest.mark.parametrize("position", ["end", "before_result"])
def test_a_cot_without_steps_is_read_at_its_end(cot, position):
    found = read(cot, m_min=3, position=position)
    assert found.positions.tolist() == [len(cot) - 1]
    assert (found.steps, found.codes_per_state, found.cut) == (0, 3, False)


def test_more_steps_than_m_max_are_cut_into_even_runs():
    cot = "\n".join("abcdefghij")
    found = read(cot, m_max=4)
    ends = [cot[: p + 1].replace("\n", "")[-1] for p in found.positions]
    assert found.cut and ends == ["b", "e", "g", "j"]
    assert not read(cot, m_max=10).cut


@pytest.mark.parametrize(
    ("steps", "m_min", "m_max", "asked", "states", "codes"),
    [
        (1, 4, 10, 1, 1, 4),  # a CoT of one step: four codes
        (3, 4, 10, 1, 3, 2),  # as many for each
        (6, 4, 10, 2, 5, 2),  # runs: 5 times 2
        (6, 4, 10, 1, 6, 1),
        (9, 5, 5, 2, 3, 2),  # 2 times 2 are too few: the last code is cut
        (9, 1, 3, 7, 1, 3),
    ],
)
def test_a_trace_has_m_min_to_m_max_codes(steps, m_min, m_max, asked, states, codes):
    found = read("\n".join("a" * steps), m_min, m_max, tokens_per_step=asked)
    assert (len(found.positions), found.codes_per_state) == (states, codes)
    assert m_min <= min(states * codes, m_max) <= m_max


def test_no_recipe_makes_a_trace_of_another_length():
    draw = np.random.default_rng(0)
    for _ in range(300):
        m_max = int(draw.integers(1, 12))
        m_min, steps, asked = draw.integers(0, m_max + 1), draw.integers(1, 30), draw.integers(1, 5)
        found = read("\n".join("a" * steps), int(m_min), m_max, tokens_per_step=int(asked))
        assert max(m_min, 1) <= min(len(found.positions) * found.codes_per_state, m_max)
        assert (np.diff(found.positions) > 0).all()
