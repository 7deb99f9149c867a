"""The ladder: its plan, what is equal between its rows, its tables; the channel against the one
masked pass.
"""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from synthetic_run import add_phase, add_results, make_run
from test_config import RECIPES
from tiny_run import make_tiny_run, tiny_tokenizer, training_of

from abscot.common.errors import UserError
from abscot.evaluation import benchmarks
from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.generation.requests import HiddenSpan, Request, Sampling
from abscot.generation.transformers_engine import TransformersEngine
from abscot.method import masks
from abscot.method.lineage import epochs_of
from abscot.method.phases import BOTTLENECK, PHASES, baselines
from abscot.method.vocab import AbstractVocab
from abscot.pipeline.ladder import ladder_recipe, ladder_stages
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run
from abscot.reporting import report, run_data
from abscot.reporting.blocks import to_markdown
from abscot.reporting.ladder import channel_table, equalised, ladder_rows, ladder_table


def recipe_with(*overrides):
    return load_recipe("tiny-cpu", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "asked", "given"),
    [
        ([], 6, 6),  # 3 rounds x (A + B)
        (["rounds=2", "train.epochs=3"], 12, 12),
        (["train.phase_epochs={A: 3, B: 2}"], 15, 15),
        (["staging=partition", "train.epochs=3"], 3, 3),  # the phases share the rows out
        (
            ["staging=partition", "train.phase_epochs={A: 2, B: 3}"],
            2.5,
            2,
        ),  # half an epoch is not to be had
        (["train.phase_epochs={sft_no_cot: 9}"], 6, 9),
    ],
)
def test_a_baseline_reads_each_answer_as_often_as_all_rounds_together(overrides, asked, given):
    recipe = recipe_with(*overrides)
    assert epochs_of(recipe, PHASES["sft_no_cot"]) == given
    assert f"{asked} times" in equalised(recipe) and f"sft_no_cot {given}" in equalised(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_stage_reads_what_a_stage_before_it_makes(path, tmp_path):
    recipe = ladder_recipe(load_recipe(path, [f"run_root={tmp_path}"]))
    plan, made = ladder_stages(recipe), set()
    assert len({stage.name for stage in plan}) == len(plan)
    for stage in plan:
        assert set(stage.inputs) <= made
        made |= set(stage.outputs)
    results = {path.name for path in made if path.suffix}
    for row in ladder_rows(recipe, Run.of(recipe)):
        for benchmark in recipe.eval.benchmarks:
            assert f"{row.mode}_{row.model}_{benchmark}.meta.json" in results


def test_a_bare_name_is_a_shipped_recipe_and_a_dry_run_writes_nothing(tmp_path):
    arguments = ["--recipe", "tiny-cpu", "--dry-run", "--set", f"run_root={tmp_path / 'r'}"]
    command = [sys.executable, str(ROOT / "launch" / "ladder.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 0
        and "epochs of sft_no_cot 6" in done.stdout
        and "--model pi3_phaseA" in done.stdout
    )
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A finished ladder's files: SFT (no CoT) 22% right, as its synthetic mode is."""
    keys = {"eval.benchmarks": "[world]", "eval.base_modes": "[verbal, no_cot]"}
    run = make_run(tmp_path_factory.mktemp("ladder"), rounds=2, **keys)
    recipe = load_recipe(run.config)
    for phase in baselines():
        add_results(run, phase.asked_in, phase.name, "world", 0)
        add_phase(run, phase.name, recipe, steps=480)
    for round_ in (1, 2):
        add_results(
            run, "channel", f"pi{round_}_phaseA", "world", round_, problems=50, correct=True
        )
    return run


def test_the_table_has_the_papers_rows_beside_the_papers_numbers(climbed):
    table = ladder_table(run_data.read(climbed))
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(cells)[-1] == "Abstract-CoT, round 2" and len(cells) == 7
    assert (
        cells["verbal CoT, base"]["paper %"],
        cells["Abstract-CoT, round 2"]["paper tokens"],
    ) == ("83.2", "168")
    assert {cells[label]["paper %"] for label in list(cells)[1:-1]} == {"–"}
    assert (
        cells["SFT (no CoT)"]["answers"]
        == cells["Abstract-CoT, round 2"]["answers"]
        == f"{480 * 16:,}"
    )
    assert cells["no CoT, base"]["supervised"] == "–"
    assert (
        cells["SFT (no CoT)"]["against SFT (no CoT)"] == "–"
        and "[+" in cells["verbal CoT, base"]["against SFT (no CoT)"]
    )


def test_the_gap_is_paired_over_the_problems_that_both_were_asked(climbed):
    data = run_data.read(climbed)
    (first, second) = channel_table(data).rows
    assert first[:4] == ("1", "world", "50", "100.0") and second[0] == "2"
    scores = data.of("abstract", "final", "world").scores
    asked = [scores[i] for i in sorted(scores)[:50]]
    assert (
        second[5] == f"{100 * sum(asked) / 50:.1f}"
        and second[6] == f"{100 - 100 * sum(asked) / 50:+.1f}"
    )


def test_the_report_shows_ladder_and_channel_and_a_plain_run_neither(climbed, tmp_path):
    text = to_markdown(report.blocks(run_data.read(climbed), {}))
    assert (
        "### The ladder" in text
        and "### The channel" in text
        and "| SFT (no CoT) | world |" in text
    )
    plain = to_markdown(report.blocks(run_data.read(make_run(tmp_path, rounds=1)), {}))
    assert "The ladder" not in plain and "The channel" not in plain


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_run(tmp_path_factory.mktemp("channel"))


def test_a_hidden_cot_is_hidden_as_in_the_one_pass_of_training(tiny):
    """Greedy decoding in the KV cache, rows of unequal length in one batch, against whole passes
    with the dense mask.
    """
    recipe, run, _ = tiny
    engine = TransformersEngine(run.base, dataclasses.replace(recipe.inference, max_num_seqs=4))
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 9, 4), (7, 2, 6), (3, 12, 3), (6, 0, 5)]  # X, C, Z
    requests, prompts = [], []
    for x, c, z in lengths:
        prompt = torch.randint(
            10, 250, (x + c + z + 1,), generator=generator
        ).tolist()  # and a newline
        prompts.append(prompt)
        requests.append(
            Request(prompt, Sampling(max_tokens=5), hidden=HiddenSpan(x, x + c, x + c + z))
        )
    found = dict(engine.stream(requests))
    for index, ((x, c, z), prompt) in enumerate(zip(lengths, prompts, strict=True)):
        tokens = list(prompt)
        for _ in range(5):
            segment = torch.tensor(
                [[1] * x + [2] * c + [3] * z + [4] * (len(tokens) - x - c - z)], dtype=torch.int8
            )
            mask = masks.dense_mask(
                torch.zeros_like(segment, dtype=torch.int32), segment, BOTTLENECK
            )[None, None]
            with torch.no_grad():
                logits = engine.lm(
                    torch.tensor([tokens]), attention_mask=mask, use_cache=False
                ).logits
            tokens.append(int(logits[0, -1].argmax()))
        assert found[index][0].tokens == tokens[len(prompt) :]


