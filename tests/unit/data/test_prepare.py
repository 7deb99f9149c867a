"""Raw rows to shards: the same on any number of ranks, after any kill."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from abscot.common import files
from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.data import prepare
from abscot.data.prepare_job import read_rejected
from abscot.data.shards import ShardStore
from abscot.recipe.load import ROOT
from abscot.recipe.run import Run, claim
from abscot.recipe.schema import Recipe
from kit.corpus import refused
from kit.raw_data import damage, make, raw_rows, recipe_of, write_jsonl
from kit.tiny_run import tiny_tokenizer


def test_every_row_is_kept_or_counted_with_its_file_and_line(tmp_path):
    rows = raw_rows(40)
    rows[3]["answer"] = " "
    rows[5]["id"] = "r4"
    rows[7]["id"] = ["r7"]
    rows[9]["prompt"] = "What is the sum of one and two and three?"
    first = write_jsonl(tmp_path / "a.jsonl", rows[:20])
    first.write_text("\n" + first.read_text() + "{broken\n")
    second = write_jsonl(tmp_path / "b.jsonl", rows[20:])
    store = make(
        recipe_of(tmp_path, tmp_path / "?.jsonl", rows=30, shard_rows=7),
        problems=["the sum of one and two and three"],
    )
    counts = store.manifest.counts
    rejected = [
        json.loads(line) for line in (store.directory / "rejected.jsonl").read_text().splitlines()
    ]
    places = {r["reason"]: (r["file"], r["line"]) for r in rejected}
    # File a begins with a blank line: row i stands in line i + 2.
    assert places["empty_answer"] == (str(first), 5) and places["duplicate_id"] == (str(first), 7)
    assert places["id_not_a_string"] == (str(first), 9) and places["in_evaluation"] == (
        str(first),
        11,
    )
    assert places["broken_json"] == (str(first), 22)
    kept = set(store.ids())
    unused = [
        json.loads(Path(r["file"]).read_text().split("\n")[r["line"] - 1])["id"]
        for r in rejected
        if r["reason"] == "not_drawn"
    ]
    assert kept.isdisjoint(unused) and len(kept) + len(unused) == 36
    assert len(kept) == 30
    assert counts["read"] == 41 == counts["kept"] + sum(counts["rejected"].values())
    assert sum(counts["sources"].values()) == counts["kept"] == len(store) and len(
        rejected
    ) == 41 - len(store)
    assert second.exists()


def test_the_draw_does_not_depend_on_order_or_files_and_grows(tmp_path):
    rows = raw_rows(300)
    long = {"long_rows": "truncate_cot_left"}
    one = make(
        recipe_of(tmp_path, write_jsonl(tmp_path / "one.jsonl", rows), "one", rows=100, **long)
    )
    order = rng("order").permutation(300)
    for part in range(3):
        write_jsonl(tmp_path / f"part{part}.jsonl", [rows[i] for i in order[part::3]])
    parts = make(recipe_of(tmp_path, tmp_path / "part*.jsonl", "parts", rows=100, **long))
    more = make(recipe_of(tmp_path, tmp_path / "one.jsonl", "more", rows=150, **long))
    other = make(
        replace(recipe_of(tmp_path, tmp_path / "one.jsonl", "other", rows=100, **long), seed=1)
    )
    assert set(one.ids()) == set(parts.ids()) < set(more.ids()) and set(other.ids()) != set(
        one.ids()
    )


def launch(recipe: Recipe, ranks: int = 1) -> subprocess.CompletedProcess:
    """launch/prepare.py as a user starts it, under mpiexec or without."""
    run = Run.of(recipe)
    if not run.base.exists():
        claim(recipe)
        with files.publish(run.base) as base:
            tiny_tokenizer().save_pretrained(base)
    mpiexec = (
        [str(Path(sys.executable).parent / "mpiexec"), "--oversubscribe", "-n", str(ranks)]
        if ranks > 1
        else []
    )
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        [
            *mpiexec,
            sys.executable,
            str(ROOT / "launch" / "prepare.py"),
            "--recipe",
            str(run.config),
        ],
        env={**os.environ, **root},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_number_of_ranks_writes_the_same_store_and_a_second_start_finds_it(tmp_path, source):
    keys = {"capacity_tokens": 200, "rows": 100}  # drawn in two passes
    alone = make(recipe_of(tmp_path, source, "alone", **keys))
    recipe = recipe_of(tmp_path, source, "ranks", **keys)
    done = launch(recipe, ranks=2)
    assert done.returncode == 0, done.stderr
    store = ShardStore(Run.of(recipe).shards)
    assert store.hash == alone.hash and len(store.manifest.shards) == 8
    assert f"100 of 600 rows, hash {store.hash}" in done.stdout
    assert done.stdout.count("tokenise:") == 2  # a pass each, whatever the ranks
    assert re.search(r"^  passed over: 1\d\d too long$", done.stdout, re.MULTILINE)
    assert not store.directory.with_name("shards.work").exists()
    again = launch(recipe)
    assert again.returncode == 0 and "done" in again.stdout and store.hash in again.stdout
    damage(store.directory / "shard_00003.arrow")
    again = launch(recipe)
    assert (
        again.returncode == 2
        and again.stderr.count("\n") == 1
        and "shard_00003.arrow: checksum differs" in again.stderr
    )


def test_a_mistake_is_one_line_and_exit_code_2_for_all_ranks(tmp_path, source):
    (tmp_path / "rows2.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00not a gzip file at all")
    done = launch(recipe_of(tmp_path, tmp_path / "rows*"), ranks=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "rows2.jsonl.gz: damaged or cut off after line 0" in errors[0]


def start(recipe: Recipe) -> int:
    """`make` in a child process, on its own, to be killed. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            make(recipe)
        finally:
            os._exit(0)
    return pid


