"""A downloaded checkpoint, its tables shrunk and untied, is trained on real ranks, in full or with
LoRA, and asked by vLLM.
"""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from abscot.common import files
from abscot.data.chat import ChatTokenizer
from abscot.evaluation.results import read_result
from abscot.generation.trace_jobs import generate, open_job
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.model.extend import check_base, extend_base
from abscot.model.foreign import Source, name_of
from abscot.recipe.load import dump
from abscot.recipe.run import Run
from abscot.recipe.schema import LoraConfig, ModelConfig
from kit.published import make_published
from kit.small_run import launch
from kit.tiny_run import tiny_recipe, training_of, write_shards
from kit.training_run import TAG, finish, reload_gap, start

pytestmark = [pytest.mark.engine, pytest.mark.vllm]

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return make_published(tmp_path_factory.mktemp("published"))


def claimed(root, published, lora=None):
    """(recipe, run) whose base is the published checkpoint; nothing is made yet."""
    recipe = tiny_recipe(root, rows=16)
    train = {
        "deepspeed": "ds_configs/cpu.json",
        "num_gpus": 1 if lora else 2,
        "capacity_tokens": 256,
        "global_batch_examples": 8,
        "lr": 3e-3,
    }
    recipe = dataclasses.replace(
        recipe,
        model=ModelConfig(base=str(published), dtype="fp32"),
        data=dataclasses.replace(recipe.data, decontaminate=False),
        train=dataclasses.replace(recipe.train, **train),
        lora=lora,
    )
    run = Run.of(recipe)
    run.root.mkdir(parents=True)
    run.config.write_text(dump(recipe))
    return recipe, run


def changed_rows(before: dict, after: dict, name: str) -> set[int]:
    return set((before[name] != after[name]).any(1).nonzero().flatten().tolist())


@pytest.mark.parametrize("lora", [None, "new_rows", "full"])
def test_it_is_continued_and_stays_shrunk_and_untied(published, tmp_path, capsys, lora):
    config = lora and LoraConfig(r=4, alpha=8, embeddings=lora)
    recipe, run = claimed(tmp_path, published, config)
    extend_base(recipe, run, check_base(recipe, run))
    says = "66 abstract tokens found, 0 added; 327 -> 327 token ids, untied table of 327 rows, kept"
    assert says in capsys.readouterr().out
    tokenizer = load_tokenizer(run.base)
    with files.publish(run.shards) as directory:
        write_shards(directory, ChatTokenizer(tokenizer), rows=16)
    generate(open_job(training_of(recipe, run, 1, "A")))
    code, output = finish(start(recipe, run))
    assert code == 0, output
    export = run.checkpoints(TAG) / "export"
    before, after = load_file(published / "model.safetensors"), {}
    for shard in export.glob("*.safetensors"):
        after |= load_file(shard)
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    abstract = set(AbstractVocab.of(tokenizer).ids)
    for name in TABLES:
        changed = changed_rows(before, after, name)
        assert changed & abstract and (lora != "new_rows" or changed <= abstract)
    lm = AutoModelForCausalLM.from_pretrained(export)
    assert not lm.config.tie_word_embeddings and lm.config.vocab_size == 327
    assert not torch.equal(lm.lm_head.weight, lm.model.embed_tokens.weight)
    assert reload_gap(run) < 1e-4
    if lora:  # our own adapter as a base: it is merged to what was exported
        adapter = Source.of(str(run.adapter(TAG)), "model.base", recipe.model, trained=True)
        merged = adapter.load(seed=0).state_dict()
        assert max(float((merged[name] - after[name]).abs().max()) for name in after) < 1e-5


def test_it_is_asked_by_vllm_where_no_base_was_made(published, tmp_path):
    recipe, run = claimed(tmp_path, published)
    arguments = ("--model", str(published), "--mode", "abstract", "--recipe", str(run.config))
    done = launch("evaluate.py", *arguments)
    assert done.returncode == 0, done.stdout
    (meta,) = run.results.glob("*.meta.json")
    assert meta.name == f"abstract_{name_of(str(published))}_world.meta.json"
    result = read_result(run, meta.name.removesuffix(".meta.json"))
    assert result.meta.problems == 5 and not run.base.exists()
    rows = result.rows
    assert {len(row.trace_ids) for row in rows} <= set(range(2, 13))
    again = launch("evaluate.py", *arguments)
    assert again.returncode == 0 and "already done" in again.stdout, again.stdout
