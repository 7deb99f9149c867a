"""The modes: which template, how long, how decoded; what of it a result must agree on."""

import dataclasses
from types import SimpleNamespace

import pytest

from abscot.common.errors import UserError
from abscot.evaluation.benchmarks import Problem
from abscot.evaluation.jobs import jobs_of
from abscot.evaluation.modes import MODES, Asker, questions_of
from abscot.generation.requests import Completion
from abscot.recipe.load import load_recipe
from abscot.recipe.run import claim

WINDOW = 300


@pytest.fixture
def asked(tiny_run):
    """(keys of eval) -> mode -> (its request, how its answers are told)."""
    recipe, run, _ = tiny_run
    engine = SimpleNamespace(window_tokens=WINDOW)

    def ask(**keys):
        config = dataclasses.replace(recipe, eval=dataclasses.replace(recipe.eval, **keys))
        modes = [name for name, mode in MODES.items() if not mode.cot]
        asker = Asker(run.base, config, modes, engine)
        problems = [Problem("p", "1+1=?", "2"), Problem("q", "2+2=?", "4")]
        question = {mode: questions_of(problems, mode, [0], (0, "b"))[0] for mode in modes}
        return {mode: (asker.request(question[mode]), asker, question[mode]) for mode in modes}

    return ask


def answer_of(asked, tokens: list[int]):
    request, asker, question = asked
    return asker.answer(question, [Completion(tokens, "stop", len(request.prompt), 0)])


def test_verbal_and_no_cot_turn_thinking_off_and_thinking_turns_it_on(asked):
    asked = asked()
    verbal, thinking, no_cot = (asked[m][0] for m in ("verbal", "thinking", "no_cot"))
    suffix = asked["verbal"][1].chat.no_think_suffix.tolist()
    assert verbal.prompt == no_cot.prompt == thinking.prompt + suffix
    assert (verbal.sampling.max_tokens, thinking.sampling.max_tokens) == (8, 16 + 8)


def test_all_of_a_verbal_answer_is_response_and_a_thought_is_reasoning(asked):
    asked = asked()
    think, end = asked["verbal"][1].tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    verbal = answer_of(asked["verbal"], [5, 6, 7, 8])
    assert (verbal.n_reasoning_tokens, verbal.n_response_tokens) == (0, 4)
    thought = answer_of(asked["thinking"], [think, 5, 6, end, 7, 8])
    assert (thought.n_reasoning_tokens, thought.n_response_tokens) == (4, 2)


def test_limits_are_per_mode(asked):
    asked = asked(mode_answer_tokens={"no_cot": 3, "abstract": 5}, max_answer_tokens=40)
    most = {mode: request.sampling.max_tokens for mode, (request, *_) in asked.items()}
    assert (most["verbal"], most["no_cot"], most["thinking"]) == (40, 3, 56)
    request, asker, question = asked["abstract"]
    trace = [asker.vocab.codebook_ids[0]] * 4
    assert request.next_stage(Completion(trace, "length", 0, 0)).sampling.max_tokens == 5
    assert asker.room("no_cot") == WINDOW - 3
    assert asker.room("abstract") == WINDOW - 5 - (12 + 2) - len(asker.newline)


def test_evaluation_samples_by_its_own_rules_and_training_keeps_its_own(asked):
    published = {"trace_temperature": 0.7, "trace_top_p": 0.9, "m_min": 6, "m_max": 9}
    asked = asked(**published, answer_temperature=0.3, answer_top_p=0.8)
    for mode in ("abstract", "abstract_permuted", "abstract_truncated_32"):
        request, asker, question = asked[mode]
        rules = request.sampling
        assert (rules.temperature, rules.top_p) == (0.7, 0.9)
        assert (rules.m_min, rules.m_max, rules.max_tokens) == (6, 9, 9)
        trace = [asker.vocab.codebook_ids[0]] * 6
        answer = request.next_stage(Completion(trace, "length", 0, 0)).sampling
        assert (answer.temperature, answer.top_p) == (0.3, 0.8)
    assert asked["abstract"][0].answer is None  # one decode has one top_p
    request, asker, question = asked["pause"]
    assert len(asker.trace(question, [])) == 9
    assert asker.room("pause") == WINDOW - 8 - (9 + 2) - len(asker.newline)
    assert asked["verbal"][0].sampling.temperature == 0.3
    channel = dataclasses.replace(
        question, problem=Problem("p", "1?", "1", cot="c"), mode="channel"
    )
    rules, traces = asker.request(channel).sampling, asker.recipe.traces
    assert (rules.temperature, rules.m_min) == (traces.temperature, traces.m_min)


def test_what_is_not_edited_is_one_request(asked):
    mixed = asked(answer_temperature=0.3)["abstract"][0]  # the trace is greedy
    assert mixed.answer is None and mixed.then is not None
    asked = asked(answer_temperature=0.3, trace_temperature=0.7)
    request, asker, question = asked["abstract"]
    assert request.then is None and request.answer.opening[1:] == tuple(asker.newline)
    assert (request.answer.temperature, request.answer.max_tokens) == (0.3, 8)
    for mode in ("abstract_permuted", "abstract_swapped", "abstract_truncated_32"):
        assert asked[mode][0].answer is None and asked[mode][0].then is not None


