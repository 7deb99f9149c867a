"""By which recipe a model is asked; that its answer is evaluation's; what it refuses."""

import dataclasses
import json
import shutil

import pytest

from abscot.evaluation.ask_model import STOPPED, Asked, AskedModel, Rules, Told, fitted
from abscot.evaluation.ask_text import ANSWER, TRACE
from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.evaluation.results import read_result
from abscot.model.chat_model import DecodingRules
from abscot.recipe.load import dump, load_recipe
from abscot.recipe.schema import Recipe, TraceConfig, WorldConfig
from kit.asked import TokenByToken
from kit.corpus import refused
from kit.published import make_published
from kit.tiny_run import tiny_tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    make_published(root)
    return root


def asked(tmp_path, model, mode="abstract", recipe=None, overrides=(), option="--model") -> Asked:
    rules = Rules.of(str(model), recipe, overrides)
    return Asked(option, str(model), mode, rules, tmp_path / "scratch")


def opened(*arguments, **options) -> AskedModel:
    model = AskedModel(asked(*arguments, **options))
    model.start(TokenByToken)
    return model


def answered(model, question, number=0, stopped=lambda: False):
    *pieces, told = model.answer(question, number, stopped)
    return pieces, told


def test_a_directory_in_a_run_is_asked_by_its_recipe_and_by_name(tiny_run, tmp_path):
    recipe, run, _ = tiny_run
    rules = Rules.of(str(run.base), None, ["eval.m_max=7"])
    assert (rules.recipe.traces, rules.recipe.eval.m_max) == (recipe.traces, 7)
    assert rules.run.root == run.root.resolve()
    found = AskedModel(asked(tmp_path, run.base)).model
    assert (found.name, found.source) == ("base", None)
    moved = shutil.copytree(run.root, tmp_path / "moved")
    assert AskedModel(asked(tmp_path, moved / "base")).model.directory == moved / "base"
    named = Rules.of("base", str(run.config), [])
    assert named.recipe == load_recipe(run.config) and named.run.root == run.root


def test_a_config_of_something_else_makes_no_run(published, tmp_path):
    copy = shutil.copytree(published / "final", tmp_path / "project" / "model")
    (tmp_path / "project" / "config.yaml").write_text("name: of another tool\n")
    assert Rules.of(str(copy), None, []).run is None


def test_a_model_elsewhere_is_asked_by_what_it_says_itself(published, tmp_path):
    plain = fitted(asked(tmp_path, published / "final"))
    defaults = Recipe(world=WorldConfig())
    assert plain.codebook_size == 64 and plain.traces == defaults.traces
    assert plain.data.system_prompt == defaults.data.system_prompt
    assert (plain.eval.max_answer_tokens, plain.eval.max_reasoning_tokens) == (128, 256)
    assert (plain.inference.dtype, plain.eval.m_max) == ("fp32", None)

    copy = shutil.copytree(published / "final", tmp_path / "copy")
    traces = TraceConfig(m_min=3, m_max=9, temperature=0.7)
    rules = DecodingRules.of_tokenizer(tiny_tokenizer(), 16, traces)
    rules.write(copy / DecodingRules.FILE)
    own = fitted(asked(tmp_path, copy))
    assert (own.codebook_size, own.eval.m_min, own.eval.m_max) == (16, 3, 9)
    assert own.eval.trace_temperature == 0.7
    mine = fitted(asked(tmp_path, copy, overrides=("eval.m_max=5", "codebook_size=8")))
    assert (mine.codebook_size, mine.eval.m_min, mine.eval.m_max) == (8, 3, 5)
    refused(lambda: fitted(asked(tmp_path, copy, overrides=["eval.m_max=2"])), "--set eval.m_max=2")


def test_rules_of_a_model_that_cannot_be_are_refused(published, tmp_path):
    copy = shutil.copytree(published / "final", tmp_path / "copy")
    config = json.loads((copy / DecodingRules.FILE).read_text())
    (copy / DecodingRules.FILE).write_text(json.dumps({**config, "abstract": {"m_min": 1}}))
    refused(lambda: fitted(asked(tmp_path, copy)), "--model", "generation_config.json: abstract")


def test_its_answer_is_that_of_evaluation(tiny_run, tmp_path):
    recipe, run, vocab = tiny_run
    (job,) = jobs_of(recipe, run, "base", ["abstract"], None)
    evaluate([job], TokenByToken(run.base, recipe.inference))
    rows = read_result(run, job.name).rows
    model = opened(tmp_path, run.base)
    for row in rows[:2]:
        pieces, told = answered(model, row.problem)
        assert told.answer.model_dump().items() <= row.model_dump().items()
        assert [p.text for p in pieces if p.kind == TRACE] == row.trace_tokens
        assert "".join(p.text for p in pieces if p.kind == ANSWER) == row.response
        assert (told.tokens, told.finish_reason) == (row.n_total_tokens, row.finish_reason)


