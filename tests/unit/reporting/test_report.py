"""The report of whole, half-done, hostile and damaged runs."""

import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, claim
from abscot.reporting import plot_training, report, run_data, tables
from abscot.reporting.blocks import to_html, to_markdown
from abscot.training.record import TrainLog
from kit.synthetic_run import BENCHMARKS, add_results, add_traces, channel_entry, make_run


def text_of(run: Run) -> str:
    """report.md without pictures: they take most of a report's time."""
    return to_markdown(report.blocks(run_data.read(run), {}))


class Page(HTMLParser):
    """Collects tags and attributes; fails where tags do not nest."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.attributes, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    run = make_run(tmp_path_factory.mktemp("whole"))
    report.write(run)
    return run


def test_models_on_their_way_stand_in_the_table_alone(tmp_path):
    """In the order of their steps; curves and differences are of the rounds."""
    run = make_run(tmp_path, rounds=2, **{"eval.benchmarks": "[world]"})
    add_results(run, "channel", "pi1_phaseA", "world", 1)
    before = text_of(run)
    for step in (100, 20):
        add_results(run, "abstract", f"pi1_phaseB_step{step}", "world", 1)
        add_results(run, "channel", f"pi1_phaseA_step{step}", "world", 1)
    page = report.write(run).read_text()
    after = text_of(run)
    assert [word for word in re.findall(r"pi1_phaseB_step\d+", page)][:2] == [
        "pi1_phaseB_step20",
        "pi1_phaseB_step100",
    ]
    new = [line for line in after.splitlines() if line not in before.splitlines()]
    assert new and all("_step" in line for line in new)


def test_the_table_says_what_the_rows_say(tmp_path):
    keys = {"eval.benchmarks": "[world]", "eval.modes": "[abstract]"}
    run = make_run(tmp_path, rounds=1, **keys)
    add_results(
        run,
        "abstract",
        "final",
        "world",
        1,
        problems=4,
        n_total_tokens=20,
        n_reasoning_tokens=12,
        n_response_tokens=8,
        correct=1.0,
        finish_reason="stop",
    )
    lines = report.table(run).splitlines()
    head, last = (" ".join(lines[i].split()) for i in (0, -1))
    assert (
        head == "mode model benchmark n accuracy % 95% interval any % reasoning response total "
        "per correct cut %"
    )
    assert last == "abstract final world 4 100.0 [39.8, 100.0] 100.0 12.0 8.0 20.0 20.0 0.0"
    columns = [line.find("world") for line in lines[2:]]
    assert len(set(columns)) == 1  # aligned


def test_a_model_from_elsewhere_is_a_row_beside_the_runs(tmp_path):
    run = make_run(tmp_path, rounds=2, **{"eval.benchmarks": "[world]"})
    add_results(run, "abstract", "mine-final-0123abcd", "world", 0, problems=9)
    report.write(run)
    assert "mine-final-0123abcd" in report.table(run) and "mine-final-0123abcd" in text_of(run)
    differences = repr(tables.difference_blocks(run_data.read(run)))
    assert "abstract final" in differences and "mine-final" not in differences


def test_samples_add_pass_at_k(tmp_path):
    run = make_run(tmp_path, rounds=1)
    add_results(run, "abstract", "final", "world", 1, problems=30, samples=4)
    text = report.table(run)
    assert "pass@k %" in text and "30 x 4" in text


def test_partial_credit_and_open_judgement(tmp_path):
    """F1 scores are averaged, without pass@k; answers that wait for a judge have tokens but no
    accuracy.
    """
    run = make_run(tmp_path, rounds=1, **{"eval.modes": "[abstract]"})
    add_results(run, "abstract", "final", "world", 1, problems=30, samples=2, correct=0.25)
    add_results(run, "abstract", "final", "gsm8k", 1, correct=None)
    text_of(run)
    world, gsm8k = [line for line in report.table(run).splitlines() if line.startswith("abstract")]
    assert " 25.0 " in world and "to be judged" in gsm8k


def test_a_whole_run_gives_every_part(whole):
    names = {path.name for path in whole.report.iterdir()}
    assert names == {
        "DONE",
        "report.md",
        "index.html",
        "accuracy_tokens.png",
        "rounds.png",
        "training.png",
        "trace_lengths.png",
        "token_frequency.png",
    }
    for path in whole.report.glob("*.png"):
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert 500 < width < 2500 and 400 < height < 2000, path.name
    text = (whole.report / "report.md").read_text()
    assert (
        "Not there yet" not in text
        and "Paired differences" in text
        and "No sign of collapse" in text
    )
    assert all(f"]({name})" in text for name in names if name.endswith(".png"))


def test_the_page_needs_no_other_file(whole):
    text = (whole.report / "index.html").read_text()
    page = Page(text)
    sources = [value for tag, key, value in page.attributes if key in ("src", "href")]
    assert len(sources) == 5 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "http" not in "".join(sources) and "@import" not in text and "url(" not in text


def test_the_same_files_give_the_same_bytes(whole):
    before = {p.name: p.read_bytes() for p in whole.report.iterdir()}
    report.write(whole)
    assert {p.name: p.read_bytes() for p in whole.report.iterdir()} == before


def test_the_second_stages_share_of_the_prefill_is_shown(tmp_path):
    run = make_run(tmp_path, rounds=1)
    path = run.results / "abstract_final_world.meta.json"
    meta = json.loads(path.read_text())
    files.write_json_atomic(
        path,
        {
            **meta,
            "prompt_tokens_computed": [2000, 50],
            "environment": {**meta["environment"], "device": "a GPU"},
        },
    )
    text = text_of(run)
    assert (
        "| 2,000 + 50 (2.5%) |" in text
        and "| evaluation | device | a GPU |" in text
        and "| this page | torch |" in text
    )


def test_half_a_run_shows_what_is_missing(tmp_path):
    run = make_run(tmp_path, rounds=2, **{"eval.modes": "[abstract]"})
    for path in [*run.results.glob("*final*"), run.train_log("pi2_phaseB")]:
        path.unlink()
    (run.traces("pi2_phaseB") / "DONE").unlink()
    (run.results / ".abstract_final_world.0123.partial").write_text('{"half a li')
    report.write(run)
    text = (run.report / "report.md").read_text()
    assert "Not there yet: training phases: pi2_phaseB" in text
    assert "Not there yet: trace sets: pi2_phaseB" in text
    assert "abstract of final on gsm8k" in text
    assert report.table(run).count("missing") == len(BENCHMARKS)


def test_a_run_just_begun_is_a_report_too(tmp_path):
    run = claim(load_recipe(None, [f"run_root={tmp_path}", "name=new"]))
    report.write(run)
    assert "The data are not prepared yet" in (run.report / "report.md").read_text()
    assert not list(run.report.glob("*.png"))


def test_a_phase_at_work_is_not_taken_for_a_finished_one(tmp_path):
    run = make_run(tmp_path, rounds=1)
    log = json.loads(run.train_log("pi1_phaseB").read_text())
    files.write_json_atomic(run.train_log("pi1_phaseB"), {**log, "steps": log["steps"][:40]})
    assert "| pi1_phaseB | 40 of 120 |" in text_of(run)


def test_the_channel_stands_beside_the_steps_and_one_that_stayed_closed_is_named(tmp_path):
    run = make_run(tmp_path, rounds=2, schedule="paper")
    for tag, steps, last in (("pi1_phaseA", 60, 0.97), ("pi2_phaseA", 120, 0.31)):
        log = TrainLog.read(run.train_log(tag))
        meta = log.meta.model_copy(update={"until_channel": 0.95, "epochs": 4})
        channel = [channel_entry(29, 0.1), channel_entry(steps - 1, last)]
        TrainLog(meta=meta, steps=log.steps[:steps], channel=channel).write(run.train_log(tag))
    text = text_of(run)
    assert "| pi1_phaseA | 60 of 120, channel 0.97 |" in text
    assert "| pi2_phaseA | 120, channel 0.31 |" in text
    assert "**Warning:** round 2 A: channel 0.31 of 0.95 after all 4 epochs" in text
    assert "round 1 A: channel" not in text
    figure, caption = plot_training.training(run_data.read(run))
    assert "Dots: the channel" in caption
    (line,) = figure.axes[-1].lines
    points = [tuple(point) for point in line.get_xydata() if point[0] == point[0]]
    assert points == [(30, 10), (60, 97), (210, 10), (300, 31)]  # of all phases end to end


def test_a_schedule_that_leaves_phases_out_is_drawn(tmp_path):
    run = make_run(tmp_path, rounds=3, schedule="grounded", **{"eval.benchmarks": "[world]"})
    report.write(run)
    assert (run.report / "trace_lengths.png").exists()


def test_loss_z_stands_beside_the_entropy_of_the_codes(tmp_path):
    """64 codes that are all alike have ln 64 nats; the synthetic ones of phase B are far from
    alike.
    """
    run = make_run(tmp_path, rounds=1, codebook_size=64)
    (run.traces("pi1_phaseB") / "DONE").unlink()
    table = tables.phase_table(run_data.read(run))
    at = table.columns.index("entropy of codes")
    assert table.columns[at - 1] == "loss z"
    cells = {row[0]: row[at] for row in table.rows}
    of_set, uniform = cells["pi1_phaseA"].split(" of ")
    assert uniform == "4.159" and 4 < float(of_set) < 4.159
    assert cells["pi1_phaseB"] == "– of 4.159"


def test_collapsed_traces_are_named(tmp_path):
    run = make_run(tmp_path, rounds=1)
    add_traces(run, "pi1_phaseB", load_recipe(run.config), constant=13)
    text = text_of(run)
    assert "**Warning:** pi1_phaseB: constant length: 100% of the traces have 13 tokens" in text


def test_what_a_model_wrote_stays_text(tmp_path):
    """Markup in problems, answers and ids is shown, in both files, and breaks neither."""
    evil = (
        '\u2028</pre><script>alert("x")</script>\n```\n# not a heading\n````\n'
        "<img src=x onerror=alert(1)>"
    )
    run = make_run(tmp_path, rounds=1)
    add_results(
        run,
        "abstract",
        "final",
        "world",
        1,
        problem=evil,
        response=evil,
        gold=evil,
        prediction=evil,
        id="<b>|x`",
        problems=1,
    )
    text = to_html("x", report.blocks(run_data.read(run), {}), run.report)
    page = Page(text)
    assert "b" not in {tag for tag, _, _ in page.attributes}
    assert text.count("<script") == text.count("</script") == 2  # the explorer's own
    assert all(key != "onerror" for _, key, _ in page.attributes)
    assert evil in "".join(page.words)
    fences = re.findall(r"^(`{3,})text\n(.*?)\n\1$", text_of(run), re.MULTILINE | re.DOTALL)
    assert evil in [text for _, text in fences]


def test_long_answers_are_cut_and_say_so(tmp_path):
    run = make_run(tmp_path, rounds=1)
    add_results(run, "abstract", "final", "world", 1, response="x" * 100_000)
    text = text_of(run)
    assert "(98000 characters more)" in text and len(text) < 60_000


def test_damage_is_named_by_file_and_line(tmp_path):
    run = make_run(tmp_path, rounds=1)
    path = run.results / "abstract_final_world.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:]]))
    with pytest.raises(UserError, match=r"abstract_final_world\.jsonl:3: broken line"):
        report.write(run)
    assert not run.report.exists()


def test_no_run_is_a_users_mistake(tmp_path):
    ended = launch_report(str(tmp_path))
    assert (
        ended.returncode == 2
        and ended.stderr.startswith("error: ")
        and ended.stderr.count("\n") == 1
    )


def test_the_script_prints_the_table_and_the_place(tmp_path):
    run = claim(load_recipe(None, [f"run_root={tmp_path}", "name=new"]))
    for arguments in ([str(run.root)], ["--recipe", str(run.config)]):
        ended = launch_report(*arguments)
        assert ended.returncode == 0, ended.stderr
        assert (
            report.table(run) in ended.stdout
            and f"report: {run.report / 'index.html'}" in ended.stdout
        )


def launch_report(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / "report.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)
