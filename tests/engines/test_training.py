"""Training on real DeepSpeed ranks: what must not depend on ranks, kills or adapters, and what must
stop it.
"""

import functools
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from abscot.common import files
from abscot.method.lineage import channel_rows
from abscot.method.masks import dense_mask
from abscot.method.phases import PHASES, SEGMENT_Y
from abscot.packing.plan import Plan
from abscot.recipe.load import ROOT
from abscot.recipe.schema_train import LoraConfig
from abscot.training.optimizer import lr_at
from abscot.training.phase_data import load_data
from chaos import SAME, chaos
from kit.tiny_run import training_of
from kit.training_run import (
    TAG,
    ask_to_stop,
    channel_of,
    finish,
    make,
    on_ranks,
    ranks_of,
    reload_gap,
    saved_step,
    start,
    steps_of,
    trained,
    wait_for,
    weights,
)

pytestmark = pytest.mark.engine


def test_one_two_and_four_ranks_take_the_same_steps_and_go_on_from_each_other(tmp_path):
    """fp32, uneven supervised tokens, bins that do not divide evenly. A phase that begins on one
    rank and goes on with two, with four and with one under ZeRO-2, is the phase of two ranks: rows
    exactly, losses and gradients nearly. The ranks accumulate 4, 2 or 1 micro-batches per step.
    """
    settings = {
        "dtype": "fp32",
        "data": {"rows": 48},
        "epochs": 2,
        "channel_rows": 8,
        "channel_every_steps": 1,
    }
    two_ranks, whole = trained(tmp_path / "two", **settings)
    recipe, run = make(tmp_path / "one", ranks=1, checkpoint_every_steps=1, **settings)
    for ranks in (1, 2, 4):
        process, before = start(on_ranks(recipe, ranks), run), saved_step(run)
        wait_for(lambda: saved_step(run) > before or process.poll() is not None)  # noqa: B023
        ask_to_stop(run)
        code, output = finish(process)
        assert "asked to stop, saved at step" in output, output
    went_on, at = training_of(recipe, run, 1, "A"), saved_step(run)
    last = on_ranks(recipe, 1, deepspeed="ds_configs/zero2.json", export_every_steps=1)
    code, output = finish(start(last, run))
    assert code == 0 and "made on 4 ranks" in output, output
    # The step that it goes on from had no export yet.
    assert went_on.exported_steps() == list(range(at, 10))
    assert reload_gap(run, went_on.intermediate(at)) < 1e-4
    assert reload_gap(whole) < 1e-4 and reload_gap(run) < 1e-4
    first = Plan.load(run.plan_of(TAG))[0].step(0)
    assert [len(first.micro_steps(world)) for world in (1, 2, 4)] == [4, 2, 1]
    rates = [lr_at(k, 10, two_ranks.train.lr, two_ranks.train) for k in range(10)]
    assert (
        [step["lr"] for step in steps_of(run)] == rates == [step["lr"] for step in steps_of(whole)]
    )
    for a, b in zip(steps_of(whole), steps_of(run), strict=True):
        assert (a["rows_digest"], a["supervised_tokens"]) == (
            b["rows_digest"],
            b["supervised_tokens"],
        )
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)
    measured, again = channel_of(whole), channel_of(run)
    assert [entry["step"] for entry in again] == list(range(10))
    for a, b in zip(measured, again, strict=True):
        assert a["channel_tokens"] == pytest.approx(b["channel_tokens"], abs=0.03)
        assert a["channel_tokens"] > 0 and a["rows"] == b["rows"] == 8
    assert measured[-1] == pytest.approx(channel_by_hand(two_ranks, whole), abs=0.03)


