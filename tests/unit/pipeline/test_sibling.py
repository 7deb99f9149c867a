"""What a run beside a run gets from it."""

import errno
import os
from dataclasses import replace

import pytest

from abscot.common import files
from abscot.common.errors import DamagedInput
from abscot.evaluation.jobs import Job
from abscot.evaluation.results import ResultMeta, is_whole
from abscot.method.lineage import round_models, trainings
from abscot.method.schedules import schedule_of
from abscot.pipeline.lease import RUN, exclusive
from abscot.pipeline.sibling import RESULTS, share, siblings
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run, claim
from abscot.recipe.schema import Recipe
from kit.corpus import refused
from kit.synthetic_run import add_results

MADE = ("world", "base", "shards", "codebook")


def recipe_of(root, *keys: str) -> Recipe:
    given = [f"run_root={root}", "name=r", "eval.base_modes=[thinking]", *keys]
    return load_recipe(None, given)


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Of a run that follows the grounded schedule and has made what comes before its rounds."""
    recipe = recipe_of(tmp_path, "schedule=grounded")
    run = claim(recipe)
    for name in MADE:
        with files.publish(run.root / name, {"about": name}) as directory:
            (directory / "part").mkdir()
            (directory / "part" / "weights").write_text(name)
    base = round_models(recipe, run)[0]
    add_results(run, "thinking", "base", "world", 0, problems=3)
    job = Job(recipe, run, base, "thinking", "world")
    change = {**dict(job.identity()), "samples": 1}
    ResultMeta.read(job.meta).model_copy(update=change).write(job.meta)
    return recipe


def test_the_other_schedule_is_a_run_beside_it_and_a_custom_one_has_both(tmp_path):
    keys = ("schedule=grounded", "train.phase_epochs={A: [3, 0], pause: 2}")
    (paper,) = siblings(
        recipe_of(tmp_path, *keys, "train.channel_rows=9", "train.until_channel=0.9")
    )
    assert (paper.name, paper.schedule, paper.train.until_channel) == ("r-paper", "paper", None)
    assert paper.train.phase_epochs == {"pause": 2} and paper.train.channel_rows == 9
    assert len(trainings(paper, Run.of(paper))) == 6
    custom = recipe_of(tmp_path, "traces.sources={B: [model_with_cot]}")
    assert schedule_of(custom) == "custom"
    assert [(s.name, schedule_of(s)) for s in siblings(custom)] == [
        ("r-paper", "paper"),
        ("r-grounded", "grounded"),
    ]


def test_a_name_too_long_for_the_run_beside_it_is_one_line(tmp_path):
    recipe = recipe_of(tmp_path, "schedule=paper", f"name={'n' * 98}")
    refused(lambda: siblings(recipe), "name: ", "where the grounded schedule runs", "100 bytes")


def test_what_both_would_make_the_same_is_linked_once(recipe):
    (other,) = siblings(recipe)
    mine, run = Run.of(recipe), Run.of(other)
    share(recipe, other)
    assert not run.codebook.exists()  # nothing of the paper's schedule reads it
    for name in MADE[:-1]:
        files.verify(run.root / name)
        assert files.fingerprint(run.root / name) == files.fingerprint(mine.root / name)
        assert files.read_done(run.root / name) == {"about": name}
        assert (run.root / name / "part" / "weights").samefile(
            mine.root / name / "part" / "weights"
        )
    assert is_whole(run.results / "thinking_base_world.meta.json")
    before = {path: path.stat().st_ino for path in run.root.rglob("*") if path.is_file()}
    share(recipe, other)
    after = {path: path.stat().st_ino for path in run.root.rglob("*") if path.is_file()}
    assert {p: i for p, i in after.items() if before.get(p) != i} == {}
    assert not list(run.root.rglob("*.tmp")) and not list(run.root.rglob("*.partial"))


def test_a_file_system_without_links_has_copies(recipe, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "link", no_links)
    (other,) = siblings(recipe)
    share(recipe, other)
    mine, run = Run.of(recipe), Run.of(other)
    assert files.fingerprint(run.base) == files.fingerprint(mine.base)
    assert not (run.base / "part" / "weights").samefile(mine.base / "part" / "weights")
    assert is_whole(run.results / "thinking_base_world.meta.json")


@pytest.mark.parametrize(
    "keys, shared",
    [
        (["grounding.layer=0.9"], ["world", "base", "shards"]),
        (["traces.best_of=4"], ["world", "base", "shards", "codebook"]),
        (["data.min_cot_chars=1"], ["world", "base"]),
        (["codebook_size=8"], ["world"]),
        (["seed=1"], []),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else None,
)
def test_another_recipe_gets_what_its_keys_do_not_change(recipe, tmp_path, keys, shared):
    other = recipe_of(tmp_path, "schedule=grounded", *keys, "name=s")
    share(recipe, other)
    run = Run.of(other)
    assert [name for name in MADE if files.is_done(run.root / name)] == shared
    assert is_whole(run.results / "thinking_base_world.meta.json") is ("base" in shared)


def test_only_what_is_asked_for_is_shared(recipe):
    (other,) = siblings(recipe)
    share(recipe, other, ["world"])
    assert [p.name for p in Run.of(other).root.iterdir() if p.name in (*MADE, RESULTS)] == ["world"]


def test_results_of_other_questions_are_not_shared(recipe):
    (other,) = siblings(recipe)
    other = replace(other, eval=replace(other.eval, max_reasoning_tokens=7))
    share(recipe, other)
    assert files.is_done(Run.of(other).base) and not Run.of(other).results.exists()


def test_a_damaged_file_something_else_in_its_place_and_another_writer_are_refused(recipe):
    (other,) = siblings(recipe)
    mine, run = Run.of(recipe), Run.of(other)
    (mine.base / "part" / "weights").write_text("damaged")
    with pytest.raises(DamagedInput, match="weights: checksum differs"):
        share(recipe, other)
    assert files.is_done(run.world) and not run.base.exists()
    with files.publish(run.base) as directory:
        (directory / "other").write_text("")
    refused(lambda: share(recipe, other), f"{run.base}: not the base of {mine.root}", "delete")
    with exclusive(run.root, RUN):
        os.environ.pop("ABSCOT_LEASE")
        refused(lambda: share(recipe, other), "another process works on this run")


@pytest.mark.parametrize("links", range(5))
def test_cut_off_anywhere_it_leaves_nothing_half_there_and_goes_on(recipe, monkeypatch, links):
    (other,) = siblings(recipe)
    run, link, left = Run.of(other), os.link, iter(range(links))

    def cut_off(*paths):
        next(left)  # StopIteration once they are made
        link(*paths)

    monkeypatch.setattr(os, "link", cut_off)
    with pytest.raises(StopIteration):
        share(recipe, other)
    there = [name for name in MADE if (run.root / name).exists()]
    assert there == list(MADE[: min(links, 3)]) and not list(run.root.rglob("*.tmp"))
    files.verify(*(run.root / name for name in there))
    assert not is_whole(run.results / "thinking_base_world.meta.json")
    monkeypatch.setattr(os, "link", link)
    share(recipe, other)
    files.verify(*(run.root / name for name in MADE[:-1]))
    assert is_whole(run.results / "thinking_base_world.meta.json")