def test_the_channel_is_a_result_file_of_phase_a_models(tiny):
    recipe, run, vocab = tiny
    problems = run.root.parent / "cots.jsonl"
    lines = [
        {"id": i, "problem": f"{i}+1=?", "answer": i + 1, "cot": f"{i} and 1 make {i + 1}."}
        for i in range(5)
    ]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = dataclasses.replace(recipe.eval, files={"world": str(problems)}, channel_problems=3)
    recipe = dataclasses.replace(recipe, eval=asked)
    if not (export := training_of(recipe, run, 1, "A").export).exists():
        from tiny_run import make_model

        make_model(export, tiny_tokenizer(), seed=1)
    (job,) = jobs = jobs_of(recipe, run, "pi1_phaseA", None, None)
    assert job.name == "channel_pi1_phaseA_world"
    evaluate(jobs)
    rows = [json.loads(line) for line in job.result.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["world/0", "world/1", "world/2"]
    for row in rows:
        assert (
            set(row["trace_ids"]) <= set(vocab.codebook_ids)
            and row["n_reasoning_tokens"] == len(row["trace_ids"]) + 2
        )
    assert json.loads(job.meta.read_text())["round"] == 1 and job.done()


def test_a_benchmark_without_cots_has_no_channel(tiny):
    recipe, run, vocab = tiny
    assert (
        not benchmarks.has_cots("aime24")
        and benchmarks.has_cots("world")
        and benchmarks.has_cots("math500")
    )
    assert AbstractVocab.of(tiny_tokenizer()) == vocab
    (job,) = jobs = jobs_of(recipe, run, "base", ["channel"], None)
    with pytest.raises(UserError, match="world/0: no gold CoT"):
        evaluate(jobs)
