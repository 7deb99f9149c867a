"""A finished run that can be published, and what launch/publish.py does with it."""

import shutil
from pathlib import Path

import pytest

from abscot.common import files
from abscot.model.chat_model import ChatModel, DecodingRules
from abscot.pipeline.stages import require_finished
from abscot.recipe.run import Run, open_run
from abscot.recipe.schema import TraceConfig
from abscot.reporting import report
from abscot.reporting.hub import Upload, check_results, collect
from kit.hub_server import TOKEN
from kit.synthetic_run import add_codebook, make_run, write_world
from kit.tiny_run import make_model, tiny_tokenizer


def prepare(root, repo=None) -> Upload:
    """As launch/publish.py does it."""
    run, recipe = open_run(root)
    check_results(run)
    require_finished(run, recipe)
    return collect(run, recipe, repo)


def api_of(server, token: str | None = TOKEN):
    import huggingface_hub

    return huggingface_hub.HfApi(server.endpoint, token)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A finished run of one round: random weights, synthetic logs and results."""
    run = make_run(tmp_path_factory.mktemp("publish"), rounds=1, **{"eval.benchmarks": "[world]"})
    make_model(run.base, tiny_tokenizer(), seed=0)
    add_codebook(run, [5, 3])
    for path in (run.root / "final", run.checkpoints("pi1_phaseA") / "export"):
        shutil.copytree(run.base, path)
    # As the export of a round does.
    codebook = run.root / "final" / run.codebook.name
    shutil.copytree(run.codebook, codebook, ignore=shutil.ignore_patterns(files.DONE))
    tokenizer = tiny_tokenizer()
    rules = DecodingRules.of_tokenizer(tokenizer, 64, TraceConfig())
    ChatModel(tokenizer, rules).write(run.root / "final")
    files.seal(run.root / "final")
    write_world(run)
    report.write(run)
    (run.results / ".half.partial").write_text("{}")
    run.logs.mkdir()
    (run.logs / "train_pi1_phaseA.log").write_text("a path of this machine")
    return run


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(finished.root, tmp_path / finished.root.name)
    return tmp_path / finished.root.name
