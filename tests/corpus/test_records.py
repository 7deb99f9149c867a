"""Files of a run that are damaged, foreign or gone: one line names the file and what mends it."""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from abscot.common import files
from abscot.data.shards import ShardStore
from abscot.generation.transformers_engine import TransformersEngine
from abscot.generation.vllm_engine import VllmEngine
from abscot.model.handover import Probe, check_files
from abscot.packing.make_plan import make_plan
from abscot.packing.phase_plan import kept_plan
from abscot.packing.plan import Plan
from abscot.pipeline.stage_state import StageState
from abscot.pipeline.status import screen
from abscot.recipe.run import open_run
from abscot.recipe.schema import InferenceConfig
from abscot.reporting import run_data
from abscot.training.audit import audit
from abscot.training.checkpoint import TrainState, _Slices
from abscot.training.record import TrainLog
from abscot.training.resume import newest
from kit.corpus import launch, one_line, refused
from kit.synthetic_run import step_entry, train_log_meta
from kit.tiny_run import make_tiny_run

TAG = "pi1_phaseA"
CHECKPOINT = f"checkpoints/{TAG}/step_0000006"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, run) with a file of every kind."""
    recipe, run, _ = make_tiny_run(tmp_path_factory.mktemp("records"))
    plan = make_plan(
        np.full(40, 8),
        np.full(40, 8),
        np.full(40, 4),
        seed=0,
        epochs=1,
        capacity_tokens=32,
        global_batch_examples=8,
        rows=np.arange(40),
    )
    plan.save(run.plan_of(TAG), "key")
    steps = [step_entry(k) for k in range(8)]
    meta = train_log_meta(plan_hash=plan.hash)
    TrainLog(meta=meta, steps=steps).write(run.train_log(TAG))
    for step in (3, 6):
        state = TrainState(step=step, epoch=0, tokens=9, plan_hash=plan.hash, world_size=1)
        path = run.root / f"checkpoints/{TAG}/step_{step:07}"
        with files.publish(path, state.model_dump()) as temp:
            slices = {"fp32/w": torch.zeros(4)}
            save_file(slices, temp / "rank_00000_000.safetensors", {"first": '{"fp32/w": 0}'})
    run.logs.mkdir()
    StageState.begun(None, ["x"], 1).finished("failed", 0, "why").write(
        StageState.file(run, f"train_{TAG}")
    )
    return recipe, run


@pytest.fixture
def run(made, tmp_path):
    """A copy that a case may spoil."""
    recipe, run = made
    copy = tmp_path / run.root.name
    shutil.copytree(run.root, copy)
    return type(run)(copy)


READERS = {
    "base/DONE": lambda run: files.verify(run.base),
    "shards/DONE": lambda run: ShardStore(run.shards),
    "shards/manifest.json": lambda run: ShardStore(run.shards),
    f"logs/train_{TAG}.json": lambda run: screen(run.root),
    f"train_logs/{TAG}.json": run_data.read,
    f"{CHECKPOINT}/DONE": lambda run: resume(run),
    f"plans/{TAG}.npz": lambda run: Plan.load(run.plan_of(TAG)),
}
SPOILT = {
    "empty": lambda whole: b"",
    "blank": lambda whole: b" \n",
    "cut": lambda whole: whole[: len(whole) // 2],
    "last-byte-gone": lambda whole: whole.rstrip()[:-1],
    "binary": lambda whole: bytes(range(256)) * 8,
    "zeros": lambda whole: bytes(len(whole)),
    "utf-16": lambda whole: whole.decode("latin-1").encode("utf-16"),
    "other-keys": lambda whole: b'{"a": 1}',
    "no-keys": lambda whole: b"{}",
    "list": lambda whole: b"[1, 2]",
    "number": lambda whole: b"3",
    "null": lambda whole: b"null",
    "nan": lambda whole: b'{"steps": NaN}',
    "pickle": lambda whole: pickle.dumps({"files": {}, "meta": {}}),
    "deep": lambda whole: b"[" * 100_000,
    "long-integer": lambda whole: b'{"rows": ' + b"1" * 5000 + b"}",
    "line-breaks-in-a-key": lambda whole: b'{"a\\nb\\u0000": 1}',
    "twice": lambda whole: whole + whole,
}


def resume(run):
    plan_hash = json.loads(run.train_log(TAG).read_text())["meta"]["plan_hash"]
    return newest(run.checkpoints(TAG), plan_hash, run.train_log(TAG))


# An archive is read from its end: a plan twice is a whole plan.
SPOILT_FILES = [(n, how) for n in READERS for how in SPOILT if (n[-4:], how) != (".npz", "twice")]


@pytest.mark.parametrize("name, how", SPOILT_FILES)
def test_a_spoilt_file_is_named_with_what_mends_it(run, name, how):
    path = run.root / name
    path.write_bytes(SPOILT[how](path.read_bytes()))
    refused(lambda: READERS[name](run), name, "delete")


@pytest.mark.parametrize("name", READERS)
def test_a_directory_in_its_place(run, name):
    (run.root / name).unlink()
    (run.root / name).mkdir()
    refused(lambda: READERS[name](run), name.removesuffix("/DONE"))


@pytest.mark.parametrize("name", [name for name in READERS if not name.endswith("DONE")])
def test_a_pipe_in_its_place_is_not_waited_for(run, name):
    (run.root / name).unlink()
    os.mkfifo(run.root / name)
    refused(lambda: READERS[name](run), name, "delete")


@pytest.mark.parametrize("name", [name for name in READERS if name[-4:] != ".npz"])
def test_a_terabyte_of_nothing_is_not_read(run, name):
    os.truncate(run.root / name, 10**12)
    refused(lambda: READERS[name](run), name, "1,000,000,000,000 bytes", "delete")


def test_whole_files_are_read(run):
    """What the tables above spoil is good as it is."""
    for name, read in READERS.items():
        read(run)
        assert (run.root / name).is_file()


def edit(path, change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def put(*keys_and_value):
    """Sets the value under the keys."""
    *keys, last, value = keys_and_value

    def change(tree) -> None:
        for key in keys:
            tree = tree[key]
        tree[last] = value

    return change


WRONG_VALUES = {
    # of the checksums
    "absolute-name": ("base/DONE", put("files", "/etc/passwd", "0" * 64)),
    "name-outside": ("base/DONE", put("files", "../shards/DONE", "0" * 64)),
    "name-outside-later": ("base/DONE", put("files", "a/../../shards/DONE", "0" * 64)),
    "name-with-a-dot": ("base/DONE", put("files", "./config.json", "0" * 64)),
    "empty-name": ("base/DONE", put("files", "", "0" * 64)),
    "name-with-a-break": ("base/DONE", put("files", "a\nb", "0" * 64)),
    "short-checksum": ("base/DONE", put("files", "config.json", "0" * 63)),
    "checksum-of-capitals": ("base/DONE", put("files", "config.json", "A" * 64)),
    "checksum-a-number": ("base/DONE", put("files", "config.json", 0)),
    "checksum-null": ("base/DONE", put("files", "config.json", None)),
    "another-checksum": ("base/DONE", put("files", "config.json", "0" * 64)),
    "a-file-that-is-not-there": ("base/DONE", put("files", "more.safetensors", "0" * 64)),
    "files-a-list": ("base/DONE", put("files", [])),
    "meta-a-list": ("base/DONE", put("meta", [])),
    "a-third-key": ("base/DONE", put("version", 2)),
    # of the manifest
    "version-2": ("shards/manifest.json", put("schema_version", 2)),
    "version-a-text": ("shards/manifest.json", put("schema_version", "1")),
    "rows-negative": ("shards/manifest.json", put("rows", -1)),
    "rows-a-fraction": ("shards/manifest.json", put("rows", 39.5)),
    "other-rows": ("shards/manifest.json", put("rows", 39)),
    "shard-outside": ("shards/manifest.json", put("shards", 0, "file", "../x.arrow")),
    "shard-of-other-rows": ("shards/manifest.json", put("shards", 0, "rows", 4000)),
    "another-hash": ("shards/manifest.json", put("hash", "0" * 16)),
    "counts-a-list": ("shards/manifest.json", put("counts", [])),
    # of a stage's state
    "unknown-state": (f"logs/train_{TAG}.json", put("state", "resting")),
    "no-moment": (f"logs/train_{TAG}.json", put("started", "yesterday")),
    "moment-without-zone": (f"logs/train_{TAG}.json", put("started", "2026-01-01T00:00:00")),
    "process-0": (f"logs/train_{TAG}.json", put("pid", 0)),
    "every-process": (f"logs/train_{TAG}.json", put("pid", -1)),
    "process-beyond-all": (f"logs/train_{TAG}.json", put("pid", 1 << 40)),
    "crashes-negative": (f"logs/train_{TAG}.json", put("crashes", -1)),
    "command-a-text": (f"logs/train_{TAG}.json", put("command", "rm -r")),
    # of a train log
    "loss-nan": (f"train_logs/{TAG}.json", put("steps", 0, "loss", float("nan"))),
    "loss-infinite": (f"train_logs/{TAG}.json", put("steps", 0, "loss", float("inf"))),
    "loss-beyond-floats": (f"train_logs/{TAG}.json", put("steps", 0, "loss", 10**400)),
    "loss-a-text": (f"train_logs/{TAG}.json", put("steps", 0, "loss", "1.0")),
    "step-true": (f"train_logs/{TAG}.json", put("steps", 0, "step", True)),
    "steps-an-object": (f"train_logs/{TAG}.json", put("steps", {})),
    "an-unknown-key": (f"train_logs/{TAG}.json", put("meta", "colour", "red")),
    # of a checkpoint
    "step-negative": (f"{CHECKPOINT}/DONE", put("meta", "step", -1)),
    "another-step": (f"{CHECKPOINT}/DONE", put("meta", "step", 4)),
    "step-gone": (f"{CHECKPOINT}/DONE", put("meta", {})),
    "no-ranks": (f"{CHECKPOINT}/DONE", put("meta", "world_size", 0)),
    "no-tensors": (f"{CHECKPOINT}/DONE", put("files", {})),
    "a-slice-that-is-not-there": (f"{CHECKPOINT}/DONE", put("files", "r.safetensors", "0" * 64)),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_a_value_that_cannot_be_is_named(run, case):
    name, change = WRONG_VALUES[case]
    edit(run.root / name, change)
    line = refused(lambda: READERS[name](run), "delete", name.rpartition("/")[0])
    assert name.startswith("checkpoints") == ("to go on from step_0000003" in line)


@pytest.mark.parametrize(
    "value", [3, {"tokens": [1]}, {"tokens": ["a"], "surprisals": []}, {"tokens": [1.5]}]
)
def test_a_probe_that_is_none(run, value):
    edit(run.base / "DONE", put("meta", "probe", value))
    refused(lambda: Probe.left_in(run.base), "base/DONE: meta.probe", "to export it again")


# --- checkpoints


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def log_of(run, steps: int, **meta) -> None:
    log = TrainLog.read(run.train_log(TAG))
    entries = [step_entry(k) for k in range(steps)]
    TrainLog(meta=log.meta.model_copy(update=meta), steps=entries).write(run.train_log(TAG))


SLICE = f"{CHECKPOINT}/rank_00000_000.safetensors"
LOSSES = {
    "slice-flipped": (lambda run: flip(run.root / SLICE), SLICE),
    "slice-cut": (lambda run: cut(run.root / SLICE), SLICE),
    "slice-gone": (lambda run: (run.root / SLICE).unlink(), SLICE),
    "slice-empty": (lambda run: (run.root / SLICE).write_bytes(b""), SLICE),
    "done-gone": (lambda run: (run.root / CHECKPOINT / "DONE").unlink(), "DONE is gone"),
    "log-gone": (lambda run: run.train_log(TAG).unlink(), TAG),
    "log-of-no-steps": (lambda run: log_of(run, 0), "holds 0 of the 6 steps"),
    "log-of-5-steps": (lambda run: log_of(run, 5), "holds 5 of the 6 steps"),
    "log-of-2-steps": (lambda run: log_of(run, 2), "holds 2 of the 6 steps"),
    "log-of-another-plan": (lambda run: edit_plan_hash(run), "of plan other"),
}
STARTS_OVER = ("log-gone", "log-of-no-steps", "log-of-2-steps", "log-of-another-plan")


def edit_plan_hash(run) -> None:
    edit(run.train_log(TAG), put("meta", "plan_hash", "other"))


@pytest.mark.parametrize("case", LOSSES)
def test_what_a_training_goes_on_from_is_named_and_the_one_before_offered(run, case):
    lose, word = LOSSES[case]
    plan_hash = TrainLog.read(run.train_log(TAG)).meta.plan_hash
    lose(run)

    def look():
        return newest(run.checkpoints(TAG), plan_hash, run.train_log(TAG))

    line = refused(look, word, "delete")
    assert ("to start the training over" in line) == (case in STARTS_OVER), line
    assert ("to go on from step_0000003" in line) == (case not in STARTS_OVER), line
    # and what it says helps
    shutil.rmtree(run.root / CHECKPOINT)
    if case in STARTS_OVER:
        shutil.rmtree(run.root / f"checkpoints/{TAG}/step_0000003")
        assert look() is None
    else:
        assert look().name == "step_0000003"


def test_a_log_that_is_longer_than_the_checkpoint_is_no_damage(run):
    assert resume(run).name == "step_0000006"  # of 8 steps that were logged


def write_slices(tensors: dict, first: str | None):
    def write(path) -> None:
        save_file(tensors, path, {"first": first} if first is not None else None)

    return write


FOREIGN_SLICES = {
    "not-safetensors": lambda path: path.write_bytes(b"x" * 64),
    "pickle": lambda path: torch.save({"w": torch.zeros(1)}, path),
    "header-of-2**60": lambda path: path.write_bytes((1 << 60).to_bytes(8, "little")),
    "no-begins": write_slices({"fp32/w": torch.zeros(4)}, None),
    "begins-no-json": write_slices({"fp32/w": torch.zeros(4)}, "{"),
    "begins-a-list": write_slices({"fp32/w": torch.zeros(4)}, "[0]"),
    "begins-negative": write_slices({"fp32/w": torch.zeros(4)}, '{"fp32/w": -1}'),
    "begins-of-another-tensor": write_slices({"fp32/w": torch.zeros(4)}, '{"fp32/v": 0}'),
}


@pytest.mark.parametrize("case", FOREIGN_SLICES)
def test_sealed_files_that_hold_no_slices(run, case):
    path = run.root / SLICE
    FOREIGN_SLICES[case](path)
    files.seal(run.root / CHECKPOINT, files.read_done(run.root / CHECKPOINT))
    refused(lambda: _Slices(run.root / CHECKPOINT), SLICE, "delete")


@pytest.mark.parametrize("numel, first", [(5, 0), (4, 1), (1, 9)])
def test_a_checkpoint_of_other_tensors(run, numel, first):
    with _Slices(run.root / CHECKPOINT) as slices:
        assert len(slices.read("fp32/w", 1, 3)) == 3
        refused(lambda: slices.read("fp32/w", first, numel), "fp32/w", "other tensors", "delete")
        refused(lambda: slices.read("fp32/v", 0, 1), "0 of 1 elements of fp32/v")


# --- plans


def rewrite(path, **change) -> None:
    with np.load(path) as file:
        arrays = {**dict(file), **change}
    with open(path, "wb") as file:
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})


def packed(path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez_compressed(path, **arrays)


def crc_broken(path) -> None:
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("rows.npy").header_offset + 300
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


WRONG_PLANS = {
    "rows-gone": dict(rows=None),
    "key-gone": dict(key=None),
    "an-array-more": dict(more=np.zeros(1)),
    "rows-of-floats": dict(rows=np.zeros(40)),
    "rows-of-objects": dict(rows=np.array([{}, []], dtype=object)),
    "rows-of-two-axes": dict(rows=np.zeros((4, 10), np.int32)),
    "rows-empty": dict(rows=np.zeros(0, np.int32)),
    "a-row-that-is-not-there": dict(rows=np.arange(1, 41, dtype=np.int32)),
    "a-row-negative": dict(rows=np.arange(-1, 39, dtype=np.int32)),
    "bins-beyond-the-rows": dict(bin_starts=np.arange(0, 48, 4)),
    "bins-that-fall": dict(bin_starts=np.arange(40, -4, -4)),
    "one-bin-start": dict(bin_starts=np.zeros(1, np.int64)),
    "no-bins": dict(bin_starts=np.zeros(0, np.int64)),
    "steps-beyond-the-bins": dict(step_starts=np.arange(0, 66, 6)),
    "an-epoch-less": dict(epochs=np.zeros(4, np.int32)),
    "epochs-that-fall": dict(epochs=np.array([1, 1, 0, 0, 0], np.int32)),
    "supervised-negative": dict(supervised_tokens=np.full(5, -1)),
    "capacity-0": dict(capacity=0),
    "capacity-a-text": dict(capacity="32"),
    "capacity-an-array": dict(capacity=np.array([32])),
    "costs-of-fewer-rows": dict(costs=np.zeros(39, np.int64)),
    "key-a-number": dict(key=1),
    "packed": packed,
    "one-bit": crc_broken,
    "an-array-alone": lambda path: np.save(open(path, "wb"), np.zeros(3)),  # noqa: SIM115
    "another-zip": lambda path: zipfile.ZipFile(path, "w").writestr("rows.npy", "x"),
}


@pytest.mark.parametrize("case", WRONG_PLANS)
def test_a_plan_that_is_none(run, case):
    path, change = run.plan_of(TAG), WRONG_PLANS[case]
    change(path) if callable(change) else rewrite(path, **change)
    refused(lambda: Plan.load(path), f"plans/{TAG}.npz", "delete it")
    refused(lambda: kept_plan(path, {}, lambda: None), f"plans/{TAG}.npz", "delete it")


# --- shards


@pytest.fixture
def shard(run):
    return run.shards / "shard_00000.arrow"


def other_columns(path) -> None:
    table = pa.table({"id": ["a"] * 40})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


FOREIGN_SHARDS = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "text": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    "gone": lambda path: path.unlink(),
    "a-directory": lambda path: (path.unlink(), path.mkdir()),
    "other-columns": other_columns,
}


@pytest.mark.parametrize("case", FOREIGN_SHARDS)
def test_a_shard_that_was_not_written(run, shard, case):
    FOREIGN_SHARDS[case](shard)
    refused(lambda: ShardStore(run.shards), "shard_00000.arrow", "delete")
    refused(lambda: files.verify(run.shards), "shard_00000.arrow", "delete")


def start_vllm(model):
    VllmEngine(model, InferenceConfig())


def start_transformers(model):
    TransformersEngine(model, InferenceConfig())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_flipped_bytes_of_a_model(run, name):
    flip(run.base / name)
    for start in (check_files, start_vllm, start_transformers):
        refused(lambda s=start: s(run.base), f"base/{name}", "checksum differs", "delete")


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "model-00001.safetensors", "x.bin", "modeling.py"]
)
def test_a_file_that_would_be_loaded_and_that_nobody_sealed(run, name):
    (run.base / name).write_text("{}")
    refused(lambda: check_files(run.base), f"base/{name}", "remove it")


# --- commands on a directory that is no run, or a damaged one

SCRIPTS = ["status.py", "report.py", "audit.py", "publish.py"]
NO_RUNS = {
    "missing": lambda root: root,
    "empty": lambda root: root.mkdir(),
    "a-file": lambda root: root.write_text("x"),
    "a-loop-of-links": lambda root: root.symlink_to(root),
    "a-link-to-nothing": lambda root: root.symlink_to(root.with_name("gone")),
    "config-a-directory": lambda root: (root / "config.yaml").mkdir(parents=True),
    "config-empty": lambda root: config(root, ""),
    "config-a-list": lambda root: config(root, "[1]"),
    "config-of-other-keys": lambda root: config(root, "colour: red"),
    "config-no-yaml": lambda root: config(root, "a: [b"),
}


def config(root, text: str) -> None:
    root.mkdir()
    (root / "config.yaml").write_text(text)


@pytest.mark.parametrize("case", NO_RUNS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_on_what_is_no_run(capfd, monkeypatch, tmp_path, script, case):
    root = tmp_path / "no-run"
    NO_RUNS[case](root)
    before = sorted(tmp_path.rglob("*"))
    more = ["--dry-run"] if script == "publish.py" else []
    code, line = launch(capfd, monkeypatch, script, str(root), *more)
    assert code == 2
    one_line(line, "error: ", "no-run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["n" * 300, "no-run/" * 700, "~/no-run", "no\trun"])
def test_a_run_whose_name_is_none(name, tmp_path):
    refused(lambda: open_run(tmp_path / name), "no config.yaml, so not a run")


@pytest.mark.parametrize(
    "script, name",
    [
        ("status.py", f"logs/train_{TAG}.json"),
        ("report.py", f"train_logs/{TAG}.json"),
        ("report.py", "shards/manifest.json"),
        ("report.py", "shards/DONE"),
        ("audit.py", f"train_logs/{TAG}.json"),
        ("audit.py", f"plans/{TAG}.npz"),
        ("audit.py", "shards/manifest.json"),
        ("audit.py", "shards/DONE"),
    ],
)
def test_a_command_on_a_damaged_run(capfd, monkeypatch, run, script, name):
    (run.root / name).write_bytes(b"\x80\x04]q.")
    code, line = launch(capfd, monkeypatch, script, str(run.root))
    assert code == 2
    one_line(line, "error: ", name)
    if name.startswith("shards"):
        one_line(line, f"--recipe {run.config} --round 0")


def test_an_unfinished_run_is_audited_as_such(made):
    findings = audit(*made)
    assert any("not trained" in fault for finding in findings for fault in finding.faults)