def channel_by_hand(recipe, run) -> dict:
    """The last entry of its log, from the exported model: each row alone, a dense mask, all logits,
    and the answer as it would be decoded.
    """
    training = training_of(recipe, run, 1, "A")
    documents = load_data(training).documents
    lm = transformers.AutoModelForCausalLM.from_pretrained(
        training.export, dtype=torch.float32, attn_implementation="eager"
    )
    rows, right = channel_rows(recipe, len(documents.store)), []
    for row in rows:
        batch = documents.batch(np.array([row]))
        mask = dense_mask(batch.document_id, batch.segment_id, training.phase.hidden)
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        with torch.no_grad():
            logits = lm(batch.input_ids, attention_mask=mask.view(1, 1, *mask.shape[-2:])).logits
        answer = (batch.segment_id[0] == SEGMENT_Y).nonzero().flatten()
        right.append(logits[0, answer - 1].argmax(1) == batch.input_ids[0, answer])
    return {
        "step": 9,
        "rows": len(rows),
        "channel": sum(bool(of_row.all()) for of_row in right) / len(rows),
        "channel_tokens": float(torch.cat(right).float().mean()),
    }


def test_a_phase_ends_where_its_channel_opens_whatever_kills_it(tmp_path):
    """All answers are alike, so that the channel opens soon. Measuring moves no loss."""
    settings = {
        "data": {"rows": 56, "answer": lambda row: 7},
        "channel_rows": 16,
        "channel_every_steps": 2,
        "until_channel": 0.8,
    }
    recipe, run = reference = trained(tmp_path / "whole", epochs=6, **settings)
    end = len(steps_of(run))
    shares = [entry["channel"] for entry in channel_of(run)]
    assert end < 30 and end == 2 * len(shares)
    assert shares[-1] >= 0.8 > max(shares[:-1])
    assert files.read_done(run.checkpoints(TAG) / "export")["step"] == end
    result = chaos(tmp_path / "killed", ["save", "export"], 0, reference, **settings)
    assert result["kills"] == 2 and result["bit_identical"] and result["curve"]
    assert result["steps"] == end and not result["left_over"]
    assert result["audit"] == "every row exactly once per epoch"  # no fault
    assert result["exported"] == list(range(3, end, 3))
    seldom = {**settings, "channel_every_steps": 10**6, "until_channel": None}
    _, unmeasured = trained(tmp_path / "unmeasured", epochs=6, **seldom)
    assert [entry["step"] for entry in channel_of(unmeasured)] == [29]
    same = [[step[key] for key in SAME] for step in steps_of(unmeasured)[:end]]
    assert same == [[step[key] for key in SAME] for step in steps_of(run)]


def test_killed_and_stopped_it_goes_on_bit_identically(tmp_path):
    """SIGTERM saves and asks to be requeued; SIGKILL in a save and in an export, on the way and
    in the end, costs nothing but time. Exports on its way disturb nothing.
    """
    reference = trained(tmp_path / "whole", epochs=4)
    result = chaos(tmp_path / "killed", ["asked", "on the way", "save", "export"], 0, reference)
    assert result == {
        "kills": 4,
        "asked_for": 4,
        "steps": 20,
        "trained": 160,
        "lost": 0,
        "duplicated": 0,
        "bit_identical": True,
        "audit": "every row exactly once per epoch",
        "exported": [3, 6, 9, 12, 15, 18],
        "curve": True,
        "left_over": [],
    }
    check_exported_again(*reference)


def check_exported_again(recipe, run) -> None:
    """Of a model that no engine has agreed with yet, the checkpoint is there: who deletes the model
    has it exported again, and nothing trained again.
    """
    export = run.checkpoints(TAG) / "export"
    before, log = weights(run), run.train_log(TAG).read_bytes()
    shutil.rmtree(export)
    code, output = finish(start(recipe, run))
    assert code == 0 and f"goes on from {export.with_name('step_0000020')}" in output, output
    again = weights(run)
    assert again.keys() == before.keys() and all(again[k].equal(before[k]) for k in before)
    assert run.train_log(TAG).read_bytes() == log and saved_step(run) == 20


def lora_settings(embeddings: str) -> dict:
    lora = LoraConfig(r=4, alpha=8, dropout=0.1, embeddings=embeddings)
    return {"dtype": "fp32", "lora": lora}


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """embeddings -> (recipe, run) of a training that nothing disturbed."""
    return functools.cache(
        lambda embeddings: trained(
            tmp_path_factory.mktemp("lora") / "run",
            export_every_steps=2,
            **lora_settings(embeddings),
        )
    )


