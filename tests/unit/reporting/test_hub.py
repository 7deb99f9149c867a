"""What is uploaded of a finished run, and that nothing else is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.pipeline.stages import require_finished, stages_of
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, open_run
from abscot.reporting import report
from abscot.reporting.hub import Upload, collect, send
from kit.synthetic_run import make_run
from kit.tiny_run import make_model, tiny_tokenizer


def prepare(root, repo) -> Upload:
    """As launch/publish.py does it."""
    run, recipe = open_run(root)
    require_finished(run, recipe)
    return collect(run, recipe, repo)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A finished run of one round: random weights, synthetic logs and results."""
    run = make_run(tmp_path_factory.mktemp("publish"), rounds=1, **{"eval.benchmarks": "[world]"})
    make_model(run.base, tiny_tokenizer(), seed=0)
    for path in (run.root / "final", run.checkpoints("pi1_phaseA") / "export"):
        shutil.copytree(run.base, path)
    files.seal(run.shards)
    with files.publish(run.world):
        pass
    report.write(run)
    (run.results / ".half.partial").write_text("{}")
    run.logs.mkdir()
    (run.logs / "train_pi1_phaseA.log").write_text("a path of this machine")
    return run


def test_the_published_layout_and_nothing_else(finished):
    assert all(stage.done() for stage in stages_of(load_recipe(finished.config)))
    prepared = prepare(finished.root, "me/tiny")
    tops = list(dict.fromkeys(path.parts[0] for path in prepared.files))
    assert tops == ["config.yaml", "final", "teacher_traces", "train_logs", "results", "report"]
    names = {str(path) for path in prepared.files}
    assert {
        "final/model.safetensors",
        "final/README.md",
        "report/index.html",
        "train_logs/pi1_phaseA.json",
    } <= names
    assert "results/abstract_final_world.jsonl" in names and not any("/." in name for name in names)
    assert (
        prepared.card.startswith("---\n")
        and "hf download me/tiny --include 'final/*'" in prepared.card
    )
    assert 'MODEL = "tiny/final"' in prepared.card


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
    assert "teacher_traces/ (4 files)" in done.stdout and "base/" not in done.stdout
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


class Hub:
    """Takes the place of huggingface_hub.HfApi, and keeps what it was given."""

    def __init__(self, error: Exception | None = None):
        self.error, self.calls = error, []

    def create_repo(self, repo, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append((repo, private, exist_ok))
        return f"hub/{repo}"

    def upload_folder(self, **options):
        self.calls.append(options)

    def upload_file(self, **options):
        self.calls.append(options)


def test_the_upload_hands_the_hub_exactly_the_listed_files(finished):
    prepared, hub = prepare(finished.root, "me/tiny"), Hub()
    assert send(prepared, "me/tiny", True, hub) == "hub/me/tiny"
    (repo, private, exist_ok), folder, card = hub.calls
    assert (repo, private, exist_ok) == ("me/tiny", True, True)
    assert (
        folder["allow_patterns"] == [str(path) for path in prepared.files]
        and Path(folder["folder_path"]) == finished.root
    )
    assert card["path_in_repo"] == "README.md" and card["path_or_fileobj"] == prepared.card.encode()


def test_what_the_client_takes_is_what_it_is_given():
    """The installed hub client has the calls and the arguments that `Hub` stands in for."""
    import inspect

    import huggingface_hub

    api = huggingface_hub.HfApi
    assert {"repo_id", "folder_path", "allow_patterns"} <= set(
        inspect.signature(api.upload_folder).parameters
    )
    assert {"path_or_fileobj", "path_in_repo", "repo_id"} <= set(
        inspect.signature(api.upload_file).parameters
    )
    assert {"private", "exist_ok"} <= set(inspect.signature(api.create_repo).parameters)


def test_refusals_and_damage_are_one_line(finished, tmp_path):
    prepared = prepare(finished.root, "me/tiny")
    with pytest.raises(UserError, match="--repo me: expected OWNER/NAME"):
        send(prepared, "me", False, Hub())
    with pytest.raises(
        UserError, match="--repo me/tiny: 401 Unauthorized; the same command goes on"
    ):
        send(prepared, "me/tiny", False, Hub(OSError("401 Unauthorized\nlong story")))
    copy = tmp_path / finished.root.name
    shutil.copytree(finished.root, copy)
    done = json.loads((copy / "final" / "DONE").read_text())
    done["files"]["model.safetensors"] = "0" * 64
    (copy / "final" / "DONE").write_text(json.dumps(done))
    with pytest.raises(UserError, match="checksum differs"):
        send(prepare(copy, None), "me/tiny", False, Hub())
