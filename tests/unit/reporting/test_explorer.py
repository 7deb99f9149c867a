"""The tree of the trace explorer: steps of tokens, bounds, what is left out; how it is embedded."""

import base64
import configparser
import hashlib
import json
import re

import pytest

from abscot.recipe.load import ROOT
from abscot.reporting import explorer
from abscot.reporting.blocks import to_html, to_markdown
from kit.explored import HOSTILE, KEY, STATES, answer, data_of, told


def tree_of(root, rows: dict) -> dict:
    return explorer.of_run(data_of(root, rows)).tree


def embedded(page: str) -> str:
    (text,) = re.findall(r"<script [^>]*id=explorer-data>(.*?)</script>", page, re.DOTALL)
    return text


def test_each_token_stands_for_a_step_and_codes_for_what_they_mostly_say(tmp_path):
    rows = [answer(id_, told(states)) for id_, states in STATES.items()]
    rows += [answer("h0", told("BB"), right=False, sample=1)]  # B, B where the ball is under A, B
    tree = tree_of(tmp_path, {KEY: rows})
    (shown,) = tree["sets"]
    names = tree["tokens"]
    said = {names[token]: (state, times, of) for token, state, times, of in shown["codes"][0]}
    assert said == {"A": ("A", 3, 3), "B": ("B", 5, 6), "BL": ("C", 1, 1)}
    assert [row["per_step"] for row in shown["rows"]] == [1] * 5
    last = shown["rows"][-1]
    assert [names[token] for token in last["trace"]] == ["B", "B"]
    assert tree["tasks"][last["of"]]["steps"] == (("X and A swap", "A"), ("X and B swap", "B"))
    assert len(tree["tasks"]) == 4  # what answers share stands there once


def test_two_codes_a_step_are_told_apart(tmp_path):
    rows = [
        answer(id_, [token for pair in zip(told(s), told("C" * 9), strict=False) for token in pair])
        for id_, s in STATES.items()
    ]
    (shown,) = tree_of(tmp_path, {KEY: rows})["sets"]
    assert [row["per_step"] for row in shown["rows"]] == [2] * 4
    first, second = shown["codes"]
    assert {(state, times, of) for _, state, times, of in first} == {
        ("A", 3, 3),
        ("B", 4, 4),
        ("C", 1, 1),
    }
    assert [said[1:] for said in second] == [["B", 4, 8]]


def test_anothers_trace_stands_for_the_steps_of_the_other_problem(tmp_path):
    own = [answer(id_, told(states)) for id_, states in STATES.items()]
    swapped = answer("h0", told("CA"), trace_of="world/h2")
    other = ("abstract_swapped", "final", "world")
    tree = tree_of(tmp_path, {KEY: own, other: [swapped, answer("h2", told("AB"))]})
    row = tree["sets"][1]["rows"][0]
    assert row["per_step"] == 1 and row["of"] != row["task"]
    assert tree["tasks"][row["of"]]["id"] == "world/h2"
    assert [state for _, state in tree["tasks"][row["of"]]["steps"]] == ["C", "A"]
    assert tree["sets"][1]["codes"] == tree["sets"][0]["codes"]  # by the model's own traces


@pytest.mark.parametrize(
    "key, trace",
    [
        (("abstract_permuted", "final", "world"), told("BA")),  # in no order
        (("pause", "final", "world"), told("BA")),  # nobody wrote it
        (KEY, told("ABA")),  # not as many as the steps
        (("abstract", "final", "gsm8k"), told("BA")),  # no state is known
    ],
    ids=["shuffled", "pause", "other-length", "other-data"],
)
def test_tokens_of_other_traces_stand_for_no_step(tmp_path, key, trace):
    own = [answer(id_, told(states)) for id_, states in STATES.items()]
    rows = {KEY: own} | {key: [*(own if key == KEY else []), answer("h0", trace)]}
    tree = tree_of(tmp_path, rows)
    shown = tree["sets"][-1]
    row = shown["rows"][-1]
    assert row["trace"] and row["per_step"] == 0
    assert bool(shown["codes"]) == key[0].startswith("abstract") * (key[2] == "world")
    assert (tree["tasks"][row["of"]]["steps"] is None) == (key[2] != "world")