@pytest.mark.parametrize("embeddings", ["new_rows", "full"])
def test_lora_exports_a_merged_tied_model_and_an_adapter(lora_run, embeddings):
    import peft

    recipe, run = lora_run(embeddings)
    base = load_file(run.base / "model.safetensors")
    merged = transformers.AutoModelForCausalLM.from_pretrained(
        run.checkpoints("pi1_phaseA") / "export"
    )
    assert (
        merged.config.tie_word_embeddings
        and merged.lm_head.weight is merged.model.embed_tokens.weight
    )
    changed = (
        (merged.model.embed_tokens.weight.detach() != base["model.embed_tokens.weight"])
        .any(1)
        .nonzero()
        .flatten()
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.base)
    first = tokenizer.convert_tokens_to_ids("<beginabstract>")
    assert len(changed) and (
        embeddings == "full" or set(changed.tolist()) <= set(range(first, first + 66))
    )
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(run.base), run.adapter("pi1_phaseA")
    )
    ids = torch.arange(40)[None]
    with torch.no_grad():
        ours, theirs = merged(ids).logits.float(), adapted(ids).logits.float()
        plain = transformers.AutoModelForCausalLM.from_pretrained(run.base)(ids).logits.float()
    assert (ours - theirs).abs().max() < 1e-4 < 0.1 < (ours - plain).abs().max()
    assert reload_gap(run) < 1e-4
    training = training_of(recipe, run, 1, "A")
    assert training.exported_steps() == [2, 4]
    assert reload_gap(run, training.intermediate(2)) < 1e-4


def test_lora_starts_alike_when_it_starts_over(tmp_path, lora_run):
    """Killed before its first step, it draws its adapters again."""
    reference, settings = lora_run("new_rows"), lora_settings("new_rows")
    result = chaos(tmp_path / "killed", ["before a step"], 0, reference, **settings)
    assert result["kills"] == 1 and result["bit_identical"] and result["steps"] == 5


def test_a_nan_in_one_ranks_batch_ends_all_ranks_and_costs_no_checkpoint(tmp_path):
    """The one token that stands in row 3 alone has a vector of NaN, in an untied table: no other
    row sees it.
    """
    recipe, run = make(
        tmp_path / "run",
        dtype="fp32",
        checkpoint_every_steps=1,
        data={"question": lambda i: "question ~" if i == 3 else f"question {i}"},
    )
    store, config = run.base / "model.safetensors", run.base / "config.json"
    tensors = load_file(store)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    alone = transformers.AutoTokenizer.from_pretrained(run.base).convert_tokens_to_ids("~")
    tensors["model.embed_tokens.weight"][alone] = float("nan")
    save_file(tensors, store, metadata={"format": "pt"})
    config.write_text(
        config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    files.seal(run.base)
    code, output = finish(start(recipe, run))
    step, rows = re.search(
        r"step (\d+): loss is nan; checkpoints up to the step before are intact; rows: (.+)", output
    ).groups()
    assert code != 0 and not ranks_of(run)
    assert (
        int(step) > 0
        and "row/3" in rows.split(", ")
        and len(rows.split(", ")) < recipe.train.global_batch_examples
    )
    assert saved_step(run) == int(step) == len(steps_of(run))
    files.verify(run.checkpoints(TAG) / f"step_{int(step):07}")


def test_flipped_bytes_of_an_input_end_all_ranks_before_step_1(tmp_path):
    recipe, run = make(tmp_path / "flipped")
    for where in ("base/model.safetensors", "shards/shard_00000.arrow"):
        file = run.root / where
        whole = file.read_bytes()
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        code, output = finish(start(recipe, run))
        assert code != 0 and not ranks_of(run)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and f"{file}: checksum differs" in errors[0], output
        assert "Traceback" not in output and not run.train_log(TAG).exists()
        file.write_bytes(whole)


def test_the_losses_of_all_phases_are_the_stored_ones():
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "golden_losses.py"], capture_output=True, text=True
    )
    says = f"all losses of {', '.join(PHASES)} are the stored ones"
    assert done.returncode == 0 and says in done.stdout, done.stdout + done.stderr
