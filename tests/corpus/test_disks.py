"""Disks that are full, read-only, or have limits: one line that names the file, exit code 2,
nothing half-written; the same call goes on once that is mended.
"""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from abscot import cli
from abscot.common import disk, files
from abscot.common.errors import MissingInput, StageCrashed, UserError
from abscot.data import toy_world
from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.generation.trace_jobs import generate, open_job
from abscot.model.extend import check_base, extend_base
from abscot.pipeline.lease import RUN, exclusive
from abscot.pipeline.runner import run_stage
from abscot.pipeline.stages import Stage
from abscot.recipe.run import Run, claim
from abscot.recipe.schema import WorldConfig
from abscot.reporting import report
from abscot.training.phase_data import load_data
from abscot.training.record import StepEntry, Trackers, TrainLog
from kit import raw_data, synthetic_run
from kit.corpus import one_line
from kit.tiny_run import make_model, make_tiny_run, tiny_recipe, tiny_tokenizer, training_of


def ended(capfd, act: Callable[[], object]) -> tuple[int, str]:
    """(exit code, last line of stderr) of a command that does `act`. A traceback fails the test."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: act() and None)
    lines = capfd.readouterr().err.strip().splitlines()
    return int(end.value.code or 0), lines[-1] if lines else ""


@dataclasses.dataclass
class Work:
    """What a stage does, and what is there when it has done it."""

    act: Callable[[], object]
    made: Path


def to_claim(root: Path) -> Work:
    recipe = tiny_recipe(root)
    recipe.data.system_prompt = "x" * 20_000
    return Work(lambda: claim(recipe), Run.of(recipe).config)


def to_extend(root: Path) -> Work:
    recipe = tiny_recipe(root)
    make_model(root / "raw", tiny_tokenizer(), seed=0)
    recipe.model.base = str(root / "raw")
    run = claim(recipe)
    return Work(lambda: extend_base(recipe, run, check_base(recipe, run)), run.base / files.DONE)


def to_make_a_world(root: Path) -> Work:
    config = WorldConfig(rows=40, heldout=8, base_steps=1, hidden_size=64, num_layers=1)
    return Work(lambda: toy_world.write(root / "world", config, 0, None), root / "world" / "DONE")


def to_prepare(root: Path) -> Work:
    source = raw_data.write_jsonl(root / "rows.jsonl", raw_data.raw_rows(400))
    recipe = raw_data.recipe_of(root, source)
    return Work(lambda: raw_data.make(recipe), Run.of(recipe).shards / "DONE")


def to_trace(root: Path) -> Work:
    recipe, run, _ = make_tiny_run(root, rows=400)
    recipe.inference.chunk_tokens = 200 * recipe.traces.m_max  # 200 random traces
    training = training_of(recipe, run, 1, "A")
    return Work(lambda: generate(open_job(training)), training.traces / "DONE")


def to_plan(root: Path) -> Work:
    recipe, run, _ = make_tiny_run(root, rows=400)
    recipe.train.capacity_tokens = 256
    training = training_of(recipe, run, 1, "A")
    generate(open_job(training))
    return Work(lambda: load_data(training), training.plan_file)


def to_evaluate(root: Path) -> Work:
    recipe, run, _ = make_tiny_run(root)
    lines = [
        {"id": i, "problem": f"{i}+1=?", "answer": str(i + 1), "cot": f"{i} and 1. " * 20}
        for i in range(24)
    ]
    recipe.eval.files["world"] = str(raw_data.write_jsonl(root / "cots.jsonl", lines))
    make_model(training_of(recipe, run, 1, "A").export, tiny_tokenizer(), seed=1)
    (job,) = jobs_of(recipe, run, "pi1_phaseA", None, None)
    return Work(lambda: evaluate([job]), job.meta)


def to_report(root: Path) -> Work:
    run = synthetic_run.make_run(root, rounds=1)
    return Work(lambda: report.write(run), run.report / "DONE")


def to_log(root: Path) -> Work:
    """A stage that prints, run as launch/round.py runs it."""
    run = Run(root / "run")
    run.root.mkdir()
    out = root / "out.json"

    class Printing:
        ranks = 0

        def command(self, *_):
            return ["sh", "-c", f"yes | head -20000; touch {out}"]

        def environment(self, _):
            return dict(os.environ)

    class NeverAsked:
        asked, process = False, None

    stage = Stage("prints", 0, (), (out,), Printing())
    return Work(lambda: run_stage(run, stage, NeverAsked(), 1.0), run.logs / "prints.log")


STAGES = {
    "claim": to_claim,
    "extend": to_extend,
    "world": to_make_a_world,
    "prepare": to_prepare,
    "traces": to_trace,
    "plan": to_plan,
    "evaluate": to_evaluate,
    "report": to_report,
    "log": to_log,
}
RESUMED = ("shards.work", "results", ".parts", ".lock", ".leases")  # kept: the same call goes on


def half_written(root: Path) -> list[str]:
    names = [str(path.relative_to(root)) for path in root.rglob("*")]
    found = [name for name in names if name.endswith((".tmp", ".partial"))]
    return [name for name in found if not any(word in name for word in RESUMED)]


@contextlib.contextmanager
def full(root: Path):
    """A file system without a free block."""
    filler = root / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def limited(root: Path):
    """No file above 2,000 bytes, as with `ulimit -f`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only(root: Path):
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", root], check=True)


