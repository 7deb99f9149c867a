import json

import pytest

from abscot.common.errors import UserError
from abscot.evaluation import benchmarks
from abscot.evaluation.scoring import SCORERS
from abscot.recipe.load import ROOT
from abscot.recipe.run import Run
from kit.tiny_run import tiny_recipe

EVAL = ROOT.parent / "shared" / "data" / "eval"


@pytest.fixture
def recipe(tmp_path):
    return tiny_recipe(tmp_path)


def put(recipe, tmp_path, name, rows, suffix=".jsonl"):
    path = tmp_path / f"{name}{suffix}"
    path.write_text(
        json.dumps(rows) if suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows)
    )
    recipe.eval.files[name] = str(path)
    return benchmarks.load(name, recipe, Run.of(recipe))


def test_every_benchmark_has_a_scorer_and_a_place_to_come_from():
    for name, benchmark in benchmarks.BENCHMARKS.items():
        assert benchmark.scorer in {*SCORERS, "judge"}
        assert benchmark.hub or name == "world"


def test_the_world_is_read_from_the_run(recipe):
    recipe.eval.files.clear()
    run = Run.of(recipe)
    run.world.mkdir(parents=True)
    (run.world / "heldout.jsonl").write_text('{"id": "w/3", "problem": "1+1", "answer": "2"}\n')
    assert benchmarks.load("world", recipe, run) == [benchmarks.Problem("world/w/3", "1+1", "2")]


def test_gsm8k_gold_is_behind_the_hashes(recipe, tmp_path):
    (problem,) = put(
        recipe, tmp_path, "gsm8k", [{"question": "q", "answer": "a <<1+1=2>>\n#### 1,200"}]
    )
    assert (problem.id, problem.gold) == ("gsm8k/0", "1200")


def test_gpqa_choices_are_shuffled_by_the_question_and_the_gold_letter_follows(recipe, tmp_path):
    rows = [
        {
            "Question": f"q{i}",
            "Correct Answer": "right",
            **{f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)},
        }
        for i in range(20)
    ]
    problems = put(recipe, tmp_path, "gpqa_diamond", rows)
    assert all(f"{p.gold}) right" in p.problem for p in problems)
    assert len({p.gold for p in problems}) == 4
    assert put(recipe, tmp_path, "gpqa_diamond", rows) == problems


def test_hotpotqa_is_a_fixed_subset_and_the_limit_takes_the_first(recipe, tmp_path):
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(700)]
    all_of_them = put(recipe, tmp_path, "hotpotqa", rows, ".json")
    assert len(all_of_them) == 500 and all_of_them == put(
        recipe, tmp_path, "hotpotqa", rows, ".json"
    )
    recipe.eval.limit = 7
    assert put(recipe, tmp_path, "hotpotqa", rows, ".json") == all_of_them[:7]


def test_user_mistakes_name_the_file_and_the_line(recipe, tmp_path):
    run = Run.of(recipe)
    with pytest.raises(UserError, match="no benchmark math; known: world, math500"):
        benchmarks.load("math", recipe, run)
    recipe.eval.files["math500"] = str(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"eval.files.math500: .*absent.jsonl: no such file"):
        benchmarks.load("math500", recipe, run)
    with pytest.raises(UserError, match=r"math500.jsonl:2: no field answer"):
        put(
            recipe,
            tmp_path,
            "math500",
            [{"problem": "p", "answer": "a", "unique_id": "u"}, {"problem": "p"}],
        )
    (tmp_path / "math500.jsonl").write_text(
        '{"problem": "p", "answer": "a", "unique_id": "u"}\n{"broken\n'
    )
    with pytest.raises(UserError, match=r"math500.jsonl:2: not JSON"):
        benchmarks.load("math500", recipe, run)


@pytest.mark.skipif(not EVAL.is_dir(), reason=f"no benchmark files in {EVAL}")
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("math500", "math500.jsonl", 500),
        ("gsm8k", "gsm8k_test.jsonl", 1319),
        ("aime24", "aime24.jsonl", 30),
        ("aime25", "aime25.jsonl", 30),
        ("hotpotqa", "hotpot_dev_v1_simplified.json", 500),
    ],
)
def test_the_published_files_load(recipe, name, file, count):
    recipe.eval.files[name] = str(EVAL / file)
    problems = benchmarks.load(name, recipe, Run.of(recipe))
    assert len({p.id for p in problems}) == count and all(p.gold and p.problem for p in problems)
