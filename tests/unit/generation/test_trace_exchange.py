"""Traces made elsewhere are imported by the spelling of their tokens, and ours exported."""

import dataclasses
import hashlib
import json
import shutil

import pytest

from abscot.common import files
from abscot.data.shards import ShardStore
from abscot.generation.trace_exchange import export_traces, import_traces
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_lines import PUBLISHED_FIRST, Codes, Line
from abscot.generation.trace_records import IMPORTED, TRACES
from abscot.generation.trace_set import TraceSet, meta_of, stats_of
from abscot.method.vocab import BEGIN, END, AbstractVocab, codebook_tokens
from abscot.packing.phase_plan import _check_traces
from kit.corpus import refused
from kit.tiny_run import training_of
from kit.trace_runs import ROWS, with_traces


def job_of(recipe, run, round_=1, phase="A"):
    return open_job(training_of(recipe, run, round_, phase), imported=True)


def without_system_prompt(recipe):
    """As the rows of the tiny run have none."""
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, system_prompt=None))


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def spelt(row: int) -> list[str]:
    """A trace of its own for each row."""
    return [codebook_tokens()[(row + k) % 64] for k in range(2 + row % 10)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_what_is_exported_is_imported_as_the_same_set(tiny, tmp_path, suffix):
    recipe, run, _ = tiny
    job, target = job_of(recipe, run), tmp_path / f"traces.{suffix}"
    generate(job)
    expected = (job.final / TRACES).read_bytes()
    export_traces(job, target)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    shutil.rmtree(job.final)
    import_traces(job, str(target))
    assert (job.final / TRACES).read_bytes() == expected
    meta, stats = meta_of(job.final), stats_of(job.final)
    (imported,) = meta.imported
    assert imported.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert (imported.file, imported.traces) == (str(target), ROWS)
    assert meta.model_fingerprint == IMPORTED and target.name in stats.source
    files.verify(job.final)


def test_exported_lines_say_row_tokens_and_ids(tiny, tmp_path):
    recipe, run, vocab = tiny
    job = job_of(recipe, run)
    generate(job)
    export_traces(job, tmp_path / "traces.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    loaded = TraceSet.load(job.final, job.store)
    names = dict(zip(vocab.codebook_ids, codebook_tokens(), strict=True))
    assert [line["id"] for line in lines] == job.store.ids()
    for row, line in enumerate(lines):
        trace = loaded.trace(row).tolist()
        assert (line["trace"], line["length"]) == (trace, len(trace))
        assert line["tokens"] == [names[i] for i in trace]


def forms(row: int) -> list[dict]:
    """The ways to say one trace."""
    tokens, place = spelt(row), [codebook_tokens().index(token) for token in spelt(row)]
    ids = [PUBLISHED_FIRST + 2 + k for k in place]
    return [
        {"trace": tokens},
        {"trace": "".join(tokens)},
        {"trace": " ".join([BEGIN, *tokens, END])},
        {"tokens": [BEGIN, *tokens], "trace": [7] * len(tokens)},
        {"trace_tokens": [*tokens, END]},
        {"trace": ids},
        {"trace": [PUBLISHED_FIRST, *ids, PUBLISHED_FIRST + 1]},
        {"trace_ids": ids},
        {"token_ids": ids},
    ]


def test_every_form_of_a_trace_is_the_same_trace(tiny, tmp_path):
    """Tokens are looked up by their spelling, bare ids by their published place."""
    recipe, run, vocab = tiny
    ours = dict(zip(codebook_tokens(), vocab.codebook_ids, strict=True))
    records = [
        {"id": f"row/{row}", **forms(row)[row % len(forms(row))], "cot": "more"}
        for row in reversed(range(ROWS))
    ]
    write(tmp_path / "a.jsonl", records[:100])
    write(tmp_path / "b.jsonl", records[100:])
    job = job_of(recipe, run)
    import_traces(job, str(tmp_path / "*.jsonl"))
    loaded = TraceSet.load(job.final, job.store, 1, "A", vocab)
    for row in range(ROWS):
        assert loaded.trace(row).tolist() == [ours[token] for token in spelt(row)]
    assert [file.traces for file in meta_of(job.final).imported] == [100, 60]


@pytest.mark.parametrize("by", ["id", "prompt", "question", "index"])
def test_lines_of_bare_ids_follow_the_rows_of_their_data_file(tiny, tmp_path, by):
    """As the public reproduction writes them; its data file has rows that the run has not."""
    recipe, run, _ = tiny
    recipe = without_system_prompt(recipe)
    order = [(17 * k) % (ROWS + 1) for k in range(ROWS + 1)]  # one row more
    data = [{"id": f"row/{row}", "prompt": f"question {row}", "cot": "c"} for row in order]
    lines = [{"trace": forms(row)[5]["trace"]} for row in order]
    if by == "prompt":
        data = [{**record, "id": None} for record in data]
    if by == "question":
        data = [{"question": record["prompt"]} for record in data]
    if by == "index":
        lines = [{"index": k, **line} for k, line in enumerate(lines)][::-1]
    write(tmp_path / "traces.jsonl", lines)
    write(tmp_path / "data.jsonl", data)
    job = job_of(recipe, run)
    refused(lambda: import_traces(job, str(tmp_path / "traces.jsonl")), "--rows")
    import_traces(job, str(tmp_path / "traces.jsonl"), str(tmp_path / "data.jsonl"))
    found = TraceSet.load(job.final, job.store)
    tokens = [Codes(job.vocab).spelt(found.trace(row).tolist()) for row in range(ROWS)]
    assert tokens == [spelt(row) for row in range(ROWS)]


def test_a_row_is_found_by_its_prompt_where_no_id_fits(tiny, tmp_path):
    recipe, run, _ = tiny
    recipe = without_system_prompt(recipe)
    records = [
        {"id": f"foreign-{row}", "prompt": f"question {row}", "trace": spelt(row)}
        for row in range(ROWS)
    ]
    job = job_of(recipe, run)
    import_traces(job, str(write(tmp_path / "traces.jsonl", records)))
    assert len(TraceSet.load(job.final, job.store)) == ROWS


def test_imported_traces_stand_for_those_of_a_model(tiny, tmp_path):
    """No model that would make them is needed, and the training accepts them."""
    recipe, run, _ = tiny
    records = [{"id": f"row/{row}", "trace": spelt(row)} for row in range(ROWS)]
    job = job_of(recipe, run, 2, "B")
    import_traces(job, str(write(tmp_path / "traces.jsonl", records)))
    _check_traces(job.training, TraceSet.load(job.final, job.store, 2, "B"), job.rows)


def test_other_rows_are_counted_and_unfinished_chunks_go(tiny, tmp_path, capsys):
    recipe, run, _ = tiny
    recipe = dataclasses.replace(recipe, staging="partition")
    job = job_of(recipe, run)
    generate(job, 0, 3)
    assert job.parts.exists()
    records = [{"id": f"row/{row}", "trace": spelt(row)} for row in range(ROWS)]
    import_traces(job, str(write(tmp_path / "traces.jsonl", records)))
    assert "40 of 160 lines are used, 120 of other rows (first: " in capsys.readouterr().out
    assert TraceSet.load(job.final, ShardStore(run.shards)).rows.tolist() == job.rows.tolist()
    assert not job.parts.exists()


def test_empty_traces_are_kept_where_the_recipe_allows_them(tiny, tmp_path):
    recipe, run, _ = tiny
    records = [{"id": f"row/{r}", "trace": spelt(r) if r % 2 else []} for r in range(ROWS)]
    write(tmp_path / "traces.jsonl", records)
    refused(
        lambda: import_traces(job_of(recipe, run), str(tmp_path / "traces.jsonl")),
        "80 of the 160 rows of pi1_phaseA have no usable trace, first 'row/0': expected one for",
        "80 with an empty trace",
    )
    job = job_of(with_traces(recipe, m_min=0, allow_empty=True), run)
    import_traces(job, str(tmp_path / "traces.jsonl"))
    assert stats_of(job.final).empty_traces == 80


def vocab_from(begin: int, order: str = "published") -> AbstractVocab:
    if order == "published":
        return AbstractVocab(tuple(range(begin + 2, begin + 66)), begin, begin + 1)
    return AbstractVocab(tuple(range(begin, begin + 64)), begin + 64, begin + 65)


@pytest.mark.parametrize(
    ("vocab", "ids", "expected"),
    [
        (vocab_from(151_669), [151_671, 151_734], [151_671, 151_734]),
        (vocab_from(400), [402, 465], [402, 465]),  # of the run, which has the published order
        (vocab_from(400), [400, 402, 401], [402]),
        (vocab_from(400), [151_671, 151_734], [402, 465]),
        (vocab_from(400, "codebook first"), [151_671, 151_734], [400, 463]),
        (vocab_from(151_669, "codebook first"), [151_671, 151_734], [151_669, 151_732]),
        (vocab_from(400, "codebook first"), [400, 401], None),
        (vocab_from(400), [402, 466], None),
        (vocab_from(400), [402, 400, 403], None),  # a delimiter inside
        (vocab_from(151_669), [-1], None),
        (vocab_from(151_669), [151_735], None),
    ],
)
def test_bare_ids_are_read_by_their_place(tmp_path, vocab, ids, expected):
    line = Line(tmp_path / "traces.jsonl", 1, {"trace": ids})
    assert Codes(vocab).codebook_ids(line) == expected


def test_ids_with_two_readings_are_refused(tmp_path):
    line = Line(tmp_path / "traces.jsonl", 3, {"trace": [151_680]})
    codes = Codes(vocab_from(151_670))
    refused(lambda: codes.codebook_ids(line), "traces.jsonl:3: trace: expected tokens", "151680")
    spelt_out = Line(tmp_path / "traces.jsonl", 3, {"trace": ["<TOKEN_A>"]})
    assert codes.codebook_ids(spelt_out) == [151_672]