@pytest.fixture
def mounted(tmp_path):
    """A small file system of its own."""
    root = tmp_path / "disk"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(root)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no permission to mount a file system here")
    yield root
    subprocess.run(["umount", "-l", root], check=True)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize(
    "without_room, says",
    [
        (full, os.strerror(errno.ENOSPC)),
        (limited, os.strerror(errno.EFBIG)),
        (read_only, os.strerror(errno.EROFS)),
    ],
    ids=["full", "limited", "read_only"],
)
def test_a_stage_without_room_is_one_line_and_goes_on_with_room(
    capfd, mounted, stage, without_room, says
):
    work = stage(mounted)
    with without_room(mounted):
        code, line = ended(capfd, work.act)
    assert code == 2, line
    one_line(line, "error: ", str(mounted), says)
    assert half_written(mounted) == []
    work.act()
    assert work.made.is_file()
    assert half_written(mounted) == []


def test_a_lease_on_a_full_disk_is_one_line(capfd, mounted):
    (mounted / ".leases").mkdir()
    (mounted / ".leases" / "lock").touch()

    def hold():
        with exclusive(mounted, RUN):
            pass

    with full(mounted):
        code, line = ended(capfd, hold)
    assert code == 2, line
    one_line(line, str(mounted / ".leases"), "No space left on device")
    assert [path.name for path in (mounted / ".leases").iterdir()] == ["lock"]
    hold()