def test_a_window_too_small_names_the_keys_of_the_mode(tiny_run):
    recipe, run, _ = tiny_run
    engine = SimpleNamespace(window_tokens=8)
    limits = dataclasses.replace(recipe.eval, mode_answer_tokens={"no_cot": 8})
    recipe = dataclasses.replace(recipe, eval=limits)
    with pytest.raises(UserError, match="eval.modes: no_cot .* eval.mode_answer_tokens.no_cot$"):
        Asker(run.base, recipe, ["no_cot"], engine)
    with pytest.raises(UserError, match="lower eval.max_reasoning_tokens or eval.max_answer_tok"):
        Asker(run.base, recipe, ["thinking"], engine)


def test_a_result_agrees_on_all_that_shapes_it_and_on_nothing_else(tiny_run):
    recipe, run, _ = tiny_run

    def identity(mode, **keys):
        keys = {"answer_temperature": 0.3, **keys}  # greedy samples would all be the same
        config = dataclasses.replace(recipe, eval=dataclasses.replace(recipe.eval, **keys))
        (job,) = jobs_of(config, run, "base", [mode], ["world"])
        return job.identity()

    changes = [
        {"trace_temperature": 0.7},
        {"trace_top_p": 0.9},
        {"m_min": 3},
        {"m_max": 9},
        {"answer_temperature": 0.5},
        {"answer_top_p": 0.9},
        {"max_answer_tokens": 9},
        {"mode_answer_tokens": {"abstract": 7, "verbal": 7}},
        {"limit": 3},
        {"samples": 2, "answer_temperature": 0.1},
        {"max_reasoning_tokens": 17},
    ]

    def matters(mode):
        plain = identity(mode)
        return [identity(mode, **change) != plain for change in changes]

    assert matters("abstract") == [True] * 10 + [False]
    assert matters("verbal") == [False] * 4 + [True] * 6 + [False]
    assert matters("thinking") == [False] * 4 + [True] * 3 + [False] + [True] * 3
    assert matters("pause") == [False] * 3 + [True] * 4 + [False] + [True] * 2 + [False]


def test_the_protocol_of_evaluation_shapes_no_run(tmp_path):
    keys = [f"run_root={tmp_path}", "name=one"]
    claim(load_recipe(None, keys))
    published = ["eval.trace_temperature=0.7", "eval.m_min=5", "eval.m_max=9"]
    claim(load_recipe(None, [*keys, *published, "eval.mode_answer_tokens={verbal: 9}"]))


def test_swapped_traces_go_round_all_problems_and_none_keeps_its_own():
    problems = [Problem(f"b/{i}", f"{i}?", str(i)) for i in range(40)]

    def others(asked, *key, samples=(0,)):
        questions = questions_of(asked, "abstract_swapped", samples, key)
        return {(q.problem.id, q.sample): q.other.id for q in questions}

    found = others(problems, 0, "b")
    at, ring = "b/0", set()
    while at not in ring:
        ring.add(at)
        at = found[at, 0]
    assert len(ring) == 40
    assert found == others(problems, 0, "b") and found != others(problems, 1, "b")
    assert found != others(problems, 0, "c")
    more = others(problems, 0, "b", samples=(0, 1))
    assert more == {(i, s): found[i, 0] for i, _ in found for s in (0, 1)}
    few = others(problems[:5], 0, "b")
    assert set(few.values()) == {f"b/{i}" for i in range(5)}


def test_a_benchmark_of_one_problem_has_no_trace_to_swap():
    with pytest.raises(UserError, match="abstract_swapped .* gsm8k has 1 problem: expected 2"):
        questions_of([Problem("p", "1?", "1")], "abstract_swapped", [0], (0, "gsm8k"))


def test_the_swapped_trace_is_the_one_that_its_own_problem_gets(asked):
    """The first stage is that of the other problem in mode abstract, sample for sample; the answer
    stage is this problem's.
    """
    request, asker, question = asked(answer_temperature=0.5, trace_temperature=0.5)[
        "abstract_swapped"
    ]
    assert question.other.id == "q"
    (of_other,) = questions_of([question.other], "abstract", [0], (0, "b"))
    theirs = asker.request(of_other)
    assert (request.prompt, request.sampling) == (theirs.prompt, theirs.sampling)
    trace = Completion(list(asker.vocab.codebook_ids[:4]), "length", 0, 0)
    own = asker.request(dataclasses.replace(question, mode="abstract", other=None))
    assert own.prompt != request.prompt
    ours, expected = request.next_stage(trace), own.next_stage(trace)
    assert (ours.prompt, ours.sampling) == (expected.prompt, expected.sampling)
    told = asker.answer(question, [trace, Completion([5, 6], "stop", 0, 0)])
    assert told.trace_ids == trace.tokens and told.n_reasoning_tokens == 4 + 2
    assert told.n_response_tokens == 2 + len(asker.newline)
