"""The draw: data.rows rows that are trained on, the first that fit in the order of the hash."""

import json
from collections import Counter

import pytest

from abscot.data.draw import _pass_rows
from abscot.data.formats import draw_key
from kit.raw_data import make, raw_rows, recipe_of


@pytest.mark.parametrize("capacity_tokens", [140, 200, 400, 2000])
def test_the_first_rows_that_fit_are_drawn_and_the_others_counted(
    tmp_path, source, capacity_tokens
):
    whole = make(recipe_of(tmp_path, source, "all", capacity_tokens))
    fitting = sorted(whole.ids(), key=lambda id_: draw_key(0, id_))
    wanted = len(fitting) * 2 // 3
    store = make(recipe_of(tmp_path, source, "some", capacity_tokens, rows=wanted))
    assert set(store.ids()) == set(fitting[:wanted]) and len(store) == wanted
    last = draw_key(0, fitting[wanted - 1])
    before = [row["id"] for row in raw_rows(600) if draw_key(0, row["id"]) <= last]
    counts = store.manifest.counts
    assert counts["rejected"].get("too_long", 0) == len(before) - wanted
    assert counts["kept"] == wanted and counts["read"] == 600
    lines = (store.directory / "rejected.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["reason"] for line in lines) == counts["rejected"]
    assert sum(counts["sources"].values()) == wanted
    store.verify()


def test_cut_rows_are_counted_among_the_drawn_alone(tmp_path, source):
    long = {"long_rows": "truncate_cot_right"}
    store = make(recipe_of(tmp_path, source, capacity_tokens=140, rows=200, **long))
    total = sum(store.lengths().values())
    assert len(store) == 200 and store.manifest.counts["truncated"] == (total == 108).sum() > 99


def test_fewer_rows_than_asked_for_are_said(tmp_path, source, capsys):
    store = make(recipe_of(tmp_path, source, capacity_tokens=200, rows=500))
    assert 0 < len(store) < 500 and "not_drawn" not in store.manifest.counts["rejected"]
    warning = "warning: data.rows=500, but the source has only {} rows that can be trained on"
    assert warning.format(len(store)) in capsys.readouterr().out


def test_passes_are_few_and_bring_little_too_much():
    assert _pass_rows(5000, 0, 0) == 5000  # all fit: the first pass is the last
    assert _pass_rows(0, 5000, 5000) == 0
    one_in_four = _pass_rows(3746, 1254, 5000)
    assert 3746 * 4 < one_in_four < 3746 * 4.3
    assert _pass_rows(5000, 0, 5000) == 20_100  # nothing fits: not the whole source at once
