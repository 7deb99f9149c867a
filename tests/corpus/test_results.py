"""Damaged results: each is refused in one line that names the file and the command that mends it;
none is reported, and none is taken for done.
"""

import dataclasses
import json
import os
import shutil

import pytest

from abscot.common import files
from abscot.evaluation import benchmarks
from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import Job, jobs_of
from abscot.evaluation.results import KeptAnswer, is_whole, meta_file, read_result, rows_file
from abscot.reporting import report, run_data
from kit.corpus import launch, one_line, refused
from kit.synthetic_run import make_run, result_row
from kit.tiny_run import make_tiny_run

NAME = "abstract_final_world"
MEND = (f"results/{NAME}.* and run: python launch/evaluate.py --recipe ", "--model")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run's files; its results are put back after each case."""
    run = make_run(
        tmp_path_factory.mktemp("whole"),
        rounds=1,
        **{"eval.benchmarks": "[world]", "eval.modes": "[abstract]"},
    )
    shutil.copytree(run.results, run.root / "kept")
    return run


@pytest.fixture
def run(whole):
    yield whole
    shutil.rmtree(whole.results)
    shutil.copytree(whole.root / "kept", whole.results)


def rows(run) -> list[dict]:
    return [json.loads(line) for line in rows_file(run, NAME).read_text().splitlines()]