ERRORS = {
    "no_space": (OSError(errno.ENOSPC, "No space left on device", "/r/x"), 2, ["/r/x", "room"]),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "/r/x"), 2, ["/r/x", "room"]),
    "denied": (PermissionError(errno.EACCES, "Permission denied", "/r/x"), 2, ["/r/x"]),
    "not_permitted": (PermissionError(errno.EPERM, "Not permitted", "/r/x"), 2, ["/r/x"]),
    "read_only": (OSError(errno.EROFS, "Read-only file system", b"/r/x"), 2, ["/r/x", "run_root"]),
    "name_too_long": (
        OSError(errno.ENAMETOOLONG, "File name too long", "/r/x"),
        2,
        ["/r/x", "shorter"],
    ),
    "gone": (FileNotFoundError(errno.ENOENT, "No such file or directory", "/r/x"), 2, ["/r/x"]),
    "directory": (IsADirectoryError(errno.EISDIR, "Is a directory", "/r/x"), 2, ["/r/x"]),
    "too_many_open": (OSError(errno.EMFILE, "Too many open files", "/r/x"), 2, ["ulimit -n"]),
    "stale": (OSError(errno.ESTALE, "Stale file handle", "/r/x"), 1, ["/r/x", "Stale"]),
    "io": (OSError(errno.EIO, "Input/output error", "/r/x"), 1, ["/r/x", "Input/output"]),
    "nameless": (OSError(errno.ENOSPC, "No space left on device"), 2, ["No space left"]),
    "line_break_in_name": (OSError(errno.EROFS, "Read-only", "/r/a\nb"), 2, ["/r/a\\nb"]),
    "surrogate_in_name": (OSError(errno.EROFS, "Read-only", "/r/\udcff"), 2, ["\\udcff"]),
    "library": (OSError("Couldn't reach\nthe hub"), 1, ["Couldn't reach the hub"]),
    "library_silent": (ConnectionError(), 1, ["ConnectionError"]),
    "timeout": (TimeoutError("timed out"), 1, ["timed out"]),
    "memory": (MemoryError(), 1, ["out of memory"]),
    "memory_numpy": (MemoryError("Unable to allocate 1 TiB"), 1, ["Unable to allocate 1 TiB"]),
    "recursion": (RecursionError("maximum recursion depth exceeded"), 2, ["nested too deep"]),
    "user": (UserError("x: mend it"), 2, ["error: x: mend it"]),
    "not_finite": (FloatingPointError("step 3: loss is nan"), 2, ["loss is nan"]),
    "missing": (MissingInput(Path("/r/base")), 2, ["/r/base", "make it with"]),
    "crashed": (StageCrashed("stage x crashed"), 1, ["stage x crashed"]),
    "ctrl_c": (KeyboardInterrupt(), 130, ["interrupted"]),
}


@pytest.mark.parametrize("error, code, words", ERRORS.values(), ids=ERRORS)
def test_how_a_command_ends(capfd, monkeypatch, error, code, words):
    def fail():
        raise error

    monkeypatch.setattr("sys.argv", ["script"])
    found, line = ended(capfd, fail)
    assert found == code
    one_line(line, *words)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ValueError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
    ids=["python", "rust", "arrow"],
)
def test_an_error_of_writing_is_named(tmp_path, error):
    with pytest.raises(OSError, match="No space left") as caught, disk.naming(tmp_path / "x"):
        raise error
    assert caught.value.filename == str(tmp_path / "x") and caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("error", [UserError("(os error 28)"), RuntimeError("a bug"), KeyError(1)])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk.naming(tmp_path):
        raise error
    assert caught.value is error


def test_a_directory_that_cannot_be_published_whole_is_not_there(tmp_path):
    with (
        pytest.raises(OSError, match="model"),
        files.publish(tmp_path / "model") as temp,
        limited(tmp_path),
    ):
        (temp / "weights").write_bytes(bytes(5000))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_whole_keeps_its_old_text(tmp_path):
    path = tmp_path / "x.json"
    files.write_json_atomic(path, {"old": 1})
    with pytest.raises(OSError, match=r"x\.json"), limited(tmp_path):
        files.write_json_atomic(path, {"new": "x" * 5000})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_curves_without_room_are_one_line(capfd, tmp_path):
    recipe, run = tiny_recipe(tmp_path), Run(tmp_path / "run")
    recipe.trackers = ["tensorboard"]
    nothing = TrainLog(meta=synthetic_run.train_log_meta(), steps=[])
    curves = Trackers(recipe, run, "pi1_phaseA", nothing)
    entry = StepEntry.model_construct(**dict.fromkeys(StepEntry.model_fields, 1))

    def write():
        for _ in range(20):
            curves.log(entry)

    with limited(tmp_path):
        code, line = ended(capfd, write)
    assert code == 2
    one_line(line, str(run.tensorboard / "pi1_phaseA"), "File too large")


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200], ids=["ascii", "utf8"])
def test_a_name_too_long_is_one_line(capfd, tmp_path, name):
    code, line = ended(capfd, lambda: files.write_text_atomic(tmp_path / name, "x"))
    assert code == 2
    one_line(line, "File name too long", "take a shorter name or run_root")
