"""A trace set is whole, or refused by name."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_records import SET_SCHEMA
from abscot.generation.trace_set import TraceSet, stats_of
from abscot.method.schedules import RANDOM
from kit.tiny_run import training_of
from kit.trace_runs import ROWS


def test_a_published_set_is_complete_and_loads(tiny):
    recipe, run, vocab = tiny
    job = open_job(training_of(recipe, run, 1, "A"))
    assert generate(job) and generate(job)
    loaded = TraceSet.load(job.final, job.store, 1, "A")
    assert loaded.rows.tolist() == list(range(ROWS))
    assert loaded.lengths().tolist() == [len(loaded.trace(i)) for i in range(ROWS)]
    assert set(loaded.flat()[0].tolist()) <= set(vocab.codebook_ids)
    assert loaded.meta.model_fingerprint == RANDOM
    assert stats_of(job.final).traces == ROWS
    files.verify(job.final)
    assert not job.parts.exists()


def corrupt(change):
    """Rows, ids and traces of a good set, changed."""
    table = {
        "row": [0, 1, 2],
        "id": ["row/0", "row/1", "row/2"],
        "trace": [[260, 261], [262], [263]],
    }
    change(table)
    return pa.table(table, schema=SET_SCHEMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(row=[0, 1, 1]), "not ascending numbers below 4"),
        (lambda t: t.update(row=[0, 1, 3]), "cover 3 rows, not exactly"),
        (lambda t: t.update(id=["row/0", "row/2", "row/1"]), "another row's id"),
        (lambda t: t.update(trace=[[260], [5], [261]]), "outside V_abs"),
        (lambda t: t.update(trace=[[260], [260] * 13, [261]]), "lengths 1..13 leave 1..12"),
    ],
)
def test_validation_finds_what_is_wrong(tiny, change, message):
    _, _, vocab = tiny
    vocab = dataclasses.replace(vocab, codebook_ids=tuple(range(260, 324)))
    ids, rows, limits = [f"row/{i}" for i in range(4)], np.arange(3), (1, 12)
    TraceSet(corrupt(lambda t: None), 4).validate(ids, rows, vocab, *limits)
    with pytest.raises(ValueError, match=message):
        TraceSet(corrupt(change), 4).validate(ids, rows, vocab, *limits)


def test_a_set_of_another_round_phase_or_store_is_refused(tiny):
    recipe, run, _ = tiny
    job = open_job(training_of(recipe, run, 1, "A"))
    generate(job)
    for round_, phase, word in ((2, "A", "round 1"), (1, "B", "phase A")):
        with pytest.raises(UserError, match=f"traces of {word}, expected"):
            TraceSet.load(job.final, job.store, round_, phase)
    done = json.loads((job.final / "DONE").read_text())
    done["meta"]["store"] = "other"
    (job.final / "DONE").write_text(json.dumps(done))
    with pytest.raises(UserError, match="traces of store other, expected"):
        TraceSet.load(job.final, job.store, 1, "A")