def write(run, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    rows_file(run, NAME).write_text(text)


def set_in_row(key, value):
    def damage(run):
        changed = rows(run)
        changed[2][key] = value
        write(run, changed)

    return damage


def set_in_meta(**change):
    def damage(run):
        path = meta_file(run, NAME)
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return damage


def without(key, of=meta_file):
    def damage(run):
        path = of(run, NAME)
        lines = [json.loads(path.read_text())] if of is meta_file else rows(run)
        del lines[0][key]
        path.write_text("\n".join(map(json.dumps, lines)))

    return damage


def bytes_of(of, change):
    def damage(run):
        path = of(run, NAME)
        path.write_bytes(change(path.read_bytes()))

    return damage


def in_place_of(of, make):
    def damage(run):
        of(run, NAME).unlink()
        make(of(run, NAME))

    return damage


def edit(change):
    return lambda run: write(run, change(rows(run)))


ROWS = {
    "missing": (lambda run: rows_file(run, NAME).unlink(), "No such file"),
    "pipe": (in_place_of(rows_file, os.mkfifo), "not a file"),
    "directory": (in_place_of(rows_file, os.mkdir), "not a file"),
    "device": (in_place_of(rows_file, lambda path: path.symlink_to("/dev/zero")), "not a file"),
    "empty": (bytes_of(rows_file, lambda data: b""), "0 rows, its .meta.json says 200"),
    "cut_in_a_line": (bytes_of(rows_file, lambda data: data[:-40]), ".jsonl:200: broken line"),
    "last_line_lost": (edit(lambda rows: rows[:-1]), "199 rows, its .meta.json says 200"),
    "first_line_lost": (edit(lambda rows: rows[1:]), "199 rows, its .meta.json says 200"),
    "half_lost": (edit(lambda rows: rows[::2]), "100 rows, its .meta.json says 200"),
    "line_twice": (edit(lambda rows: [*rows, rows[0]]), "201 rows, its .meta.json says 200"),
    "one_row_for_another": (edit(lambda rows: [*rows[:-1], rows[0]]), "2 rows of p000, sample 0"),
    "other_order": (edit(lambda rows: rows[::-1]), "changed after its .meta.json"),
    "of_another_run": (
        edit(lambda rows: [{**row, "gold": "7"} for row in rows]),
        "changed after its .meta.json",
    ),
    "another_sample": (set_in_row("sample", 1), "samples [0, 1], its .meta.json says 1"),
    "scores_changed": (
        edit(lambda rows: [{**row, "correct": 1.0} for row in rows]),
        "accuracy is 1.0 in its rows",
    ),
    "scores_taken_off": (
        edit(lambda rows: [{**row, "correct": None} for row in rows]),
        "accuracy is None in its rows",
    ),
    "binary": (bytes_of(rows_file, lambda data: bytes(range(128, 256))), ".jsonl:1: not text"),
    "nul_bytes": (bytes_of(rows_file, lambda data: b"\0" * 4096), ".jsonl:1: broken line"),
    "flipped": (
        bytes_of(rows_file, lambda data: data.replace(b"pens", b"pans", 1)),
        "changed after its .meta.json",
    ),
    "blank_line": (bytes_of(rows_file, lambda data: data + b"\n"), ".jsonl:201: broken line"),
    "list": (bytes_of(rows_file, lambda data: b"[]\n"), ".jsonl:1: ResultRow"),
    "deep": (bytes_of(rows_file, lambda data: b"[" * 100_000), ".jsonl:1: broken line (nested"),
    "huge_number": (bytes_of(rows_file, lambda data: b"9" * 5000), ".jsonl:1: broken line (Exc"),
    "key_more": (set_in_row("note", "x"), ".jsonl:3: note"),
    "key_less": (without("gold", rows_file), ".jsonl:1: gold"),
    "nan_score": (set_in_row("correct", float("nan")), ".jsonl:3: broken line (NaN"),
    "infinite_score": (set_in_row("correct", float("inf")), ".jsonl:3: broken line (Infinity"),
    "score_of_two": (set_in_row("correct", 2.0), ".jsonl:3: correct"),
    "score_below_zero": (set_in_row("correct_any", -0.5), ".jsonl:3: correct_any"),
    "score_true": (set_in_row("correct", True), ".jsonl:3: correct"),
    "score_text": (set_in_row("correct", "1.0"), ".jsonl:3: correct"),
    "count_below_zero": (set_in_row("n_response_tokens", -1), ".jsonl:3: n_response_tokens"),
    "count_float": (set_in_row("n_response_tokens", 8.0), ".jsonl:3: n_response_tokens"),
    "total_wrong": (set_in_row("n_total_tokens", 1), ".jsonl:3: ResultRow: Value error, n_total"),
    "trace_wrong": (set_in_row("trace_ids", [1]), ".jsonl:3: ResultRow: Value error, n_abstract"),
    "id_number": (set_in_row("id", 3), ".jsonl:3: id"),
    "response_null": (set_in_row("response", None), ".jsonl:3: response"),
    "response_surrogate": (
        bytes_of(rows_file, lambda data: data.replace(b"pens", b"\\ud800", 1)),
        ".jsonl",
    ),
}


METAS = {
    "empty": (bytes_of(meta_file, lambda data: b""), "not JSON"),
    "cut": (bytes_of(meta_file, lambda data: data[:100]), "not JSON"),
    "binary": (bytes_of(meta_file, lambda data: bytes(range(128, 256))), "not text"),
    "list": (bytes_of(meta_file, lambda data: b"[]"), "ResultMeta"),
    "null": (bytes_of(meta_file, lambda data: b"null"), "ResultMeta"),
    "other_keys": (bytes_of(meta_file, lambda data: b'{"a": 1}'), "mode"),
    "key_more": (set_in_meta(note="x"), "note"),
    "no_checksum": (without("rows_sha256"), "rows_sha256"),
    "no_accuracy": (without("accuracy"), "accuracy"),
    "of_another_mode": (set_in_meta(mode="pause"), "it is of pause_final_world"),
    "of_another_model": (set_in_meta(model="base"), "it is of abstract_base_world"),
    "of_another_benchmark": (set_in_meta(benchmark="gsm8k"), "it is of abstract_final_gsm8k"),
    "accuracy_nan": (set_in_meta(accuracy=float("nan")), ".meta.json"),
    "accuracy_wrong": (set_in_meta(accuracy=0.125), "in its rows, 0.125 in its .meta.json"),
    "any_wrong": (set_in_meta(accuracy_any=0.125), "accuracy_any is"),
    "accuracy_of_two": (set_in_meta(accuracy=2.0), "accuracy"),
    "accuracy_null": (set_in_meta(accuracy=None), "None in its .meta.json"),
    "problems_wrong": (set_in_meta(problems=199), "200 rows, its .meta.json says 199"),
    "problems_below_zero": (set_in_meta(problems=-200), "problems"),
    "problems_zero": (set_in_meta(problems=0), "200 rows, its .meta.json says 0"),
    "samples_wrong": (set_in_meta(samples=2), "200 rows, its .meta.json says 400"),
    "samples_zero": (set_in_meta(samples=0), "samples"),
    "tokens_wrong": (set_in_meta(mean_total_tokens=1.0), "mean_total_tokens is"),
    "unfinished_wrong": (set_in_meta(unfinished_answers=0), "unfinished_answers is"),
    "cut_prompts_wrong": (set_in_meta(cut_prompts=9), "cut_prompts is"),
    "time_below_zero": (set_in_meta(wall_s=-1.0), "wall_s"),
    "temperature_infinite": (set_in_meta(answer_temperature=float("inf")), ".meta.json"),
    "round_text": (set_in_meta(round="1"), "round"),
    "checksum_wrong": (set_in_meta(rows_sha256="0" * 64), "changed after its .meta.json"),
    "environment_null": (set_in_meta(environment=None), "environment"),
    "stages_below_zero": (set_in_meta(prompt_tokens_computed=[-1]), "prompt_tokens_computed"),
}


@pytest.mark.parametrize("case", ROWS)
def test_damaged_rows_are_not_reported(run, case):
    damage, words = ROWS[case]
    damage(run)
    refused(lambda: run_data.read(run), f"{NAME}.jsonl", words, *MEND, "--mode abstract")
    assert not is_whole(meta_file(run, NAME))


@pytest.mark.parametrize("case", METAS)
def test_a_damaged_meta_is_not_reported(run, case):
    damage, words = METAS[case]
    damage(run)
    refused(lambda: run_data.read(run), NAME, words, *MEND)


def test_a_result_without_its_meta_is_missing_and_so_reported(run):
    meta_file(run, NAME).unlink()
    assert ("abstract", "final", "world", 1) in run_data.read(run).missing


def test_the_report_script_ends_in_one_line(run, capfd, monkeypatch):
    write(run, rows(run)[:-1])
    code, last = launch(capfd, monkeypatch, "report.py", str(run.root))
    assert code == 2 and not (run.report / "index.html").exists()
    one_line(last, "199 rows, its .meta.json says 200", *MEND)


def test_what_is_whole_is_reported_again(run):
    assert report.table(run).count("world") == 3


# evaluate itself: done(), and the answers that it keeps until all are there


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(job, its problems) of a result made by the product, and of the answers it kept before."""
    recipe, run, _ = make_tiny_run(tmp_path_factory.mktemp("evaluated"))
    (job,) = jobs_of(recipe, run, "base", ["no_cot"], ["world"])
    return job, benchmarks.load("world", recipe, run)


def kept_lines(job: Job, problems) -> list[dict]:
    environment = {"engine": "E", "dtype": "fp32", "device": "a CPU"}
    return [
        KeptAnswer(
            number=number,
            elapsed_s=1.0 + number,
            computed=[5],
            row=result_row(
                id=problem.id, problem=problem.problem, gold=problem.gold, response=r"\boxed{2}"
            ),
            environment=environment,
        ).model_dump()
        for number, problem in enumerate(problems)
    ]


def keep(job: Job, lines: list[dict]) -> None:
    job.run.results.mkdir(exist_ok=True)
    for path in job.run.results.iterdir():
        path.unlink()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    job.partial(0).write_text(text, encoding="utf-8")


@pytest.fixture
def made(evaluated):
    """The job, done: its answers were all kept, so that no engine was started."""
    job, problems = evaluated
    keep(job, kept_lines(job, problems))
    evaluate([job])
    assert job.done() and not list(job.run.results.glob(".*"))
    return job


def test_a_whole_result_is_done_and_its_meta_says_what_its_rows_say(made):
    meta, scored = read_result(made.run, made.name)
    assert (meta.accuracy, meta.problems, len(scored)) == (0.2, 5, 5)
    assert meta.rows_sha256 == files.sha256_file(made.result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:-1], "4 rows, its .meta.json says 5"),
        (lambda lines: [], "0 rows, its .meta.json says 5"),
        (lambda lines: [lines[0], *lines[:-1]], "2 rows of world/0, sample 0"),
        (lambda lines: [line.replace("0.0", "1.0") for line in lines], "accuracy is 1.0"),
        (lambda lines: [line.replace("0.0", "NaN") for line in lines], ".jsonl:1: broken line"),
        (lambda lines: [lines[0][:40], *lines[1:]], ".jsonl:1: broken line"),
        (lambda lines: lines[::-1], "changed after its .meta.json"),
    ],
    ids=["line_lost", "empty", "twice", "scores", "nan", "cut", "order"],
)
def test_damaged_rows_are_not_done(made, change, words):
    lines = made.result.read_text().splitlines(keepends=True)
    made.result.write_text("".join(change(lines)))
    refused(made.done, f"{made.name}.jsonl", words, "python launch/evaluate.py --recipe")
    refused(lambda: evaluate([made]), words, "--model base --mode no_cot --benchmark world")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"mode": 1}'],
    ids=["empty", "cut", "list", "x", "keys"],
)
def test_a_damaged_meta_is_not_done(made, content):
    made.meta.write_bytes(content)
    refused(made.done, f"{made.name}.meta.json", "python launch/evaluate.py --recipe")


def test_other_settings_and_deleted_files_are_asked_again(made):
    other = dataclasses.replace(made.recipe.eval, max_answer_tokens=7)
    assert not dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, eval=other)).done()
    made.result.unlink()
    assert not made.done()


KEPT = {
    "binary": (lambda lines: bytes(range(128, 256)) + b"\n", ":1: not text"),
    "nul_bytes": (lambda lines: b"\0" * 100 + b"\n", ":1: broken line"),
    "blank": (lambda lines: b"\n", ":1: broken line"),
    "list": (lambda lines: b"[]\n", ":1: KeptAnswer"),
    "deep": (lambda lines: b"[" * 100_000 + b"\n", ":1: broken line (nested"),
    "cut_inside": (lambda lines: lines[0][:50] + b"\n" + lines[1], ":1: broken line"),
    "key_less": (lambda lines: lines[0].replace(b'"number"', b'"n"'), ":1: number"),
    "nan": (lambda lines: lines[0].replace(b"1.0", b"NaN"), ":1: broken line (NaN"),
    "number_twice": (lambda lines: lines[0] * 2, ":2: a second answer to question 0"),
    "number_too_high": (
        lambda lines: lines[0].replace(b'"number": 0', b'"number": 99'),
        ":1: the answer to another question",
    ),
    "number_below_zero": (
        lambda lines: lines[0].replace(b'"number": 0', b'"number": -1'),
        ":1: number",
    ),
    "another_problem": (
        lambda lines: lines[0].replace(b"0+1=?", b"0+2=?"),
        ":1: the answer to another question",
    ),
    "another_gold": (
        lambda lines: lines[0].replace(b'"gold": "1"', b'"gold": "3"'),
        ":1: the answer to another question",
    ),
    "another_sample": (
        lambda lines: lines[0].replace(b'"sample": 0', b'"sample": 1'),
        ":1: the answer to another question",
    ),
}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_kept_answers_that_are_no_file(evaluated, make):
    job, problems = evaluated
    keep(job, [])
    job.partial(0).unlink()
    make(job.partial(0))
    refused(lambda: evaluate([job]), f"{job.partial(0)}: not a file")
    os.rmdir(job.partial(0)) if make is os.mkdir else os.unlink(job.partial(0))


@pytest.mark.parametrize("case", KEPT)
def test_damaged_kept_answers_are_named(evaluated, case):
    job, problems = evaluated
    change, words = KEPT[case]
    keep(job, kept_lines(job, problems))
    path = job.partial(0)
    path.write_bytes(change(path.read_bytes().splitlines(keepends=True)))
    refused(lambda: evaluate([job]), f"{path}{words}", f"delete {path} and give the same command")
    assert not job.result.exists() and not job.meta.exists()
