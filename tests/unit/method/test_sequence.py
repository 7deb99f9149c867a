"""The sequence stands once: tokens, lengths and generation prompts agree for every phase."""

import numpy as np
import pytest

from abscot.method.phases import PHASES, SEGMENT_OF
from abscot.method.sequence import (
    Marks,
    answer_prompt,
    cut_middle,
    document,
    document_lengths,
    fit_prompt,
    trace_prompt,
    z_tokens,
)
from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TrainConfig

VOCAB = AbstractVocab(codebook_ids=(50, 51, 52, 53), begin_id=60, end_id=61)
MARKS = Marks.of(VOCAB, no_think_suffix=[7, 8], think_open=[7], think_close=[8, 9])
NEWLINE = [9]
TEXTS = {
    name: np.array(tokens, np.int32)
    for name, tokens in {
        "prompt": [1, 2, 3, 7, 8],
        "cot": [20, 21, 22],
        "trace": [50, 53],
        "answer": [*NEWLINE, 30, 31],
    }.items()
}


def flat(pieces) -> list[int]:
    return [int(token) for tokens, *_ in pieces for token in tokens]


def test_generation_starts_from_beginnings_of_the_training_sequence():
    texts = {name: tokens.tolist() for name, tokens in TEXTS.items()}
    for phase, c in (("A", texts["cot"]), ("B", [])):
        whole = flat(document(PHASES[phase], TrainConfig(), MARKS, TEXTS))
        for prompt in (
            trace_prompt(VOCAB, texts["prompt"], c),
            answer_prompt(VOCAB, NEWLINE, texts["prompt"], texts["trace"], c),
        ):
            assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) :] == [30, 31]


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("end", [False, True])
def test_lengths_foretell_the_tokens(phase, begin, end):
    train = TrainConfig(supervise_begin=begin, supervise_end=end)
    pieces = document(phase, train, MARKS, TEXTS)
    sizes = {name: np.array([len(tokens)]) for name, tokens in TEXTS.items()}
    lengths = document_lengths(phase, train, MARKS, sizes)
    for name, segment in SEGMENT_OF.items():
        assert lengths[name] == sum(len(tokens) for tokens, of, _ in pieces if of == segment)
    assert lengths["total"] == len(flat(pieces))
    assert lengths["supervised"] == sum(len(tokens) for tokens, _, paid in pieces if paid)


def test_a_supervised_cot_is_written_in_the_thinking_template():
    assert flat(document(PHASES["sft_cot"], TrainConfig(), MARKS, TEXTS)) == [
        *[1, 2, 3],
        *[7, 20, 21, 22, 8, 9],
        *[9, 30, 31],
    ]


def test_the_base_writes_a_cot_behind_its_thinking_prompt():
    assert MARKS.cot_prompt(TEXTS["prompt"]).tolist() == [1, 2, 3, 7]
    never = Marks.of(VOCAB, no_think_suffix=[], think_open=[7], think_close=[8, 9])
    assert never.cot_prompt(TEXTS["prompt"]).tolist() == TEXTS["prompt"].tolist()


def test_before_the_marks_are_known_the_delimiters_count_and_nothing_else():
    sizes = {name: np.array([len(tokens)]) for name, tokens in TEXTS.items()}
    lengths = document_lengths(PHASES["A"], TrainConfig(), None, sizes)
    assert lengths["Z"] == z_tokens(2) == 4 and lengths["total"] == 5 + 3 + 4 + 3


def test_a_long_cot_loses_its_middle_before_the_prompt_does():
    assert fit_prompt(range(4), range(10, 20), 8) == ([0, 1, 2, 3], [10, 11, 18, 19])
    assert fit_prompt(range(4), range(10, 20), 2) == ([0, 3], [])


def test_the_middle_of_a_long_cot_is_cut():
    assert cut_middle(range(10), 10) == list(range(10))
    assert cut_middle(range(10), 4) == [0, 1, 8, 9]
    assert cut_middle(range(10), 3) == [0, 8, 9]
    assert cut_middle(range(10), 0) == []