@pytest.mark.parametrize("top_p", ["1.0", "0.9"])
def test_one_or_two_decodes_and_a_sample_for_each_question(tiny_run, tmp_path, top_p):
    recipe, run, vocab = tiny_run
    sampled = ["eval.trace_temperature=1.0", "eval.answer_temperature=1.0"]
    keys = [f"eval.trace_top_p={top_p}", *sampled]
    model = opened(tmp_path, run.base, overrides=keys)
    requests = [model.asker.request(q) for q in map(question_of, (0, 0, 1))]
    seeds = [request.sampling.seed for request in requests]
    assert seeds[0] == seeds[1] != seeds[2]
    assert (requests[0].then is None) is (top_p == "1.0")
    _, told = answered(model, "1+1=?")
    assert 2 <= told.answer.n_abstract_tokens <= 12


def question_of(number):
    from abscot.evaluation.benchmarks import Problem
    from abscot.evaluation.modes import Question

    return Question(Problem("ask", "1+1=?", ""), "abstract", number)


def test_an_answer_in_words_beside_it_needs_no_abstract_tokens(published, tmp_path):
    words = opened(tmp_path, published / "base", "thinking", option="--beside")
    pieces, told = answered(words, "1+1=?")
    assert told.answer.n_abstract_tokens == 0 and not any(p.kind == TRACE for p in pieces)
    refused(
        lambda: AskedModel(asked(tmp_path, published / "base")),
        "--model",
        "no <beginabstract>",
        "--beside",
    )


def test_an_adapter_is_merged_outside_of_runs_that_are_not_begun(published, tmp_path):
    model = opened(tmp_path, published / "adapters" / "pi1_phaseA", overrides=["eval.m_max=6"])
    assert model.model.directory.is_relative_to(tmp_path / "scratch")
    plain = opened(tmp_path, published / "final", overrides=["eval.m_max=6"])
    one, other = (answered(m, "1+1=?")[1].answer for m in (model, plain))
    assert one == other


def test_a_stopped_answer_has_its_tokens_only(tiny_run, tmp_path):
    _, run, _ = tiny_run
    asks = iter([False, False, True])
    pieces, told = answered(opened(tmp_path, run.base), "1+1=?", stopped=lambda: next(asks))
    assert len(pieces) == 3
    assert told == Told(STOPPED, 3, told.seconds, None)


def test_a_question_past_the_window_is_refused_and_a_template_without_system_turns_too(
    tiny_run, tmp_path
):
    _, run, _ = tiny_run
    model = opened(tmp_path, run.base)
    refused(lambda: answered(model, "word " * 300), "1,", "window of 256 has room for")
    model.asker.tokenizer.chat_template = "{{ raise_exception('no') if messages[1] is defined }}"
    model.asker.chat._template.cache_clear()
    refused(
        lambda: answered(model, "?"), "refuses the turns system, user", "data.system_prompt=null"
    )


@pytest.mark.parametrize(
    "recipe, name, words",
    [
        ("tiny", "round9", ["one of base, round1, final, pi1_phaseA"]),
        (None, "base", ["expected a directory or hub id; for a model of a run give its --recipe"]),
        ("tiny", "", ["--beside : expected one of base"]),
    ],
)
def test_a_name_that_no_model_has(tiny_run, published, recipe, name, words):
    _, run, _ = tiny_run
    rules = Rules.of(str(published / "final"), recipe and str(run.config), [])
    refused(lambda: rules.check_name("--beside", name), f"--beside {name}", *words)


def test_a_model_that_is_not_made_yet_says_what_makes_it(tiny_run, tmp_path):
    _, run, _ = tiny_run
    config = str(run.config)
    refused(lambda: AskedModel(asked(tmp_path, "final", recipe=config)), "final: missing")


def test_engines_share_a_gpu(tiny_run, tmp_path):
    recipe, run, _ = tiny_run
    configs = []

    def engine(directory, config, codebook_size):
        configs.append(config)
        return TokenByToken(directory, config, codebook_size)

    half = dataclasses.replace(asked(tmp_path, run.base), gpu_share=0.5)
    AskedModel(half).start(engine)
    assert configs[0].gpu_memory_utilization == recipe.inference.gpu_memory_utilization / 2
    assert dump(recipe) == run.config.read_text(), "asking changes no recipe"
