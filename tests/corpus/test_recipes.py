"""Recipes that cannot be: each is refused in one line, with the file and line or the --set that it
comes from.
"""

import os

import pytest

from abscot.recipe.load import load_recipe
from abscot.recipe.run import claim
from kit.corpus import refused

# Text of a file -> words of the line; `:3:` is the line number that it must name.
FILES = {
    "empty": ("", "expected a mapping of recipe keys"),
    "only a comment": ("# nothing\n", "expected a mapping"),
    "a list": ("- name: x\n", "expected a mapping"),
    "a word": ("tiny-cpu\n", "expected a mapping", "tiny-cpu"),
    "a number": ("3\n", "expected a mapping"),
    "null": ("null\n", "expected a mapping"),
    "unknown key": ("name: x\nnaem: y\n", ":2:", "unknown key naem", "name"),
    "unknown key below": ("train:\n  lr: 1e-4\n  learning_rate: 1\n", ":3:", "train.learning_rate"),
    "key of another section": ("traces:\n  lr: 1\n", ":2:", "traces.lr"),
    "key that has moved": ("train:\n  beta1: 0.9\n", ":2:", "optimizer.beta1"),
    "eval key that has moved": ("eval:\n  temperature: 1\n", ":2:", "eval.answer_temperature"),
    "key in another unit": (
        "inference:\n  chunk_rows: 9\n",
        ":2:",
        "inference.chunk_tokens, in tok",
    ),
    "section twice": (
        "train:\n  lr: 1e-4\nname: x\ntrain:\n  epochs: 2\n",
        ":4:",
        "'train'",
        "line 1",
    ),
    "key twice": ("name: x\nname: y\n", ":2:", "second time"),
    "tab": ("train:\n\tlr: 1\n", ":2:", "not YAML"),
    "open bracket": ("eval: {modes: [abstract\n", "not YAML"),
    "open quote": ("name: 'x\n", "not YAML"),
    "two colons": ("name: a: b\n", ":1:", "not YAML"),
    "wrong indent": ("train:\n  lr: 1\n epochs: 2\n", ":3:", "not YAML"),
    "two documents": ("name: x\n---\nname: y\n", ":2:", "second document"),
    "alias": ("name: &a x\nrun_root: *a\n", ":2:", "alias"),
    "alias bomb": (
        "a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n",
        ":2:",
        "alias",
    ),
    "merge key": ("<<: {name: x}\n", ":1:", "unknown key <<"),
    "python tag": ("name: !!python/object/apply:os.system [id]\n", ":1:", "tag"),
    "binary tag": ("name: !!binary aGVsbG8=\n", ":1:", "tag"),
    "set tag": ("eval:\n  modes: !!set {abstract}\n", ":2:", "tag"),
    "timestamp tag": ("name: !!timestamp 2026-01-01\n", ":1:", "tag"),
    "deep lists": ("a: " + "[" * 5000 + "]" * 5000, ":1:", "deep"),
    "deep mappings": ("".join(f"{' ' * i}a:\n" for i in range(500)), "deep"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000 + "\n", ":1:", "cannot be read"),
    "a number of 4,000 digits": ("seed: " + "9" * 4000 + "\n", ":1:", "seed"),
    "a fraction of 5,000 digits": ("train:\n  lr: -0." + "3" * 5000 + "\n", ":2:", "train.lr"),
    "more than the largest number": ("train:\n  lr: 1e400\n", ":2:", "finite"),
    "nan": ("model:\n  new_rows_std: .nan\n", ":2:", "finite"),
    "infinity": ("train:\n  grad_clip: .inf\n", ":2:", "finite"),
    "date": ("seed: 2026-11-25\n", ":1:", "seed", "whole number"),
    "time": ("seed: 12:30:45\n", ":1:", "seed", "whole number"),
    "hexadecimal": ("seed: 0x1F\n", ":1:", "seed"),
    "yes": ("model:\n  random_init: yes\n", ":2:", "true or false"),
    "on": ("model:\n  trust_remote_code: on\n", ":2:", "true or false"),
    "one for true": ("model:\n  trust_remote_code: 1\n", ":2:", "true or false"),
    "true for a number": ("rounds: true\n", ":1:", "whole number"),
    "text for a number": ("rounds: '3'\n", ":1:", "whole number"),
    "a fraction for a whole number": ("rounds: 3.0\n", ":1:", "whole number"),
    "a number for text": ("name: 3\n", ":1:", "expected text"),
    "a list for text": ("name: [x]\n", ":1:", "expected text"),
    "a word for a list": ("eval:\n  modes: abstract\n", ":2:", "expected a list"),
    "a mapping for a list": ("eval:\n  modes: {a: b}\n", ":2:", "expected a list"),
    "a list for a mapping": ("eval:\n  files: [a]\n", ":2:", "expected a mapping"),
    "a value for a section": ("train: 5\n", ":1:", "expected a mapping"),
    "null for a section": ("train:\nname: x\n", ":1:", "expected a mapping"),
    "a list for a section": ("train: [lr]\n", ":1:", "expected a mapping"),
    "null for a number": ("rounds:\n", ":1:", "rounds", "nothing"),
    "a key that is a list": ("? [a, b]\n: c\n", ":1:", "key"),
    "a key that is a number": ("1: x\n", ":1:", "unknown key 1"),
    "a control character": ("name: x\x01\n", ":1:", "not allowed"),
    "an escaped control character": ('run_root: "a\\0b"\n', ":1:", "control characters"),
    "a line break in a path": ('run_root: "a\\nb"\n', ":1:", "line of text"),
    "half a character": ('name: "\\ud800"\n', "Unicode"),
    "an unknown mode": ("eval:\n  modes: [abstract, nonsense]\n", ":2:", "eval.modes[1]"),
    "nearly a mode": ("eval:\n  modes: [abstrakt]\n", ":2:", "did you mean abstract"),
    "a mode twice": ("eval:\n  modes: [abstract, abstract]\n", ":2:", "twice"),
    "an unknown benchmark": ("eval:\n  benchmarks: [math50]\n", ":2:", "math500"),
    "an unknown phase": ("train:\n  phase_lr: {C: 1e-4}\n", ":2:", "train.phase_lr.C"),
    "epochs that are neither one nor a list": (
        "train:\n  phase_epochs: {A: x}\n",
        ":2:",
        "train.phase_epochs.A: expected a whole number from 0 to 10,000, or a list of them, one a "
        'round, found "x"',
    ),
    "epochs of a round that are no number": (
        "train:\n  phase_epochs:\n    A:\n    - 1\n    - x\n",
        ":3:",
        "train.phase_epochs.A: expected a whole number from 0 to 10,000, or a list of them, one a "
        'round, found [1, "x"]',
    ),
    "an end by a channel that is not measured": (
        "world: {}\ntrain:\n  until_channel: 0.9\n",
        "train.channel_rows: expected 1 or more",
    ),
    "an unknown tracker": ("trackers: [mlflow]\n", ":1:", "trackers[0]"),
    "a file for no benchmark": ("eval:\n  files: {maths: x.jsonl}\n", ":2:", "eval.files.maths"),
    "no size of a batch": ("train:\n  global_batch_examples: null\n", "exactly one of"),
    "two sizes of a batch": ("train:\n  global_batch_tokens: 9\n", "exactly one of"),
    "answers longer than the window": (
        "world: {}\ninference:\n  max_model_len_tokens: 4096\n",
        "less than the window",
    ),
    "a world that is not there": ("model:\n  base: world\n", "needs a section"),
    "a trace that fills its bin": (
        "world: {}\ntraces:\n  m_max: 500\ntrain:\n  capacity_tokens: 400\n",
        ":5:",
        "room for a trace",
    ),
}
BYTES = {
    "binary": (bytes(range(256)), ":2:", "not UTF-8"),
    "latin-1": ("name: x\n# für\n".encode("latin-1"), ":2:", "not UTF-8"),
    "UTF-16": ("name: x\n".encode("utf-16"), "not UTF-8"),
    "gzip": (bytes.fromhex("1f8b0800000000000003"), "not UTF-8"),
    "zeros": (b"\0" * 100, "not allowed"),
    "two megabytes": (b"# " + b"x" * (2 << 20), "2,097,154 bytes"),
}
# Keys and values that make no sense, each alone.
VALUES = r"""
name= name=. name=.. name=.hidden name=a\b name=a/b name=/tmp/x name=-x name='*' name=null
name=[] run_root= run_root=null run_root=1 seed=-1 seed=1.5 seed=9223372036854775808 seed=null
seed=true rounds=0 rounds=-1 rounds=1e3 rounds=1000000000 rounds=two staging=none codebook_size=0
codebook_size=-64 codebook_size=1024 hang_minutes=0 hang_minutes=-1 hang_minutes=.inf
hang_minutes=soon trackers=[wandb,wandb] trackers=wandb world=5 world.rows=0 world.rows=-1
world.rows=1000000000000 world.heldout=0 world.swaps=0 world.swaps=1000 world.cups=2
world.cups=27 world.hidden_size=100 world.hidden_size=0 world.hidden_size=-64
world.num_layers=0 world.base_steps=0 world.base_lr=0 world.base_lr=-1 world.base_lr=5
world.base_thinking_rows=0 world.base_direct_rows=-3 model.base= model.base=null model.base=[]
model.dtype=fp16 model.dtype=16 model.attention=flash model.attention=flex
model.gradient_checkpointing=maybe train.deterministic=cuda
model.new_rows=random model.new_rows_std=-1 model.new_rows_std=.nan model.new_rows_std=.inf
model.new_rows_std=1e6 model.loss_chunk_tokens=0 model.loss_chunk_tokens=-1 data.source=
data.source=null data.format=alpaca data.split= data.rows=0 data.rows=-5 data.rows=5e3
data.rows=all data.min_cot_chars=-1 data.max_row_bytes=0 data.max_row_bytes=-1 data.keep_sources=x
data.keep_sources=[x,x] data.keep_sources=[1] data.drop_sources=[''] data.long_rows=truncate
data.long_rows=keep data.shard_rows=0 data.shard_rows=-1 data.shard_chars=0 data.decontaminate=0
data.max_overlap=0 data.max_overlap=-1 data.max_overlap=1.5 data.system_prompt=5 traces.m_min=-1
traces.m_min=11 traces.m_max=0 traces.m_max=3 traces.m_max=-1 traces.m_max=1e2
traces.random=grounded traces.random_min=-1 traces.random_max=11 traces.random_min=11
traces.temperature=-1 traces.temperature=.nan traces.temperature=1000 traces.top_p=0
traces.top_p=1.1 traces.top_p=-1 traces.allow_empty=none traces.on_collapse=ignore traces.shards=0
traces.shards=-2 traces.shards=1000000 traces.probe_prompts=-3 traces.probe_samples=0
traces.probe_samples=-1 train.deepspeed= train.deepspeed=3 train.capacity_tokens=0
train.capacity_tokens=-1 train.capacity_tokens=12 train.global_batch_examples=0
train.global_batch_examples=-32 train.global_batch_tokens=0 train.epochs=0 train.epochs=-1
train.epochs=0.5 train.epochs=1000000 train.lr=0 train.lr=-1 train.lr=2 train.lr=.inf
train.lr=.nan train.lr=fast train.new_rows_lr=-1 train.new_rows_lr=0 train.lr_schedule=linear
train.warmup_ratio=-1 train.warmup_ratio=2 train.min_lr_ratio=-0.1 train.min_lr_ratio=1.1
train.grad_clip=0 train.grad_clip=-1 train.checkpoint_every_steps=0
train.checkpoint_every_steps=-1 train.checkpoint_every_minutes=0 train.checkpoint_every_minutes=-5
train.keep_checkpoints=0 train.keep_checkpoints=-1 train.export_every_steps=0 train.num_gpus=0
train.num_gpus=-1 train.num_gpus=1.5 train.phase_lr={A:-1} train.phase_lr={A:0} train.phase_lr=[A]
train.phase_epochs={A:0} train.phase_epochs={A:1.5} train.phase_epochs.Q=1 optimizer.name=lion
optimizer.weight_decay=-1 optimizer.weight_decay=2 optimizer.beta1=1 optimizer.beta1=-0.1
optimizer.beta2=1.0 optimizer.beta2=.nan lora=8 lora.r=0 lora.r=-8 lora.r=8.5 lora.alpha=0
lora.dropout=1 lora.dropout=-0.1 lora.target_modules=q_proj lora.target_modules=[q_proj,q_proj]
lora.embeddings=none inference.dtype=int8 inference.max_model_len_tokens=0
inference.max_num_seqs=0 inference.tensor_parallel=0 inference.gpu_memory_utilization=0
inference.gpu_memory_utilization=1.2 inference.cpu_kv_cache_gib=0 inference.chunk_tokens=0
inference.chunk_rows=64 inference.handover_kl=0 inference.handover_kl=.nan
inference.enforce_eager=2 eval.benchmarks=[x] eval.benchmarks=[world,world] eval.modes=[x]
eval.base_modes=[x] eval.limit=0 eval.limit=-1 eval.limit=2.5 eval.samples=0 eval.samples=-1
eval.samples=4 eval.trace_temperature=-1 eval.answer_temperature=-0.5 eval.answer_top_p=0
eval.trace_top_p=2 eval.m_min=-1 eval.m_min=500 eval.m_max=0 eval.m_max=2
eval.max_reasoning_tokens=0 eval.max_answer_tokens=0 eval.max_answer_tokens=-1
eval.mode_answer_tokens={x:1} eval.mode_answer_tokens={abstract:0} eval.files={world:1}
eval.files.gsm=x eval.judge_url=localhost eval.judge_url=ftp://x eval.judge_model=
eval.channel_problems=0 schedule=papr schedule= schedule=[paper] schedule=1 traces.sources=grounded
traces.sources=[grounded] traces.sources.A=grounded traces.sources.A=[] traces.sources.A=null
traces.sources.A=[ground] traces.sources.A=[1] traces.sources.A={} traces.sources.C=[model]
traces.best_of=0 traces.best_of=-1 traces.best_of=1.5 traces.best_of=two traces.best_of=1000000
grounding=5 grounding.layer=-0.1 grounding.layer=1.1 grounding.layer=.nan grounding.layer=third
grounding.position=start grounding.tokens_per_step=0 grounding.tokens_per_step=1.5
grounding.fit_steps=0 grounding.fit_steps=-1 grounding.fit_steps=all grounding.codebook=5
grounding.codebook=[] train.phase_epochs=2 train.phase_epochs.A=two train.phase_epochs.A=-1
train.phase_epochs.A=1.5 train.phase_epochs.A=null train.phase_epochs.A=true
train.phase_epochs.A=[] train.phase_epochs.A=[-1] train.phase_epochs.A=[1,null]
train.phase_epochs.A=[[1]] train.phase_epochs.A=1000000 train.channel_rows=-1
train.channel_rows=0.5 train.channel_rows=all train.channel_every_steps=0
train.channel_every_steps=-1 train.until_channel=0 train.until_channel=1.1
train.until_channel=-0.5 train.until_channel=often
""".split()
OVERRIDES = {
    "a name of 101 letters": "name=" + "n" * 101,
    "a name of 50 characters of three bytes": "name=" + "木" * 50,
    "nothing": "",
    "no value": "train.lr",
    "no key": "=1",
    "an empty part": "train..lr=1",
    "a dot at the end": "train.=1",
    "a hundred parts": ".".join("a" * 100) + "=1",
    "a key below a value": "train.lr.x=1",
    "an unknown key": "train.lrr=1",
    "an unknown section": "training.lr=1",
    "not YAML": "train.lr=[",
    "a tab": "train.lr=\t1\t:\t2",
    "an alias": "train.lr=*x",
    "5,000 digits": "seed=" + "9" * 5000,
    "deep": "train.lr=" + "[" * 2000,
    "a line break": "name=a\nb",
    "bytes that are no text": "name=" + os.fsdecode(b"\xff\xfe"),
    "a key with a line break": "train.\nlr=1",
    "an empty value": "train.lr=",
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_a_recipe(case, tmp_path):
    text, *words = case
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode())
    refused(lambda: load_recipe(path), "mine.yaml", *words)


