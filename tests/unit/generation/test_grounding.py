"""Grounded traces of a tiny run: the codes of its steps, whatever the shards; bad inputs."""

import dataclasses
import shutil

import numpy as np
import pytest

from abscot.common import files
from abscot.common.errors import MissingInput, UserError
from abscot.data.shards import ShardStore
from abscot.generation.codebook import Codebook
from abscot.generation.codebook_job import Steps, make_codebook, sampled_rows
from abscot.generation.grounding import GroundedTraces
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_records import TRACES, GroundedCounts
from abscot.generation.trace_set import TraceSet, stats_of
from abscot.method.vocab import load_tokenizer
from abscot.pipeline.stages import maker_of, stages_of
from abscot.recipe.load import dump
from kit.tiny_run import make_tiny_run, training_of

ROWS, SIZE = 48, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, run) with base, shards and a codebook."""
    recipe, run, _ = make_tiny_run(tmp_path_factory.mktemp("grounded"), ROWS)
    recipe = dataclasses.replace(recipe, schedule="grounded", codebook_size=SIZE)
    recipe = with_grounding(recipe, layer=0.34, position="end")
    run.config.write_text(dump(recipe))
    make_codebook(recipe, run)
    return recipe, run


@pytest.fixture
def grounded(made):
    recipe, run = made
    shutil.rmtree(run.root / "teacher_traces", ignore_errors=True)
    return recipe, run


def with_grounding(recipe, **changes):
    return dataclasses.replace(recipe, grounding=dataclasses.replace(recipe.grounding, **changes))


def made_traces(recipe, run, of=1) -> bytes:
    job = open_job(training_of(recipe, run, 1, "A"))
    assert [generate(job, shard, of) for shard in range(of)][-1]
    content = (job.final / TRACES).read_bytes()
    shutil.rmtree(run.root / "teacher_traces")
    return content


def test_each_step_has_the_code_of_its_state(grounded):
    recipe, run = grounded
    job = open_job(training_of(recipe, run, 1, "A"))
    assert generate(job) and generate(job) is not False
    traces, steps = TraceSet.load(job.final, job.store), Steps.of(recipe, run, job.store)
    stats = stats_of(job.final)
    assert len(traces) == ROWS and stats.probed_prompts == 0 and stats.warnings == []
    expected = []
    for row in range(ROWS):
        reading = steps.reading(row)
        expected.append(min(len(reading.positions) * reading.codes_per_state, 12))
    assert traces.lengths().tolist() == expected
    told = stats.grounded
    assert told.steps == sum(len(job.store.row(r).cot_steps) for r in range(ROWS))
    assert told.filled_rows == sum(len(job.store.row(r).cot_steps) < 2 for r in range(ROWS)) > 0
    assert told.cut_rows == told.blank_steps == told.rows_without_steps == 0
    assert sum(map(sum, told.code_counts)) == sum(expected)
    # All states were in the sample here, so their codes are those of the fit.
    assert Codebook.of_run(run).meta.levels[0].counts == told.code_counts[0]


def test_a_cot_is_read_where_the_base_writes_it(grounded):
    """In the thinking template, whatever X is trained on."""
    recipe, run = grounded
    store, tokenizer = ShardStore(run.shards), load_tokenizer(run.base)
    steps, row = Steps.of(recipe, run, store), store.row(0)
    reading = steps.reading(0)
    document = steps.document(0, reading)
    text = tokenizer.decode(document.tokens)
    assert text.endswith("<|im_start|>assistant\n<think>\n" + tokenizer.decode(row.cot))
    ends = np.cumsum(row.cot_steps)  # position `end`
    read = document.tokens[document.positions]
    assert read.tolist() == row.cot[ends[-len(read) :] - 1].tolist()


def test_progress_moves_within_a_chunk(grounded):
    """By bins; at once where the traces are another training's."""
    recipe, run = grounded
    train = dataclasses.replace(recipe.train, capacity_tokens=300)
    job = open_job(training_of(dataclasses.replace(recipe, train=train), run, 1, "A"))
    items = [item for chunk in job.chunks() for item in chunk]
    generate(job)
    told = {}
    for known in (None, TraceSet.load(job.final, job.store)):
        source = GroundedTraces(job.recipe, run, job.store, job.vocab, known)
        source.traces(items, told.setdefault(known is None, []).append)
    assert sum(told[True]) == ROWS and len(told[True]) > 3 and told[False] == [ROWS]


def test_any_number_of_shards_makes_the_same_bytes(grounded):
    one, two, three = (made_traces(*grounded, of=of) for of in (1, 2, 3))
    assert one == two == three


def test_a_second_training_takes_the_traces_of_the_first(grounded, monkeypatch):
    recipe, run = grounded
    held = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, channel_rows=9))
    first, second = (open_job(training_of(held, run, 1, phase)) for phase in "AB")
    generate(second)  # B alone: coded by itself
    alone, stats = (second.final / TRACES).read_bytes(), stats_of(second.final)
    shutil.rmtree(second.final)
    generate(first)
    monkeypatch.setattr(GroundedTraces, "model", None)  # from here on, nothing can be coded
    generate(second)
    assert (second.final / TRACES).read_bytes() == alone
    assert stats_of(second.final).grounded == stats.grounded
    assert len(first.rows) == ROWS and len(second.rows) == ROWS - 9


