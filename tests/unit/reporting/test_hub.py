"""What is uploaded of a finished run, and that nothing else is."""

import shutil
import subprocess
import sys
import time

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.pipeline.stages import stages_of
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import open_run
from abscot.reporting import report
from abscot.reporting.hub import send
from kit.hub_server import TOKEN
from kit.published_run import api_of, prepare


def test_the_published_layout_and_nothing_else(finished):
    assert all(stage.done() for stage in stages_of(load_recipe(finished.config)))
    prepared = prepare(finished.root, "me/tiny")
    tops = list(dict.fromkeys(path.parts[0] for path in prepared.files))
    assert tops == ["final", "teacher_traces", "train_logs", "results", "report"]
    assert list(prepared.texts) == ["README.md", "config.yaml"]
    names = {str(path) for path in prepared.files}
    assert {
        "final/model.safetensors",
        "final/README.md",
        "final/codebook/codebook.json",
        "final/custom_generate/generate.py",
        "report/index.html",
        "train_logs/pi1_phaseA.json",
    } <= names
    assert "results/abstract_final_world.jsonl" in names and not any("/." in name for name in names)
    card = prepared.texts["README.md"]
    assert card.startswith("---\n") and "hf download me/tiny --include 'final/*'" in card
    assert 'MODEL = "tiny/final"' in card and prepared.left_out == ()


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "publish.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_a_dry_run_lists_every_file_and_the_sizes(finished):
    done = command(finished.root, "--dry-run")
    assert done.returncode == 0, done.stderr
    weights = (finished.root / "final" / "model.safetensors").stat().st_size
    assert (
        f"{weights / 1e3:.1f} kB  final/model.safetensors" in done.stdout
        and "nothing was uploaded" in done.stdout
    )
    assert "teacher_traces/ (6 files)" in done.stdout and "base/" not in done.stdout
    none = command(finished.root)
    assert none.returncode == 2 and none.stderr.startswith("error: --repo: expected OWNER/NAME")


def test_an_unfinished_run_is_refused_by_its_missing_stage(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.root, copy)
    shutil.rmtree(copy / "teacher_traces" / "pi1_phaseB")
    with pytest.raises(
        UserError, match=r"not finished \(traces_pi1_phaseB\); finish it with: .*--round all"
    ):
        prepare(copy, None)


def test_the_hub_gets_exactly_the_listed_files(finished, hub_server):
    prepared = prepare(finished.root, "me/tiny")
    assert send(prepared, "me/tiny", True, api_of(hub_server)) == f"{hub_server.endpoint}/me/tiny"
    expected = {str(path): (finished.root / path).read_bytes() for path in prepared.files}
    expected |= {name: text.encode() for name, text in prepared.texts.items()}
    assert hub_server.files == expected
    assert hub_server.files["config.yaml"] == finished.config.read_bytes()


def test_what_nobody_sealed_stays_and_is_named(copy, hub_server):
    (copy / "final" / "token").write_text(TOKEN)
    (copy / "final" / ".env").write_text(TOKEN)
    (copy / "results" / "notes.txt").write_text("mine")
    (copy / "train_logs" / "wandb.json").write_text("{}")
    (copy / "report" / "passwd").symlink_to("/etc/passwd")
    (copy / "teacher_traces" / "home").symlink_to("/root")
    before = prepare(copy, "me/tiny")
    left_out = "final/.env final/token teacher_traces/home train_logs/wandb.json results/notes.txt"
    assert [str(path) for path in before.left_out] == [*left_out.split(), "report/passwd"]
    assert "left out, not sealed or written by the run: final/.env" in before.table()
    send(before, "me/tiny", False, api_of(hub_server))
    assert not hub_server.files.keys() & {str(path) for path in before.left_out}
    assert not any(TOKEN.encode() in content for content in hub_server.files.values())


@pytest.mark.parametrize("place", ["final", "final/model.safetensors", "results", "report"])
def test_a_link_in_the_place_of_the_runs_own_is_refused(copy, tmp_path, place):
    (copy / place).rename(tmp_path / "moved")
    (copy / place).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match=f"{place}: a link; only what lies in the run itself"):
        prepare(copy, None)


def test_credentials_of_the_recipe_reach_no_page_and_no_upload(copy, hub_server):
    secrets = {"judge_url": f"https://ann:s3cret@judge/v1?token=t0ken&a={TOKEN}"}
    config = copy / "config.yaml"
    config.write_text(
        config.read_text().replace("judge_url: null", f"judge_url: {secrets['judge_url']}")
    )
    words = [b"s3cret", b"ann:", b"t0ken", TOKEN.encode()]
    run, recipe = open_run(copy)
    assert recipe.eval.judge_url == secrets["judge_url"]
    (run.report / "report.md").write_text(f"by an earlier version: {secrets['judge_url']}")
    files.seal(run.report)
    with pytest.raises(UserError, match="report.md: holds a credential of config.yaml"):
        prepare(copy, None)
    report.write(run)
    pages = [p for p in (*run.report.iterdir(), copy / "final" / "README.md") if p.suffix != ".png"]
    assert not [(p, w) for p in pages for w in words if w in p.read_bytes()]
    assert "https://REDACTED@judge/v1?REDACTED" in (run.report / "report.md").read_text()
    send(prepare(copy, None), "me/tiny", False, api_of(hub_server))
    assert b"judge_url: https://REDACTED@judge/v1?REDACTED\n" in hub_server.files["config.yaml"]
    assert not any(word in content for word in words for content in hub_server.files.values())


def test_damage_is_found_by_the_dry_run(copy):
    weights = copy / "final" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = command(copy, "--dry-run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{weights}: checksum differs from DONE; delete {copy / 'final'}; make" in done.stderr
    assert f"--recipe {copy / 'config.yaml'} --round 1" in done.stderr


def test_a_file_that_changes_after_the_list_was_made_is_not_uploaded(copy, hub_server):
    prepared = prepare(copy, "me/tiny")
    (copy / "final" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="final/config.json: has just changed"):
        send(prepared, "me/tiny", False, api_of(hub_server))
    assert not hub_server.files


@pytest.mark.parametrize(
    "repo, token, says",
    [
        ("me", TOKEN, "--repo me: expected OWNER/NAME"),
        ("me/a..b", TOKEN, "--repo me/a..b: Cannot have -- or .."),
        ("me/t\ny", TOKEN, "Repo id must use alphanumeric chars"),
        ("me/tiny", "hf_wrong", "the hub does not know this token: run hf auth login"),
        ("me/tiny", None, "not logged in at the hub: run hf auth login"),
        ("others/tiny", TOKEN, "--repo others/tiny: .*no rights to write to others"),
    ],
    ids=["no-owner", "dots", "line-break", "unknown-token", "no-token", "no-rights"],
)
def test_what_the_hub_refuses_is_one_line(finished, hub_server, monkeypatch, repo, token, says):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=says) as caught:
        send(prepare(finished.root, "me/tiny"), repo, False, api_of(hub_server, token))
    assert str(caught.value).isprintable() and not hub_server.files


def test_a_hub_that_does_not_answer_is_given_up_soon(finished, hub_server):
    hub_server.shutdown()
    hub_server.server_close()
    began_s = time.monotonic()
    with pytest.raises(UserError, match="--repo me/tiny: .*refused.*the same command goes on"):
        send(prepare(finished.root, "me/tiny"), "me/tiny", False, api_of(hub_server))
    assert time.monotonic() - began_s < 20
