"""Files of evaluation problems that cannot be, or only look so: each is refused in one line that
names the file, and the line where there is one, or is read.
"""

import gzip
import json
import os
import zlib

import pytest

from abscot.evaluation import benchmarks, judge, problem_files
from abscot.recipe.run import Run
from kit.corpus import launch, one_line, refused
from kit.tiny_run import make_tiny_run, tiny_recipe

WORLD = {"id": "a", "problem": "1+1?", "answer": "2", "cot": "1 and 1 make 2."}
ROWS = {
    "world": WORLD,
    "math500": {"unique_id": "a", "problem": "1+1?", "answer": "2", "solution": "So $2$."},
    "gsm8k": {"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
    "aime24": {"id": 60, "problem": "1+1?", "answer": "2"},
    "aime25": {"id": "0", "problem": "1+1?", "answer": "2"},
    "gpqa_diamond": {
        "Question": "1+1?",
        "Correct Answer": "2",
        **{f"Incorrect Answer {i}": str(i + 2) for i in (1, 2, 3)},
    },
    "hotpotqa": {"question": "Who?", "answer": "Ann"},
    "alpaca_eval": {"instruction": "Say hi", "output": "hi"},
}
GOLDS = {
    "world": "answer",
    "math500": "answer",
    "gsm8k": "answer",
    "aime25": "answer",
    "gpqa_diamond": "Correct Answer",
    "hotpotqa": "answer",
    "alpaca_eval": "output",
}


@pytest.fixture
def load(tmp_path):
    """(benchmark, bytes of its file) -> its problems."""
    recipe = tiny_recipe(tmp_path)

    def read(name: str, content: bytes, suffix: str = ".jsonl"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        recipe.eval.files[name] = str(path)
        return benchmarks.load(name, recipe, Run.of(recipe))

    read.recipe = recipe
    return read


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ROWS)
def test_a_good_row_is_read(load, name):
    (problem,) = load(name, lines(ROWS[name]))
    assert problem.gold and problem.problem


# What stands for the gold, the problem or the id in line 2: what is said of it
NO_TEXTS = {
    "null": (None, "found null"),
    "list": (["2"], "found a list"),
    "empty_list": ([], "found a list"),
    "object": ({"a": 1}, "found an object"),
    "integer": (2, "found a number"),
    "float": (2.5, "found a number"),
    "true": (True, "found true or false"),
    "empty": ("", "found empty text"),
    "blank": (" \n\t", "found empty text"),
    "surrogate": ("2\ud800", "a lone surrogate"),
}


@pytest.mark.parametrize("value", NO_TEXTS)
@pytest.mark.parametrize("name", GOLDS)
def test_a_gold_that_is_no_text(load, name, value):
    bad, words = NO_TEXTS[value]
    rows = [ROWS[name], {**ROWS[name], "id": "b", "unique_id": "b", GOLDS[name]: bad}]
    refused(lambda: load(name, lines(*rows)), f"file.jsonl:2: {GOLDS[name]}: expected", words)


@pytest.mark.parametrize("value", NO_TEXTS)
@pytest.mark.parametrize("field", ["problem", "cot", "id"])
def test_a_problem_a_cot_or_an_id_that_is_no_text(load, field, value):
    bad, words = NO_TEXTS[value]
    rows = [WORLD, {**WORLD, "id": "b", field: bad}]
    if (field, value) in (("cot", "null"), ("cot", "empty"), ("id", "integer")):
        assert len(load("world", lines(*rows))) == 2
    else:
        refused(lambda: load("world", lines(*rows)), f"file.jsonl:2: {field}: expected", words)


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, row in ROWS.items() for field in row]
)
def test_a_missing_column(load, name, field):
    row = {key: value for key, value in ROWS[name].items() if key != field}
    if field in ("cot", "solution"):
        assert load(name, lines(row))[0].cot is None
    else:
        refused(lambda: load(name, lines(row)), "file.jsonl:1: no field", field, "found")


@pytest.mark.parametrize(
    "answer",
    ["2", "so 2", "#### ", "2\n####\n", "## 2", "####\t"],
    ids=["bare", "words", "nothing", "blank", "two_hashes", "tab"],
)
def test_gsm8k_without_a_gold_behind_the_hashes(load, answer):
    row = {"question": "1+1?", "answer": answer}
    refused(lambda: load("gsm8k", lines(row)), "file.jsonl:1: answer: expected", "####")


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a"), (7, 7), (7, "7")], ids=["text", "number", "mixed"]
)
def test_an_id_that_stands_twice(load, first, second):
    rows = [{**WORLD, "id": first}, WORLD | {"id": "b"}, {**WORLD, "id": second}]
    refused(lambda: load("world", lines(*rows)), "file.jsonl:3: id: world/", "file.jsonl:1 too")