# all rows in one pass, 100 of those that fit in several
@pytest.mark.parametrize("keys", [{}, {"rows": 100, "capacity_tokens": 200}])
def test_killed_at_random_moments_it_ends_in_the_same_store(tmp_path, source, keys):
    whole = make(recipe_of(tmp_path, source, "whole", shard_rows=10, **keys))
    recipe = recipe_of(tmp_path, source, "killed", shard_rows=10, **keys)
    draw = rng("kills")
    shards, kept = Run.of(recipe).shards, {}
    for _ in range(40):
        pid = start(recipe)
        time.sleep(draw.uniform(0, 0.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if files.is_done(shards):
            break
        now = {
            path.name: path.stat().st_ino
            for path in shards.with_name("shards.work").rglob("shard_*.json")
        }
        assert kept.items() <= now.items()  # what was finished is not made again
        kept = now
    assert make(recipe).hash == whole.hash
    assert not shards.with_name("shards.work").exists() or files.is_done(shards)
    ShardStore(shards).verify()


def stopped_before_publishing(recipe: Recipe, monkeypatch) -> Path:
    """shards.work/ of a job that ended when every shard was written."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("abscot.data.prepare._publish", stop)
        make(recipe)
    return Run.of(recipe).shards.with_name("shards.work")


def test_a_damaged_shard_of_unfinished_work_is_made_again(tmp_path, source, monkeypatch, capsys):
    recipe = recipe_of(tmp_path, source)
    work = stopped_before_publishing(recipe, monkeypatch)
    shards = work / "shards_made"
    damage(shards / "shard_00002.arrow")
    (shards / "shard_00004.arrow").unlink()
    (shards / "shard_00005.json").write_text('{"kept": [[')
    (shards / "shard_00006.json").write_text('{"kept": 3}')
    damage(work / "units_made" / "unit_00000.npy")
    store = make(recipe)
    said = capsys.readouterr().out
    for line in (
        "shard_00002.arrow: checksum is wrong; making it again",
        "shard_00004.arrow: No such file or directory; making it again",
        "shard_00005.json:1: not JSON",
        "shard_00006.json: sha256: Field required; making it again",
        "unit_00000.npy: checksum is wrong; making it again",
    ):
        assert line in said
    store.verify()
    assert store.hash == make(recipe_of(tmp_path, source, "other")).hash


def grown(lines: list[str]) -> list[str]:
    return [*lines, lines[-1].replace("r599", "r600")]


def renamed(lines: list[str]) -> list[str]:
    return [line.replace('"id": "r', '"id": "s') for line in lines]


def emptied(lines: list[str]) -> list[str]:
    return [" " * len(line) for line in lines]


def shortened(lines: list[str]) -> list[str]:
    return lines[:9]


@pytest.mark.parametrize("change", [grown, renamed, emptied, shortened])
@pytest.mark.parametrize("after", ["scan", "tokenise_shards"])
def test_a_source_that_changes_meanwhile_is_refused_and_then_read_again(
    tmp_path, source, monkeypatch, change, after
):
    recipe = recipe_of(tmp_path, source, long_rows="truncate_cot_left")
    real = getattr(prepare, after)

    def changing(*arguments):
        real(*arguments)
        source.write_text("\n".join(change(source.read_text().splitlines())) + "\n")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, after, changing)
        refused(lambda: make(recipe), "rows.jsonl: changed while it was being read")
    if change is emptied:
        refused(lambda: make(recipe), "no row is left", "no rows")
    else:
        rows = source.read_text().splitlines()
        assert len(make(recipe)) == len(rows)


def test_a_damaged_list_of_rejected_rows_is_named(tmp_path, source):
    store = make(recipe_of(tmp_path, source))
    path = store.directory / "rejected.jsonl"
    assert sum(line.reason == "too_long" for line in read_rejected(path)) == 600 - len(store)
    whole = path.read_text()
    for damaged in (
        whole + "{",
        whole + "{}\n",
        whole + "[" * 10_000,
        whole.replace('"line"', '"row"'),
    ):
        path.write_text(damaged)
        refused(lambda: list(read_rejected(path)), "rejected.jsonl", "launch/prepare.py")
    path.write_bytes(b"\xff")
    refused(lambda: list(read_rejected(path)), "rejected.jsonl")


def test_work_of_other_settings_or_input_is_not_continued(tmp_path, source, monkeypatch, capsys):
    stopped_before_publishing(recipe_of(tmp_path, source), monkeypatch)
    changed = recipe_of(tmp_path, source, min_cot_chars=60)
    assert min(make(changed).lengths()["cot"]) >= 60 and "starting again" in capsys.readouterr().out
    stopped_before_publishing(recipe_of(tmp_path, source, "grown"), monkeypatch)
    write_jsonl(source, raw_rows(610))
    assert make(recipe_of(tmp_path, source, "grown")).manifest.counts["read"] == 610


def test_a_full_disk_is_one_line_and_the_work_goes_on_afterwards(tmp_path, source):
    """A limit on the size of files is what a full disk is to the writer: OSError in the middle of a
    shard.
    """
    recipe = recipe_of(tmp_path, source, shard_rows=600, long_rows="truncate_cot_left")
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            make(recipe)
        except UserError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    message = os.read(read, 10_000).decode()
    assert (
        "cannot be written (File too large); what is finished is kept" in message
        and "\n" not in message
    )
    assert len(make(recipe)) == 600


def test_no_row_left_says_why_and_where(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "y"}] * 3)
    with pytest.raises(UserError) as caught:
        make(recipe_of(tmp_path, path))
    assert "no row is left with data.format=prompt_cot_answer (missing_column_prompt 3)" in str(
        caught.value
    )
    assert "a.jsonl:1: missing_column_prompt columns here: question, answer" in str(caught.value)


def test_world_rows_come_from_the_run_itself(tmp_path):
    recipe = recipe_of(tmp_path, "world")
    Run.of(recipe).world.mkdir(parents=True)
    write_jsonl(Run.of(recipe).world / "rows.jsonl", raw_rows(20))
    assert make(recipe).manifest.counts["read"] == 20
