"""Trace sets: resumable, refused where they do not fit."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from abscot.common import files
from abscot.common.errors import MissingInput, UserError
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_records import TRACES
from abscot.generation.trace_set import TraceSet, stats_of
from abscot.generation.trace_sources import RandomTraces
from abscot.pipeline.stages import maker_of
from abscot.recipe.load import ROOT, dump
from kit.tiny_run import KeyedEngine, make_model, tiny_tokenizer, training_of
from kit.trace_runs import ROWS, with_traces


def test_partition_gives_each_phase_its_own_rows(tiny):
    recipe, run, _ = tiny
    recipe = dataclasses.replace(recipe, staging="partition")
    job = open_job(training_of(recipe, run, 1, "A"))
    generate(job)
    loaded = TraceSet.load(job.final, job.store)
    assert len(loaded) == len(job.rows) == ROWS // 4  # two rounds of two phases
    other = next(row for row in range(ROWS) if row not in set(job.rows))
    assert loaded.lengths()[other] == 0 and (loaded.lengths()[job.rows] > 0).all()
    with pytest.raises(KeyError):
        loaded.trace(other)


def in_process(job, shard, of) -> int:
    """Process id of a fork that makes one shard."""
    if pid := os.fork():
        return pid
    draw, stream = RandomTraces.traces, KeyedEngine.stream
    # or it is done before any kill
    RandomTraces.traces = lambda *given: time.sleep(0.05) or draw(*given)
    KeyedEngine.stream = lambda *given: time.sleep(0.05) or stream(*given)
    try:
        generate(job, shard, of, KeyedEngine())
    finally:
        os._exit(0)


@pytest.mark.parametrize("of", [1, 2, 3])
@pytest.mark.parametrize("phase, best_of", [("A", 1), ("B", 1), ("B", 3)])
def test_killed_at_ten_moments_and_started_again_the_traces_are_the_same(tiny, of, phase, best_of):
    """Phase A of round 1 draws random traces; phase B asks an engine, and is killed with requests
    in it too.
    """
    recipe, run, _ = tiny
    recipe = dataclasses.replace(
        with_traces(recipe, best_of=best_of),
        # A chunk of one random trace, of four sampled ones, of two that are the best of three.
        inference=dataclasses.replace(
            recipe.inference, chunk_tokens=1 if phase == "A" else 250 * best_of
        ),
    )
    if phase == "B" and not (export := training_of(recipe, run, 1, "A").export).exists():
        shutil.copytree(run.base, export)
    job = open_job(training_of(recipe, run, 1, phase))
    generate(job, engine=KeyedEngine())
    expected = (job.final / TRACES).read_bytes(), chosen(job)
    shutil.rmtree(run.root / "teacher_traces")

    moments, killed_at_work = random.Random(of), 0
    for _ in range(10):
        shards = [in_process(job, shard, of) for shard in range(of)]
        before = len(list(job.parts.glob("chunk_*.arrow")))
        deadline = time.monotonic() + 20
        while (
            len(list(job.parts.glob("chunk_*.arrow"))) < before + moments.randrange(4)
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)
        for pid in shards:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        killed_at_work += not job.final.exists()
    assert killed_at_work > 5
    for shard in range(of):
        generate(job, shard, of, KeyedEngine())
    if phase == "B":
        shutil.rmtree(training_of(recipe, run, 1, "A").export)
    assert ((job.final / TRACES).read_bytes(), chosen(job)) == expected


def chosen(job) -> tuple:
    """What a set says of its candidates."""
    stats = stats_of(job.final)
    return stats.best_of, stats.first_log_p_mean, stats.best_log_p_mean, stats.best_not_first_share


def test_the_command_publishes_and_then_says_so(tiny):
    recipe, run, _ = tiny
    run.config.write_text(dump(recipe))
    command = [
        sys.executable,
        str(ROOT / "launch" / "traces.py"),
        "--recipe",
        str(run.config),
        "--round",
        "1",
        "--phase",
        "A",
    ]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0 and files.is_done(run.traces("pi1_phaseA")), first.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "already done" in again.stdout
    wrong = subprocess.run([*command, "--shard", "2", "--of", "2"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --shard 2: expected 0 to 1")


def test_parts_of_another_job_are_refused(tiny):
    recipe, run, _ = tiny
    job = open_job(training_of(recipe, run, 1, "A"))
    assert not generate(job, 0, 3)
    with pytest.raises(UserError, match="begun with another m_max"):
        generate(open_job(training_of(with_traces(recipe, m_max=9), run, 1, "A")), 1, 3)


def test_empty_traces_are_refused_unless_the_recipe_allows_them(tiny):
    recipe, run, _ = tiny
    recipe = with_traces(recipe, random="uniform", m_min=0, m_max=3)
    with pytest.raises(UserError, match=r"\d+ of 160 traces are empty; .*traces.allow_empty"):
        generate(open_job(training_of(recipe, run, 1, "A")))
    shutil.rmtree(run.root / "teacher_traces")
    job = open_job(training_of(with_traces(recipe, allow_empty=True), run, 1, "A"))
    generate(job)
    loaded = TraceSet.load(job.final, job.store)
    assert stats_of(job.final).empty_traces == (loaded.lengths() == 0).sum() > 0


def test_a_collapse_stops_the_round_where_the_recipe_says_so(tiny, capsys):
    recipe, run, _ = tiny
    recipe = with_traces(recipe, random="steps", m_min=11, m_max=12, on_collapse="stop")
    job = open_job(training_of(dataclasses.replace(recipe, codebook_size=3), run, 1, "A"))
    with pytest.raises(UserError, match="traces.on_collapse is `stop`, and few tokens"):
        generate(job)
    assert not job.final.exists() and "WARNING" in capsys.readouterr().out


def test_random_traces_of_one_length_stop_no_round(tiny):
    """The CoT is long: the paper's rule makes each trace m_max tokens long."""
    recipe, run, _ = tiny
    recipe = with_traces(recipe, random="steps", m_min=1, m_max=2, on_collapse="stop")
    job = open_job(training_of(recipe, run, 1, "A"))
    assert generate(job)
    stats = stats_of(job.final)
    assert stats.most_common_length_share > 0.9 and stats.warnings == []


def test_a_missing_model_is_named_with_the_command_that_makes_it(tiny):
    recipe, run, _ = tiny
    shutil.rmtree(training_of(recipe, run, 1, "A").export, ignore_errors=True)
    for round_, phase, missing in ((1, "B", "checkpoints/pi1_phaseA/export"), (2, "A", "round1")):
        with pytest.raises(MissingInput, match=f"{missing}: missing or unfinished") as refused:
            open_job(training_of(recipe, run, round_, phase))
        assert f"launch/round.py --recipe {run.config} --round 1" == maker_of(
            recipe, refused.value.path
        ).removeprefix("python ")
    asked = [sys.executable, ROOT / "launch" / "traces.py", "--recipe", run.config]
    done = subprocess.run([*asked, "--round=2", "--phase=A"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    mend = f"make it with: python launch/round.py --recipe {run.config} --round 1"
    assert done.stderr.strip().endswith(f"round1: missing or unfinished; {mend}")


def test_the_fingerprint_follows_the_model(tiny):
    recipe, run, _ = tiny
    export = training_of(recipe, run, 1, "A").export
    seen = set()
    for seed in (1, 2):
        shutil.rmtree(export, ignore_errors=True)
        make_model(export, tiny_tokenizer(), seed)
        seen.add(open_job(training_of(recipe, run, 1, "B")).identity().model_fingerprint)
    shutil.rmtree(export)
    assert len(seen) == 2
