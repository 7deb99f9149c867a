"""Which files a user's pattern names."""

import os

import pytest

from abscot.common.paths import matching


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl", "data[1].jsonl", "data1.jsonl", ".h.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "b"))
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl", "data1.jsonl", "data[1].jsonl"]),
        ("data[1].jsonl", ["data[1].jsonl"]),  # as it stands, before it is a glob
        ("data[2-1].jsonl", []),
        ("data?.jsonl", ["data1.jsonl"]),
        ("data[0-9].jsonl", ["data1.jsonl"]),
        ("b/**/*.jsonl", ["b/c.jsonl", "b/d/e.jsonl"]),
        ("b/**", ["b/c.jsonl", "b/d/e.jsonl"]),
        ("b**/c.jsonl", ["b/c.jsonl"]),
        ("b/*", ["b/c.jsonl"]),
        ("b", ["b"]),
        ("*/d/e.jsonl", ["b/d/e.jsonl"]),
        (".h*", []),
        ("nowhere/*.jsonl", []),
        ("a.jsonl\0*", []),
        ("x" * 5000 + "*", []),
        ("x" * 5000, []),
        ("[", []),
        ("", []),
    ],
)
def test_patterns_name_files(tree, pattern, expected):
    assert [str(path) for path in matching(pattern)] == expected
    absolute = [str(path) for path in matching(f"{tree}/{pattern}")]
    assert absolute == [str(tree / name) for name in expected] or not pattern


def test_the_home_directory(tree):
    assert matching("~/c.jsonl") == matching("~/c*") == [tree / "b" / "c.jsonl"]
    assert matching("~nobody-of-this-name/x*") == []


def test_loops_of_links_are_not_walked(tree):
    for name in ("one", "two"):
        os.symlink(tree, tree / "b" / name)
    assert len(matching(f"{tree}/**/*.jsonl")) == 5
