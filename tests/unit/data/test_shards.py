"""The store: rows in order, and what it refuses."""

import json
import pickle
import shutil

import numpy as np
import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.data.chat import ChatTokenizer
from abscot.data.shards import ShardStore
from kit.raw_data import damage, make, raw_rows, recipe_of
from kit.tiny_run import tiny_tokenizer


def test_the_store_holds_the_rows_in_order_and_reads_them_anywhere(tmp_path, source):
    store = make(recipe_of(tmp_path, source, long_rows="truncate_cot_right", shard_rows=400))
    chat, raw = ChatTokenizer(tiny_tokenizer()), raw_rows(600)
    assert len(store) == 600 and store.ids() == [r["id"] for r in raw]
    lengths = store.lengths()
    for i in (599, 0, 255, 256, 399, 400):
        found = store.row(i)
        prompt = chat.prompts(
            [
                [
                    {"role": "system", "content": "Think."},
                    {"role": "user", "content": raw[i]["prompt"]},
                ]
            ]
        )[0]
        cot, _ = chat.cots([raw[i]["cot"].strip()])[0]
        assert (found.id, found.source) == (raw[i]["id"], raw[i]["source"])
        assert np.array_equal(found.prompt, prompt) and np.array_equal(
            found.answer, chat.answers([raw[i]["answer"]])[0]
        )
        assert np.array_equal(found.cot, cot[: len(found.cot)]) and found.cot_steps.sum() == len(
            found.cot
        )
        assert [lengths[k][i] for k in ("prompt", "cot", "answer")] == [
            len(found.prompt),
            len(found.cot),
            len(found.answer),
        ]
    assert {a.dtype for a in (found.prompt, found.cot, found.cot_steps, found.answer)} == {
        np.dtype(np.int32)
    }
    total = sum(lengths.values())
    assert (
        total.max() == 400 - 32 and store.manifest.counts["truncated"] == (total == 368).sum() > 0
    )
    assert (
        store.manifest.lengths["total"]["p100"] == 368
        and store.manifest.lengths["cot"]["sum"] == lengths["cot"].sum()
    )
    assert pickle.loads(pickle.dumps(store)).row(7).id == "r7"
    before = store.row(3).cot.copy()
    store.release()
    assert np.array_equal(store.row(3).cot, before)
    with pytest.raises(IndexError):
        store.row(600)


def test_a_store_refuses_what_it_was_not(tmp_path, source):
    store = make(recipe_of(tmp_path, source))
    store.check_tokenizer(tiny_tokenizer())
    other = tiny_tokenizer()
    other.chat_template += " "
    with pytest.raises(UserError, match="made with another chat template"):
        store.check_tokenizer(other)
    other = tiny_tokenizer()
    other.add_tokens(["<extra>"])
    with pytest.raises(UserError, match="made with another tokenizer .* launch/prepare.py"):
        store.check_tokenizer(other)
    with pytest.raises(UserError, match="made with another tokenizer"):
        make(recipe_of(tmp_path, source), other)
    copies = [tmp_path / name for name in ("cut", "flipped", "old", "unfinished", "gone")]
    for copy in copies:
        shutil.copytree(store.directory, copy)
    shard = "shard_00001.arrow"
    (copies[0] / shard).write_bytes((copies[0] / shard).read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{shard}: not the shard that was written"):
        ShardStore(copies[0])
    damage(copies[1] / shard)
    with pytest.raises(UserError, match=f"{shard}: checksum differs"):
        ShardStore(copies[1]).verify()
    manifest = json.loads((copies[2] / "manifest.json").read_text())
    (copies[2] / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 0}))
    with pytest.raises(UserError, match="manifest.json: version 0, expected 1"):
        ShardStore(copies[2])
    (copies[3] / files.DONE).unlink()
    with pytest.raises(UserError, match="not finished"):
        ShardStore(copies[3])
    (copies[4] / shard).unlink()
    with pytest.raises(UserError, match=f"{shard}: not the shard that was written"):
        ShardStore(copies[4])