def test_the_codebook_is_the_same_when_made_again(grounded, tmp_path):
    recipe, run = grounded
    shutil.copytree(run.codebook, tmp_path / "first")
    shutil.rmtree(run.codebook)
    make_codebook(recipe, run)
    assert files.fingerprint(run.codebook) == files.fingerprint(tmp_path / "first")


def test_the_sample_is_drawn_by_a_hash_and_leaves_out_what_is_held_out(grounded):
    recipe, run = grounded
    store = open_job(training_of(recipe, run, 1, "A")).store
    rows = sampled_rows(recipe, store)
    assert sorted(rows) == list(range(ROWS)) and not np.array_equal(rows, np.sort(rows))
    held = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, channel_rows=9))
    kept = sampled_rows(held, store)
    assert len(kept) == ROWS - 9 and [r for r in rows if r in set(kept)] == kept.tolist()


def test_more_steps_than_m_max_and_two_codes_a_step_are_counted(grounded):
    recipe, run = grounded
    traces = dataclasses.replace(recipe.traces, m_max=4)
    recipe = with_grounding(dataclasses.replace(recipe, traces=traces), tokens_per_step=2)
    job = open_job(training_of(recipe, run, 1, "A"))
    generate(job)
    told, loaded = stats_of(job.final).grounded, TraceSet.load(job.final, job.store)
    steps = np.array([len(job.store.row(row).cot_steps) for row in range(ROWS)])
    assert told.cut_rows == (steps > 2).sum() > 0 and told.filled_rows == 0
    assert loaded.lengths().tolist() == np.minimum(2 * steps, 4).tolist()


def test_the_stage_comes_before_the_first_grounded_traces(grounded):
    recipe, run = grounded
    names = [stage.name for stage in stages_of(recipe)]
    assert names.count("codebook") == 1
    assert names.index("codebook") + 1 == names.index("traces_pi1_phaseA")
    assert "--round 1" in maker_of(recipe, run.codebook)
    later = dataclasses.replace(
        recipe.traces, sources={"A": ["random"], "B": ["model", "grounded"]}
    )
    names = [s.name for s in stages_of(dataclasses.replace(recipe, traces=later))]
    assert names.index("codebook") + 1 == names.index("traces_pi2_phaseB")


def test_without_a_codebook_the_command_that_makes_it_is_named(grounded, tmp_path):
    recipe, run = grounded
    run.codebook.rename(tmp_path / "away")
    try:
        with pytest.raises(MissingInput, match="codebook: missing or unfinished"):
            open_job(training_of(recipe, run, 1, "A"))
    finally:
        (tmp_path / "away").rename(run.codebook)


def test_a_layer_that_tells_nothing_apart_is_refused(grounded, tmp_path):
    """The embeddings of the newlines at the end of all steps are one state."""
    recipe, run = grounded
    run = type(run)(tmp_path / "run")
    run.root.mkdir()
    for name in ("base", "shards"):
        (run.root / name).symlink_to(grounded[1].root / name)
    with pytest.raises(UserError, match=r"grounding.layer: .* fewer than codebook_size \(64\)"):
        make_codebook(with_grounding(dataclasses.replace(recipe, codebook_size=64), layer=0.0), run)
    assert not run.codebook.exists()


def test_a_codebook_from_elsewhere_is_taken_if_it_fits(grounded, tmp_path):
    recipe, run = grounded
    given = tmp_path / "given"
    shutil.copytree(run.codebook, given)
    other = type(run)(tmp_path / "other")
    other.root.mkdir()
    for name in ("base", "shards"):
        (other.root / name).symlink_to(run.root / name)
    taking = with_grounding(recipe, codebook=str(given))
    make_codebook(taking, other)
    assert files.fingerprint(other.codebook) == files.fingerprint(run.codebook)
    shutil.rmtree(other.codebook)
    for wrong, words in (
        (with_grounding(taking, layer=1.0), "its layer_number is 1, here it is 2"),
        (with_grounding(taking, position="before_result"), "its position is end, here"),
        (dataclasses.replace(taking, codebook_size=4), "its codebook_size is 8, here it is 4"),
        (with_grounding(taking, tokens_per_step=9), "has 2 codes for a state, and a row here"),
        (with_grounding(taking, codebook="/nowhere"), "/nowhere: not a directory; expected a"),
    ):
        with pytest.raises(UserError, match="grounding.codebook|/nowhere") as refused:
            make_codebook(wrong, other)
        assert words in str(refused.value) and not other.codebook.exists()


def test_counts_add_up_over_levels_that_some_chunks_lack():
    a = GroundedCounts(
        steps=1,
        blank_steps=0,
        cut_rows=0,
        filled_rows=1,
        rows_without_steps=0,
        code_counts=[[1, 0]],
    )
    both = a + a.model_copy(update={"code_counts": [[0, 2], [3, 0]]})
    assert (both.steps, both.code_counts) == (2, [[1, 2], [3, 0]])
    assert both.dead_codes == [0, 1] and both.top_code_shares == [2 / 3, 1.0]
