"""Arguments, grids and environments that cannot be: exit code 2, and a last line that says what was
expected.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from abscot.common import log
from abscot.common.errors import UserError
from abscot.evaluation.grid import Grid
from abscot.pipeline import launchers
from abscot.pipeline.preflight_lengths import _read_lengths
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import claim
from kit.corpus import launch, one_line, refused

DIGITS = "9" * 5000
TRACES = ["traces.py", "--phase", "A"]
ARGUMENTS = {  # name -> (script and arguments, words of the last line)
    "round_square": (["round.py", "--round", "²"], ["--round ²", "1 to 3"]),
    "round_arabic": (["round.py", "--round", "٣"], ["--round ٣", "1 to 3"]),
    "round_minus": (["round.py", "--round=-1"], ["--round -1", "1 to 3"]),
    "round_list": (["round.py", "--round", "all,1"], ["--round all,1"]),
    "round_float": (["round.py", "--round", "1.0"], ["--round 1.0"]),
    "round_spaces": (["round.py", "--round", " 1 "], ["1 to 3"]),
    "round_underscore": (["round.py", "--round", "0_1"], ["1 to 3"]),
    "round_empty": (["round.py", "--round", ""], ["1 to 3"]),
    "round_large": (["round.py", "--round", "4"], ["--round 4", "1 to 3"]),
    "round_word": (["round.py", "--round", "ALL"], ["expected all"]),
    "round_missing": (["round.py"], ["required: --round"]),
    "round_no_value": (["round.py", "--round"], ["--round: expected one argument"]),
    "round_shortened": (["round.py", "--rou", "1"], ["required: --round"]),
    "round_unknown": (["round.py", "--round", "1", "--fast"], ["unrecognized arguments: --fast"]),
    "traces_round_0": ([*TRACES, "--round", "0"], ["--round", "from 1", "'0'"]),
    "traces_round_minus": ([*TRACES, "--round=-1"], ["--round", "'-1'"]),
    "traces_round_square": ([*TRACES, "--round", "²"], ["--round", "whole number"]),
    "traces_round_large": ([*TRACES, "--round", "99"], ["--round 99: expected 1 to 3"]),
    "traces_round_digits": ([*TRACES, "--round", DIGITS], ["--round", "whole number"]),
    "traces_of_0": ([*TRACES, "--round", "1", "--of", "0"], ["--of", "from 1", "'0'"]),
    "traces_of_minus": ([*TRACES, "--round", "1", "--of=-4"], ["--of", "'-4'"]),
    "traces_of_float": ([*TRACES, "--round", "1", "--of", "2.0"], ["--of", "'2.0'"]),
    "traces_of_digits": ([*TRACES, "--round", "1", "--of", DIGITS], ["--of", "whole number"]),
    "traces_shard_minus": ([*TRACES, "--round", "1", "--shard=-1"], ["--shard", "from 0", "'-1'"]),
    "traces_shard_past": (
        [*TRACES, "--round", "1", "--shard", "2", "--of", "2"],
        ["--shard 2: expected 0 to 1", "--of 2"],
    ),
    "traces_shard_of_one": (
        [*TRACES, "--round", "1", "--shard", "1", "--set", "traces.shards=1"],
        ["--shard 1", "--of 1"],
    ),
    "traces_shard_of_none": (
        [*TRACES, "--round", "1", "--shard", "1"],
        ["--shard 1: expected --of N too"],
    ),
    "traces_shard_empty": ([*TRACES, "--round", "1", "--shard", ""], ["--shard", "''"]),
    "traces_phase": (["traces.py", "--round", "1", "--phase", "C"], ["invalid choice: 'C'"]),
    "traces_no_phase": (["traces.py", "--round", "1"], ["required: --phase"]),
    "train_round_0": (["train.py", "--phase", "A", "--round", "0"], ["--round", "from 1"]),
    "train_round_square": (["train.py", "--phase", "A", "--round", "²"], ["--round"]),
    "train_round_plus": (["train.py", "--phase", "A", "--round", "+1"], ["--round", "'+1'"]),
    "train_phase": (["train.py", "--phase", "a"], ["--phase a: expected one of A, B"]),
    "train_phase_empty": (["train.py", "--phase", ""], ["--phase : expected one of A, B"]),
    "train_left_out": (
        ["train.py", "--phase", "A", "--round", "2", "--set", "schedule=grounded"],
        ["--round 2: the schedule leaves it out", "round 1 A, round 1 B, round 2 B, round 3 B"],
    ),
    "traces_left_out": (
        [*TRACES, "--round", "3", "--set", "schedule=grounded"],
        ["--round 3: the schedule leaves it out"],
    ),
    "codebook_of_none": (
        ["codebook.py", "--set", "schedule=paper"],
        ["no phase of this recipe has grounded traces", "schedule=grounded"],
    ),
    "train_local_rank": (["train.py", "--phase", "A", "--local_rank", "x"], ["--local_rank"]),
    "cell_minus": (["evaluate.py", "--cell=-1"], ["--cell", "from 0", "'-1'"]),
    "cell_square": (["evaluate.py", "--cell", "²"], ["--cell", "whole number"]),
    "cell_past": (["evaluate.py", "--cell", "99"], ["cell 99: the grid has 4", "--array=0-3"]),
    "cell_digits": (["evaluate.py", "--cell", DIGITS], ["--cell", "whole number"]),
    "cell_and_model": (["evaluate.py", "--cell", "0", "--model", "base"], ["--cell", "leave out"]),
    "cell_and_traces": (["evaluate.py", "--cell", "0", "--then-traces"], ["--cell", "leave out"]),
    "model": (["evaluate.py", "--model", "round9"], ["round9: expected all, one of base"]),
    "model_empty": (["evaluate.py", "--model", ""], ["--model", "one of base"]),
    "mode": (["evaluate.py", "--mode", "loud"], ["mode loud: expected one of"]),
    "mode_twice": (
        ["evaluate.py", "--mode", "abstract", "--mode", "abstract"],
        ["--mode: abstract is given twice"],
    ),
    "benchmark": (["evaluate.py", "--benchmark", "math"], ["benchmark math: expected one of"]),
    "benchmark_twice": (
        ["evaluate.py", "--benchmark", "world", "--benchmark", "world"],
        ["--benchmark: world is given twice"],
    ),
    "grid_missing": (["evaluate.py", "--grid", "no/such.yaml"], ["no/such.yaml", "seeds"]),
    "grid_directory": (["evaluate.py", "--grid", "/tmp", "--cells"], ["/tmp", "seeds"]),
    "grid_device": (["evaluate.py", "--grid", "/dev/zero", "--cells"], ["/dev/zero", "seeds"]),
    "grid_long": (["evaluate.py", "--grid", "x" * 300, "--cells"], ["File name too long"]),
    "world_0": (["plan.py", "--world", "0"], ["--world", "from 1", "'0'"]),
    "world_minus": (["plan.py", "--world=-8"], ["--world", "'-8'"]),
    "world_word": (["plan.py", "--world", "eight"], ["--world", "'eight'"]),
    "world_float": (["plan.py", "--world", "1e3"], ["--world", "'1e3'"]),
    "mfu_0": (["plan.py", "--mfu", "0"], ["--mfu 0.0", "at most 1"]),
    "mfu_nan": (["plan.py", "--mfu", "nan"], ["--mfu nan", "at most 1"]),
    "mfu_infinite": (["plan.py", "--mfu", "inf"], ["--mfu inf"]),
    "mfu_percent": (["plan.py", "--mfu", "40"], ["--mfu 40.0"]),
    "mfu_word": (["plan.py", "--mfu", "40%"], ["--mfu", "invalid float"]),
    "scorecard_missing": (["plan.py", "--scorecard", "no.json"], ["no.json", "bench.py gpu"]),
    "mfu_and_scorecard": (
        ["plan.py", "--mfu", "0.4", "--scorecard", "no.json"],
        ["--mfu and --scorecard", "one of them"],
    ),
    "lengths_missing": (["plan.py", "--lengths", "no.csv"], ["no.csv", "prompt,cot,answer"]),
    "status_nothing": (["status.py"], ["required: RUN"]),
    "status_missing": (["status.py", "no/such/run"], ["no/such/run", "not a run"]),
    "status_file": (["status.py", str(ROOT / "README.md")], ["README.md", "not a run"]),
    "status_not_a_run": (["status.py", str(ROOT)], ["not a run"]),
    "status_two": (["status.py", "a", "b"], ["unrecognized arguments: b"]),
    "status_long": (["status.py", "x" * 300], ["not a run"]),
    "audit_missing": (["audit.py", "no/such/run"], ["no/such/run", "not a run"]),
    "audit_long": (["audit.py", "x" * 300], ["not a run"]),
    "report_missing": (["report.py", "no/such/run"], ["no/such/run"]),
    "publish_nothing": (["publish.py", "no/such/run"], ["--repo: expected OWNER/NAME"]),
    "publish_missing": (["publish.py", "no/such/run", "--dry-run"], ["not a run"]),
    "bench_nothing": (["bench.py"], ["required: NAME"]),
    "bench_unknown": (["bench.py", "speed"], ["invalid choice: 'speed'"]),
    "bench_mask_options": (["bench.py", "mask", "--rows", "5"], ["mask takes no options"]),
    "bench_rows_0": (["bench.py", "plan", "--rows", "0"], ["--rows", "from 1"]),
    "bench_rows_minus": (["bench.py", "plan", "--rows=-5"], ["--rows", "'-5'"]),
    "bench_seed": (["bench.py", "plan", "--seed", "x"], ["--seed", "'x'"]),
    "set_nothing": (["round.py", "--round", "1", "--set", "lr"], ["--set lr"]),
    "set_unknown": (["extend.py", "--set", "no_such=1"], ["no_such"]),
    "recipe_missing": (["extend.py", "--recipe", "no/such.yaml"], ["no/such.yaml"]),
    "world_without": (["world.py", "--recipe", "qwen3-4b-lora-5k"], ["no world section"]),
    "extend_word": (["extend.py", "again"], ["unrecognized arguments: again"]),
    "prepare_word": (["prepare.py", "8"], ["unrecognized arguments: 8"]),
    "ask_thinking": (["ask.py", "--thinking", "?"], ["--thinking", "--beside"]),
    "ask_empty": (["ask.py", " "], ["question: expected a question"]),
    "ask_words": (["ask.py", "what", "is"], ["unrecognized arguments: is"]),
    "ask_model": (["ask.py", "--model", "round9", "?"], ["--model round9", "one of base"]),
    "ask_model_empty": (["ask.py", "--model", "", "?"], ["--model : expected one of base"]),
    "ask_model_missing": (["ask.py", "?"], ["final: missing", "launch/round.py"]),
    "ask_beside": (["ask.py", "--beside", "round9", "?"], ["--beside round9", "one of base"]),
    "ask_set": (["ask.py", "--set", "eval.m_max=0", "?"], ["eval.m_max"]),
    "ask_system": (["ask.py", "--system", "a\x07", "?"], ["control characters"]),
    "ladder_word": (["ladder.py", "--rounds", "3"], ["unrecognized arguments: --rounds 3"]),
}


@pytest.mark.parametrize("arguments, words", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_cannot_be(capfd, monkeypatch, tmp_path, arguments, words):
    script, *rest = arguments
    with_recipe = script not in ("status.py", "audit.py", "bench.py") and "--recipe" not in rest
    root = ["--set", f"run_root={tmp_path}"] if with_recipe else []
    code, line = launch(capfd, monkeypatch, script, *rest, *root)
    assert code == 2, line
    one_line(line, *words)
    assert list(tmp_path.iterdir()) == [], "a refused command writes nothing"


GRIDS = {
    "empty": ("", ["expected keys models, benchmarks, seeds", "NoneType"]),
    "comment": ("# nothing\n", ["expected keys"]),
    "list": ("[base]", ["expected keys", "list"]),
    "word": ("base", ["expected keys", "str"]),
    "number": ("4", ["expected keys", "int"]),
    "not_yaml": ("{", ["grid.yaml:1: not YAML"]),
    "tab": ("models:\n\t- base", ["grid.yaml:2: not YAML"]),
    "twice": ("models: [base]\nmodels: [final]", ["grid.yaml:2", "second time"]),
    "tag": ("models: !!python/object/apply:os.system [true]", ["tag"]),
    "alias": ("a: &a [base]\nmodels: *a", ["alias"]),
    "bomb": ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", ["alias"]),
    "deep": ("models: " + "[" * 1000, ["grid.yaml"]),
    "documents": ("models: [base]\n---\nmodels: [final]", ["second document"]),
    "key_misspelt": ("model: [base]", ["unknown key model"]),
    "key_number": ("1: [base]", ["unknown key 1"]),
    "key_list": ("? [a]\n: 1", ["grid.yaml:1"]),
    "key_long": ("k" * 2000 + ": 1", ["grid.yaml"]),
    "key_with_line_break": ('"a\\nb": 1', ["a\\nb"]),
    "models_word": ("models: base", ["models: expected a list of names, found 'base'"]),
    "models_none": ("models:", ["models: expected a list of names, found None"]),
    "models_empty": ("models: []", ["models: expected a list of names"]),
    "models_numbers": ("models: [1, 2]", ["models: expected a list of names"]),
    "models_nested": ("models: [[base]]", ["models: expected a list of names"]),
    "models_null": ("models: [base, null]", ["models: expected a list of names"]),
    "models_mapping": ("models: {base: 1}", ["models: expected a list of names"]),
    "models_twice": ("models: [base, final, base]", ["models: 'base' is named twice"]),
    "models_unknown": ("models: [round9]", ["round9: expected all, one of"]),
    "models_all": ("models: [all]", ["all: expected"]),
    "models_long": ("models: [" + "m" * 100_000 + ", 3]", ["models: expected a list of names"]),
    "benchmarks_word": ("benchmarks: world", ["benchmarks: expected a list of names"]),
    "benchmarks_empty": ("benchmarks: []", ["benchmarks: expected a list of names"]),
    "benchmarks_twice": ("benchmarks: [world, world]", ["benchmarks: 'world' is named twice"]),
    "benchmarks_unknown": ("benchmarks: [math]", ["benchmarks: math: expected one of world"]),
    "benchmarks_long": ("benchmarks: [" + "b" * 9000 + "]", ["benchmarks: bbb"]),
    "seeds_true": ("seeds: true", ["seeds", "found True"]),
    "seeds_false": ("seeds: false", ["seeds", "found False"]),
    "seeds_0": ("seeds: 0", ["seeds", "found 0"]),
    "seeds_minus": ("seeds: -4", ["seeds", "found -4"]),
    "seeds_float": ("seeds: 4.0", ["seeds", "found 4.0"]),
    "seeds_infinite": ("seeds: .inf", ["seeds", "found inf"]),
    "seeds_word": ("seeds: four", ["seeds", "found 'four'"]),
    "seeds_list": ("seeds: [0, 1]", ["seeds", "found [0, 1]"]),
    "seeds_null": ("seeds:", ["seeds", "found None"]),
    "seeds_many": ("seeds: 1000000000", ["seeds", "10,000"]),
    "seeds_digits": (f"seeds: {DIGITS}", ["grid.yaml"]),
    "seeds_greedy": ("seeds: 4", ["greedy answers are all the same"]),
}


@pytest.mark.parametrize("text, words", GRIDS.values(), ids=GRIDS)
def test_grids_that_cannot_be(tmp_path, text, words):
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    refused(lambda: Grid.of(load_recipe(None, []), str(file)), *words)


@pytest.mark.parametrize(
    "content",
    [b"\x00\x01", b"models: [b\xe4r]", b"\xff\xfe", bytes(2 << 20)],
    ids=["control", "latin1", "utf16", "large"],
)
def test_grids_that_are_no_text(tmp_path, content):
    file = tmp_path / "grid.yaml"
    file.write_bytes(content)
    refused(lambda: Grid.of(load_recipe(None, []), str(file)), str(file))


def test_a_grid_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "grid.yaml")
    refused(lambda: Grid.of(load_recipe(None, []), str(tmp_path / "grid.yaml")), "no file")


LENGTHS = {
    "empty": b"",
    "words": b"prompt,cot,answer\n",
    "two_columns": b"1,2\n",
    "four_columns": b"1,2,3,4\n",
    "ragged": b"1,2,3\n1,2\n",
    "float": b"1.5,2,3\n",
    "nan": b"nan,2,3\n",
    "minus": b"1,-2,3\n",
    "zeros": b"0,0,0\n",
    "huge": b"9223372036854775807,1,1\n",
    "more_than_64_bits": b"99999999999999999999999,1,1\n",
    "binary": bytes(range(256)),
    "utf16": "1,2,3\n".encode("utf-16"),
    "semicolons": b"1;2;3\n",
    "json": b'{"prompt": 1}\n',
}


@pytest.mark.parametrize("text", LENGTHS.values(), ids=LENGTHS)
def test_lengths_that_cannot_be(tmp_path, text):
    file = tmp_path / "lengths.csv"
    file.write_bytes(text)
    refused(lambda: _read_lengths(file), str(file), "prompt,cot,answer")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, Path.touch], ids=["fifo", "dir", "empty"])
def test_lengths_that_are_no_file(tmp_path, make):
    make(tmp_path / "x")
    refused(lambda: _read_lengths(tmp_path / "x"), "prompt,cot,answer")


@pytest.mark.parametrize(
    "command", ["apptainer exec 'x.sif", 'a "b', "a \\"], ids=["single", "double", "backslash"]
)
def test_a_container_whose_quotes_are_open(monkeypatch, command):
    monkeypatch.setenv("ABSCOT_CONTAINER", command)
    refused(launchers.container, "ABSCOT_CONTAINER", "slurm/site.sh")


ENVIRONMENTS = [
    ("SLURM_NTASKS", "two", launchers.allocation),
    ("SLURM_NTASKS", "-1", launchers.allocation),
    ("SLURM_JOB_NUM_NODES", "2(x1)", launchers.allocation),
    ("SLURM_STEP_NUM_TASKS", "²", launchers.take_ranks_from_slurm),
    ("SLURM_RESTART_COUNT", "1e3", launchers.job_restarts),
    ("OMPI_COMM_WORLD_SIZE", "many", launchers.mpi_launch),
    ("PMI_RANK", "0x1", launchers.mpi_launch),
]


@pytest.mark.parametrize(
    "name, value, read", ENVIRONMENTS, ids=[f"{n}={v}" for n, v, _ in ENVIRONMENTS]
)
def test_a_launcher_that_says_nonsense(monkeypatch, name, value, read):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv(name, value)
    refused(read, name, "expected a whole number from the launcher")


SUBMISSIONS = {
    "nothing": ([], "no recipe given"),
    "nodes_0": (["tiny-cpu", "--nodes", "0"], "expected whole numbers"),
    "nodes_word": (["tiny-cpu", "--nodes", "two"], "expected whole numbers"),
    "nodes_square": (["tiny-cpu", "--nodes", "²"], "expected whole numbers"),
    "nodes_nothing": (["tiny-cpu", "--nodes"], "--nodes: expected a value"),
    "gpus_minus": (["tiny-cpu", "--gpus-per-node", "-1"], "expected whole numbers"),
    "unknown": (["tiny-cpu", "--gpu", "1"], "--gpu: expected --nodes"),
    "two_recipes": (["tiny-cpu", "other", "--dry-run"], "other: expected one recipe"),
    "missing": (["no/such.yaml", "--dry-run"], "no/such.yaml"),
    "set": (["tiny-cpu", "--set", "no_such=1", "--dry-run"], "no_such"),
}


@pytest.mark.parametrize("arguments, says", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_submissions_that_cannot_be(arguments, says):
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "submit.sh", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    one_line(done.stderr.strip().splitlines()[-1], "error: ", says)


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}


DRY_RUN = ["round.py", "--round", "0", "--dry-run"]


@pytest.mark.parametrize(
    "arguments, utf8, code, says",
    [
        (DRY_RUN, "0", 0, "k?se"),
        (DRY_RUN, "1", 0, "k?se"),
        (DRY_RUN, None, 0, "k?se"),
        (["round.py", "--round", "ü"], "0", 2, "--round ?: expected"),
        (["plan.py"], None, 0, "steps"),
        (["train.py", "--phase", "größe"], "0", 2, "--phase gr??e: expected"),
    ],
    ids=["dry_run", "dry_run_utf8", "dry_run_default", "round", "plan", "train"],
)
def test_a_terminal_of_ascii_alone(tmp_path, arguments, utf8, code, says):
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONUTF8"}
    environ |= ASCII | ({"PYTHONUTF8": utf8} if utf8 else {})
    script, *rest = arguments
    command = [sys.executable, str(ROOT / "launch" / script), *rest]
    keys = ["--set", f"run_root={tmp_path}", "--set", "name=käse"]
    done = subprocess.run([*command, *keys], env=environ, capture_output=True)
    output = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == code, output
    assert "Traceback" not in output and says in output


def test_progress_on_a_terminal_of_ascii_alone(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    for name in ("stdout", "stderr"):
        terminal = Terminal(io.BytesIO(), encoding="ascii", errors="replace")
        monkeypatch.setattr(sys, name, terminal)
    with log.Progress(3, "Schritte", "käse … 木") as progress:
        for _ in range(3):
            progress.update(1, "größer")
    shown = sys.stderr.buffer.getvalue() + sys.stdout.buffer.getvalue()
    assert b"k?se" in shown


@pytest.mark.parametrize(
    "script, arguments",
    [("round.py", ["--round", "all", "--dry-run"]), ("plan.py", []), ("status.py", ["{run}"])],
    ids=["round", "plan", "status"],
)
def test_an_output_that_is_full(tmp_path, script, arguments):
    run = claim(load_recipe(None, [f"run_root={tmp_path}"]))
    arguments = [word.format(run=run.root) for word in arguments]
    command = [sys.executable, str(ROOT / "launch" / script), *arguments]
    with open("/dev/full", "w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    one_line(done.stderr.strip(), "error: standard output", "No space left on device")


def test_an_output_that_nobody_reads():
    command = f"{sys.executable} {ROOT}/launch/round.py --round all --dry-run | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_the_line_of_a_user_error_is_printable():
    assert str(UserError("a\nb\x1b[31m\ud800")).isprintable()