@pytest.mark.parametrize("case", BYTES.values(), ids=BYTES)
def test_a_file_that_is_no_text(case, tmp_path):
    content, *words = case
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    refused(lambda: load_recipe(path), "mine.yaml", *words)


@pytest.mark.parametrize("override", VALUES)
def test_a_value_that_makes_no_sense(override):
    key = override.partition("=")[0]
    line = refused(lambda: load_recipe(None, [override]), f"--set {override}: ")
    # A rule between keys may name the other one.
    assert key.rpartition(".")[2] in line.removeprefix(f"--set {override}: ") or "m_m" in line


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
def test_a_change_that_cannot_be_read(override):
    refused(lambda: load_recipe(None, [override]), "--set ")


@pytest.mark.parametrize(
    "place",
    ["missing.yaml", "folder", "pipe", "/dev/zero", "/dev/null", "loop", "x" * 300, "a\nb", "a\0b"],
)
def test_a_recipe_that_is_no_file(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(lambda: load_recipe(place))


@pytest.mark.parametrize(
    "setting, words",
    [
        ("model.base=./nowhere", "no such directory"),
        ("data.source=./nowhere.jsonl", "no such file"),
        ("data.source=./*.nothing", "no such file"),
        ("train.deepspeed=ds_configs/zero4.json", "ds_configs/zero3.json"),
        ("eval.files.math500=./nowhere.jsonl", "no such file"),
    ],
)
def test_files_that_are_not_there_are_named_before_anything_is_written(setting, words, tmp_path):
    recipe = load_recipe(None, [f"run_root={tmp_path}", setting])
    refused(lambda: claim(recipe), setting.partition("=")[0], words)
    assert not any(tmp_path.iterdir())


def test_what_a_run_keeps_of_its_recipe_is_read_as_strictly(tmp_path):
    run = claim(load_recipe(None, [f"run_root={tmp_path}"]))
    kept = run.config.read_text()
    for damaged in ("", kept[: len(kept) // 2], kept.replace("seed: 0", "seed: -1"), "\0" * 99):
        run.config.write_text(damaged)
        refused(lambda: claim(load_recipe(None, [f"run_root={tmp_path}"])), "config.yaml")