def test_a_big_run_is_bounded_and_says_what_is_left_out(tmp_path):
    """500 problems of 4 samples, 9 in 10 right, of 12 models; the last file has 3 answers."""
    many = [
        answer(f"p{i}", told("A"), right=i % 10 != 0, sample=sample)
        for i in range(500)
        for sample in range(4)
    ]
    keys = [("abstract", f"model{i}", "math500") for i in range(12)]
    few = ("abstract", "final", "gsm8k")
    silent = ("thinking", "base", "math500")
    rows = {key: many for key in keys} | {few: many[:3], silent: [answer("p0", [])]}
    tree = tree_of(tmp_path, rows)
    assert sum(len(shown["rows"]) for shown in tree["sets"]) <= explorer.ROWS == 1500
    for shown in tree["sets"][:-1]:
        assert shown["answers"] == {"right": 1800, "wrong": 200, "unjudged": 0}
        verdicts = [row["verdict"] for row in shown["rows"]]
        assert len(verdicts) == 115 and verdicts.count("wrong") == 57
    assert len(tree["sets"][-1]["rows"]) == 3
    assert tree["without"] == ["thinking of base on math500"]


def test_rare_verdicts_are_all_there_and_the_order_is_kept(tmp_path):
    rows = [answer(f"p{i}", told("A"), right=i != 70) for i in range(90)]
    rows += [answer(f"p{i}", told("A"), right=None) for i in (90, 91)]
    found = explorer.chosen(rows, 10)
    assert [row.id.removeprefix("world/p") for row in found] == "0 1 2 3 4 5 6 70 90 91".split()
    assert explorer.chosen(rows, 1000) == rows


def test_long_texts_and_traces_are_cut_and_say_so(tmp_path):
    long = "a" * 50_000 + "\\boxed{7}"
    tree = tree_of(tmp_path, {KEY: [answer("h0", told("A") * 1000, response=long)]})
    (row,) = tree["sets"][0]["rows"]
    assert len(row["answer"]) < 2100 and row["answer"].endswith("\\boxed{7}")
    assert "(48,009 characters left out)" in row["answer"]
    assert (len(row["trace"]), row["trace_cut"]) == (256, 744)


def test_nothing_can_leave_the_element_that_it_stands_in(tmp_path):
    rows = [answer(text, [text], problem=text, response=text, gold=text) for text in HOSTILE]
    block = explorer.of_run(data_of(tmp_path, {KEY: rows}))
    page = to_html("x", [block], tmp_path)
    text = embedded(page)
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == json.loads(json.dumps(block.tree))
    assert json.loads(text)["sets"][0]["rows"][0]["answer"] == HOSTILE[0]
    assert page.count("<script") == page.count("</script") == 2


def test_the_policy_of_the_page_names_its_script_alone(tmp_path):
    page = to_html(
        "x", [explorer.of_run(data_of(tmp_path, {KEY: [answer("h0", ["A"])]}))], tmp_path
    )
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src 'sha256-{checksum}'")


def test_a_secret_is_hidden_whatever_escaping_and_cutting_do_to_it(tmp_path):
    secret = 'http://ann:it\'s<s3cret>&more@judge.org/v1?key="t0ken"&<a>'
    near = "y" * (explorer.TEXT_CHARS - explorer.TAIL_CHARS - 15)  # the cut falls into the password
    rows = [
        answer("h0", ["A"], response=secret, problem=secret),
        answer(secret, ["A"], response=near + secret + "z" * 9000, gold=secret),
    ]
    data = data_of(tmp_path, {KEY: rows}, **{"eval.judge_url": json.dumps(secret)})
    assert data.recipe.eval.judge_url == secret
    text = embedded(explorer.of_run(data).html(tmp_path))
    found = [word for word in ("s3c", "ann", "t0k", "it's", "more") if word in text]
    assert found == [] and "://REDACTED@judge.org" in text


def test_without_a_trace_there_is_no_explorer(tmp_path):
    data = data_of(tmp_path, {("thinking", "base", "world"): [answer("h0", [])]})
    assert explorer.of_run(data) is None


def test_in_markdown_it_is_one_line(tmp_path):
    text = to_markdown([explorer.of_run(data_of(tmp_path, {KEY: [answer("h0", told("AB"))]}))])
    assert text.count("\n") == 1 and "index.html" in text


def test_an_installation_takes_along_what_is_no_module():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folder = ROOT / "abscot" / "reporting"
    files = {path.name for path in folder.iterdir() if path.suffix not in (".py", "")}
    assert files == set(config["options.package_data"]["abscot.reporting"].split(", "))