GOOD = json.dumps(WORLD).encode()
DEEP = b"[" * 100_000
BROKEN = {
    "empty": (b"", "no rows"),
    "blank_lines": (b"\n \n\r\n", "no rows"),
    "byte_order_mark_alone": (b"\xef\xbb\xbf", "no rows"),
    "cut": (GOOD + b"\n" + GOOD[:30], "file.jsonl:2: not JSON"),
    "list": (b"[1, 2]\n", "file.jsonl:1: expected an object, found a list"),
    "number": (GOOD + b"\n7\n", "file.jsonl:2: expected an object, found a number"),
    "null": (b"null\n", "file.jsonl:1: expected an object, found null"),
    "text": (b'"abc"\n', "file.jsonl:1: expected an object, found text"),
    "empty_object": (b"{}\n", "file.jsonl:1: no field"),
    "two_on_a_line": (GOOD + GOOD + b"\n", "file.jsonl:1: not JSON (Extra data)"),
    "words": (b"hello\n", "file.jsonl:1: not JSON"),
    "csv": (b"id,problem,answer\na,1+1?,2\n", "file.jsonl:1: not JSON"),
    "single_quotes": (b"{'id': 1}\n", "file.jsonl:1: not JSON"),
    "binary": (bytes(range(256)) * 40, "file.jsonl:1: not"),
    "nul_bytes": (b"\0" * 5000, "file.jsonl:1: not JSON"),
    "gzip_under_another_name": (gzip.compress(GOOD), "file.jsonl:1: not UTF-8 text"),
    "latin_1": (GOOD.replace(b"1+1?", b"caf\xe9?"), "file.jsonl:1: not UTF-8 text (byte"),
    "utf_16": (GOOD.decode().encode("utf-16"), "file.jsonl:1: not UTF-8 text"),
    "utf_32": (GOOD.decode().encode("utf-32"), "file.jsonl:1: not"),
    "deep": (DEEP + b"\n", "file.jsonl:1: not JSON (nested too deep)"),
    "deep_inside": (GOOD[:-1] + b', "x": ' + DEEP, "file.jsonl:1: not JSON (nested too deep)"),
    "nan": (GOOD[:-1] + b', "x": NaN}\n', "file.jsonl:1: not JSON (NaN is no JSON number)"),
    "infinity": (GOOD[:-1] + b', "x": -Infinity}\n', "file.jsonl:1: not JSON (-Infinity"),
    "huge_number": (GOOD[:-1] + b', "x": ' + b"9" * 5000 + b"}\n", "file.jsonl:1: not JSON (Exc"),
    "key_twice": (GOOD[:-1] + b', "answer": "3"}\n', 'not JSON (key "answer" stands there twice)'),
    "row_of_20_mb": (GOOD[:-2] + b"x" * 20_000_000 + b'"}\n', "file.jsonl:1: more than"),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\n", "file.jsonl:1: not JSON"),
    "html": (b"<!doctype html><title>404</title>", "file.jsonl:1: not JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_none(load, case):
    content, words = BROKEN[case]
    refused(lambda: load("world", content), words)


FINE = {
    "byte_order_mark": b"\xef\xbb\xbf" + GOOD + b"\n",
    "crlf": GOOD + b"\r\n\r\n",
    "no_newline_at_the_end": GOOD,
    "blank_lines_between": b"\n\n" + GOOD + b"\n \n",
    "other_columns": GOOD[:-1] + b', "level": 3, "x": [{"y": 1.5e300}]}\n',
    "line_separator_inside": json.dumps(WORLD | {"problem": "a\u2028b"}).encode() + b"\n",
    "escaped_nul": json.dumps(WORLD | {"problem": "a\0b"}).encode(),
}


@pytest.mark.parametrize("case", FINE)
def test_a_file_that_only_looks_odd(load, case):
    (problem,) = load("world", FINE[case])
    assert problem.gold == "2"


LISTS = {
    "one": (b"[" + GOOD + b"]", 1),
    "spread_out": (b"\n[\n" + GOOD + b"\n,\n" + GOOD.replace(b'"a"', b'"b"') + b"\n]\n", 2),
    "byte_order_mark": (b"\xef\xbb\xbf[" + GOOD + b"]", 1),
    "empty": (b"", "no rows"),
    "empty_list": (b" [ ] ", "no rows"),
    "object": (GOOD, "file.json:1: expected a list of objects"),
    "lines": (GOOD + b"\n" + GOOD, "file.json:1: expected a list of objects"),
    "cut_in_a_row": (b"[\n" + GOOD + b",\n" + GOOD[:20], "file.json:3: row 2: not JSON"),
    "cut_between_rows": (b"[\n" + GOOD + b",\n", "file.json:3: row 2: not JSON"),
    "not_closed": (b"[\n" + GOOD + b"\n", "file.json:3: not JSON"),
    "comma_at_the_end": (b"[\n" + GOOD + b",\n]", "file.json:3: row 2: not JSON"),
    "no_comma": (b"[" + GOOD + b"\n" + GOOD + b"]", "file.json:2: not JSON"),
    "something_behind": (b"[" + GOOD + b"]\n]", "file.json:1: not JSON"),
    "lists": (b"[[1], [2]]", "file.json:1: row 1: expected an object, found a list"),
    "many_empty_lists": (b"[" + b"[]," * 1_000_000 + b"[]]", "row 1: expected an object"),
    "deep": (DEEP, "file.json:1: row 1: not JSON (nested too deep)"),
    "nan": (b"[NaN]", "file.json:1: row 1: not JSON (NaN is no JSON number)"),
    "bad_gold": (b"[\n" + GOOD.replace(b'"2"', b"null") + b"]", "file.json:2: row 1: answer:"),
    "twice_on_one_line": (b"[" + GOOD + b", " + GOOD + b"]", "row 2: id: world/a stands at"),
    "binary": (bytes(range(128, 256)), "file.json: not UTF-8 text (byte 0)"),
    "80_mb": (b"[" + b" " * 80_000_000 + b"]", "file.json: more than"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_json_list(load, case):
    content, expected = LISTS[case]
    if isinstance(expected, int):
        assert len(load("world", content, ".json")) == expected
    else:
        refused(lambda: load("world", content, ".json"), expected)


def bomb() -> bytes:
    """128 MB of one character in 128 kB."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = b"x" * 2**20
    return b"".join(squeeze.compress(piece) for _ in range(128)) + squeeze.flush()


PACKED = gzip.compress(GOOD + b"\n")
GZIPS = {
    "good": (PACKED, ".jsonl.gz", 1),
    "good_list": (gzip.compress(b"[" + GOOD + b"]"), ".json.gz", 1),
    "two_members": (PACKED + gzip.compress(GOOD.replace(b'"a"', b'"b"')), ".jsonl.gz", 2),
    "plain": (GOOD, ".jsonl.gz", "damaged"),
    "cut": (PACKED[:-9], ".jsonl.gz", "damaged"),
    "cut_to_its_head": (PACKED[:5], ".jsonl.gz", "damaged"),
    "flipped": (
        PACKED[:30] + bytes([PACKED[30] ^ 255]) + PACKED[31:],
        ".jsonl.gz",
        "file.jsonl.gz",
    ),
    "empty": (b"", ".jsonl.gz", "no rows"),
    "of_nothing": (gzip.compress(b""), ".jsonl.gz", "no rows"),
    "bad_gold": (
        gzip.compress(GOOD.replace(b'"2"', b"[]")),
        ".jsonl.gz",
        "file.jsonl.gz:1: answer",
    ),
    "bomb": (None, ".jsonl.gz", "file.jsonl.gz:1: more than"),
    "bomb_list": (None, ".json.gz", "file.json.gz: more than"),
    "many_blank_lines": (gzip.compress(b"\n" * 3_000_000), ".jsonl.gz", "more than 1,000,000 line"),
}


@pytest.mark.parametrize("case", GZIPS)
def test_a_gzipped_file(load, case):
    content, suffix, expected = GZIPS[case]
    content = bomb() if content is None else content
    if isinstance(expected, int):
        assert len(load("world", content, suffix)) == expected
    else:
        refused(lambda: load("world", content, suffix), expected)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet", ".jsonl.zst", ".gz", "", ".JSONL"])
def test_another_kind_of_file(load, suffix):
    refused(lambda: load("world", GOOD, suffix), "eval.files.world", "whose name ends in", ".jsonl")


def named(load, name: str):
    load.recipe.eval.files["world"] = name
    return benchmarks.load("world", load.recipe, Run.of(load.recipe))


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/file.jsonl",
        "*.none.jsonl",
        "~nobody-has-this-name/x.jsonl",
        "a" * 300 + ".jsonl",
        "a\0b.jsonl",
        "new\nline.jsonl",
        "[.jsonl",
        "\ud800.jsonl",
        "",
    ],
    ids=["absent", "glob", "user", "long", "nul", "newline", "bracket", "surrogate", "empty"],
)
def test_a_name_that_is_no_files(load, name):
    refused(lambda: named(load, name), "eval.files.world")


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "dead_link", "loop"])
def test_what_is_no_file(load, tmp_path, kind):
    path = tmp_path / "thing.jsonl"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        target = {"device": "/dev/zero", "dead_link": "/no/such", "loop": str(path)}[kind]
        path.symlink_to(target)
    refused(lambda: named(load, str(path)), "eval.files.world", "thing.jsonl")


def test_home_globs_and_brackets(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for place, key in (("x [1].jsonl", "a"), ("deep/b.jsonl", "b"), ("deep/er/c.jsonl", "c")):
        (tmp_path / place).write_bytes(lines(WORLD | {"id": key}))
    ids = {
        pattern: [problem.id for problem in named(load, pattern)]
        for pattern in ("~/x [1].jsonl", "~/deep/*.jsonl", f"{tmp_path}/deep/**/*.jsonl")
    }
    assert list(ids.values()) == [["world/a"], ["world/b"], ["world/b", "world/c"]]
    (tmp_path / "deep" / "er" / "d.jsonl").write_bytes(lines(WORLD | {"id": "b"}))
    refused(lambda: named(load, "~/deep/**/*.jsonl"), "d.jsonl:1: id: world/b", "b.jsonl:1 too")


HUB_ROWS = {
    "good": ([ROWS["math500"]], None),
    "none": ([], "HuggingFaceH4/MATH-500: no rows"),
    "null_gold": ([ROWS["math500"] | {"answer": None}], "MATH-500: row 1: answer: expected text"),
    "number": ([ROWS["math500"] | {"answer": 2}], "MATH-500: row 1: answer: expected text"),
    "other_columns": ([{"question": "?"}], "MATH-500: row 1: no field problem; found question"),
    "id_twice": ([ROWS["math500"]] * 2, "MATH-500: row 2: unique_id: math500/a stands at"),
}


@pytest.mark.parametrize("case", HUB_ROWS)
def test_rows_of_the_hub(load, case, monkeypatch):
    import datasets

    rows, words = HUB_ROWS[case]
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **split: rows)

    def read():
        return benchmarks.load("math500", load.recipe, Run.of(load.recipe))

    if words is None:
        assert len(read()) == 1
    else:
        refused(read, words)


def test_a_hub_that_says_many_lines(load, monkeypatch):
    import datasets

    def fail(*names, **split):
        raise ConnectionError("\x1b[31mno network\nat all\n" + "x" * 5000)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    words = ("not available from the hub", "--set eval.files.math500=FILE")
    refused(lambda: benchmarks.load("math500", load.recipe, Run.of(load.recipe)), *words)


def test_every_row_is_looked_at_whatever_the_limit(load):
    load.recipe.eval.limit = 1
    rows = [WORLD, WORLD | {"id": "b", "answer": None}]
    refused(lambda: load("world", lines(*rows)), "file.jsonl:2: answer")


@pytest.mark.parametrize("script", ["evaluate.py"])
def test_a_launch_script_ends_in_one_line(tmp_path, capfd, monkeypatch, script):
    recipe, run, _ = make_tiny_run(tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(lines(WORLD | {"answer": ["2"]}))
    arguments = ("--recipe", str(run.config), "--set", f"eval.files.world={bad}")
    code, last = launch(capfd, monkeypatch, script, *arguments, "--model", "base")
    assert code == 2
    one_line(last, "bad.jsonl:1: answer: expected text, found a list")
    assert not list(run.results.glob("*.jsonl"))


REPLIES = {
    "list": b"[]",
    "no_choices": b'{"error": "busy"}',
    "choices_empty": b'{"choices": []}',
    "choice_null": b'{"choices": [null]}',
    "content_number": b'{"choices": [{"message": {"content": 7}}]}',
    "content_list": b'{"choices": [{"message": {"content": ["A"]}}]}',
    "html": b"<html>login</html>",
    "binary": bytes(range(256)),
    "empty": b"",
    "deep": b"[" * 100_000,
    "nan": b'{"choices": NaN}',
    "huge": b'{"x": "' + b"x" * 4_000_000 + b'"}',
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_judge_that_replies_something_else(case):
    with pytest.raises(ValueError) as caught:
        judge._said(REPLIES[case][: judge.MOST_REPLY_BYTES])
    one_line(str(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://x/y",
        "http://",
        "http://[::1",
        "judge",
        "http://u:secret@127.0.0.1:9",
    ],
    ids=["file", "ftp", "no_host", "bracket", "word", "password"],
)
def test_a_judge_that_is_nowhere(url, monkeypatch):
    line = refused(lambda: judge._chat(url, "m", "?"), "eval.judge_url")
    assert "secret" not in line and "root:" not in line
    monkeypatch.setenv(judge.KEY_VARIABLE, "sk-secret\nX: y")
    assert "secret" not in refused(lambda: judge._chat("http://127.0.0.1:9", "m", "?"), "the key")


def test_the_limits_leave_the_published_files_alone():
    assert problem_files.MOST_LIST_BYTES > 46_320_117  # hotpot_dev_distractor_v1.json
