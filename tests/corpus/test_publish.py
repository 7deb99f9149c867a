"""What goes up of a run that somebody has been in: only what it sealed, or one line and nothing."""

import json
import os
import socket
import threading
import time

import pytest
import yaml

from abscot.common.secrets import redacted
from abscot.recipe.run import open_run
from abscot.reporting import hub, plots, report
from kit.corpus import launch, one_line, refused
from kit.hub_server import TOKEN
from kit.published_run import api_of, prepare


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_last_line(path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"id": ')


TRACES = "teacher_traces/pi1_phaseA"
DAMAGE = {
    "weights-flipped": ("final/model.safetensors", flip),
    "weights-empty": ("final/model.safetensors", lambda path: path.write_bytes(b"")),
    "weights-gone": ("final/model.safetensors", lambda path: path.unlink()),
    "config-other": ("final/config.json", lambda path: path.write_text("{}")),
    "tokenizer-flipped": ("final/tokenizer.json", flip),
    "codebook-edited": ("final/codebook/codebook.json", lambda path: path.write_text("[]")),
    "done-empty": ("final/DONE", lambda path: path.write_text("")),
    "done-a-list": ("final/DONE", lambda path: path.write_text("[]")),
    "done-binary": ("final/DONE", lambda path: path.write_bytes(bytes(range(256)))),
    "stats-flipped": (f"{TRACES}/stats.json", flip),
    "traces-done-cut": (f"{TRACES}/DONE", lambda path: path.write_text('{"files"')),
    "page-edited": ("report/index.html", lambda path: path.write_text("<p>mine</p>")),
    "page-gone": ("report/report.md", lambda path: path.unlink()),
    "picture-flipped": ("report/training.png", flip),
    "log-cut": ("train_logs/pi1_phaseA.json", drop_last_line),
    "meta-empty": ("results/abstract_final_world.meta.json", lambda path: path.write_text("")),
    "rows-gone": ("results/abstract_final_world.jsonl", lambda path: path.unlink()),
    "rows-cut": ("results/abstract_final_world.jsonl", drop_last_line),
    "manifest-empty": ("shards/manifest.json", lambda path: path.write_text("")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_dry_run_refuses_damage_by_name(copy, case):
    name, spoil = DAMAGE[case]
    spoil(copy / name)
    refused(lambda: prepare(copy), name)


def test_the_command_ends_with_that_line(copy, capfd, monkeypatch):
    flip(copy / "final" / "model.safetensors")
    code, line = launch(capfd, monkeypatch, "publish.py", str(copy), "--dry-run")
    assert code == 2
    one_line(line, "final/model.safetensors", "checksum differs", "delete", "--round 1")


def socket_at(path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


FOREIGN = {
    "a-token": ("final/token", lambda path: path.write_text(TOKEN)),
    "a-dot-file": ("final/.env", lambda path: path.write_text(TOKEN)),
    "more-weights": ("final/extra.safetensors", lambda path: path.write_bytes(b"x")),
    "a-pickle": ("final/pytorch_model.bin", lambda path: path.write_bytes(b"\x80\x04")),
    "code": ("final/modeling.py", lambda path: path.write_text("import os")),
    "a-repository": ("final/.git/config", lambda path: path.write_text("[remote]")),
    "a-folder": ("report/private/notes.md", lambda path: path.write_text("x")),
    "a-link-to-a-file": ("final/passwd", lambda path: path.symlink_to("/etc/passwd")),
    "a-link-to-a-folder": ("final/etc", lambda path: path.symlink_to("/etc")),
    "a-link-to-the-run": ("results/run", lambda path: path.symlink_to(path.parent.parent)),
    "a-link-to-itself": ("results/loop.jsonl", lambda path: path.symlink_to(path)),
    "a-link-to-nothing": ("train_logs/gone.json", lambda path: path.symlink_to("/no/such")),
    "a-pipe": ("final/pipe", os.mkfifo),
    "a-socket": ("final/socket", socket_at),
    "a-terabyte-of-nothing": ("final/sparse", lambda path: os.truncate(open_new(path), 10**12)),
    "a-line-break": ("final/a\nb", lambda path: path.write_text("x")),
    "a-name-that-is-no-text": ("final/\udcff", lambda path: path.write_text("x")),
    "rows-without-their-meta": ("results/mine.jsonl", lambda path: path.write_text("{}")),
    "a-log-of-no-training": ("train_logs/pi9_phaseA.json", lambda path: path.write_text("{}")),
    "a-trace-set-of-no-training": ("teacher_traces/x/DONE", lambda path: path.write_text("{}")),
    "an-adapter-of-no-training": ("adapters/x/adapter.bin", lambda path: path.write_text("x")),
}


def open_new(path) -> str:
    path.touch()
    return str(path)


@pytest.mark.parametrize("case", FOREIGN)
def test_what_the_run_did_not_write_stays_and_is_named(copy, hub_server, monkeypatch, case):
    monkeypatch.chdir(copy)
    name, put = FOREIGN[case]
    expected = prepare(copy).files
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    put(copy / name)
    upload = prepare(copy, "me/tiny")
    assert upload.files == expected and [str(path) for path in upload.left_out] == [name]
    one_line(upload.table().splitlines()[-1], "left out", name.partition("/")[0] + "/")
    hub.send(upload, "me/tiny", False, api_of(hub_server))
    assert len(hub_server.files) == len(expected) + 2 and name not in hub_server.files


@pytest.mark.parametrize(
    "name",
    [
        "final",
        "final/model.safetensors",
        "final/DONE",
        "final/README.md",
        "teacher_traces",
        TRACES,
        f"{TRACES}/stats.json",
        "train_logs",
        "train_logs/pi1_phaseB.json",
        "results",
        "results/abstract_final_world.jsonl",
        "results/abstract_final_world.meta.json",
        "report",
        "report/index.html",
    ],
)
def test_a_link_in_the_place_of_the_runs_own_is_refused(copy, tmp_path, name):
    (copy / name).rename(tmp_path / "moved")
    (copy / name).symlink_to(tmp_path / "moved")
    refused(lambda: prepare(copy), f"{copy.name}/{name}: a link", "put there")


# --- secrets

CREDENTIALS = {
    "user-and-password": ("https://ann:s3cret@judge.org/v1", ["s3cret", "ann"]),
    "token-as-user": ("https://s3cret@judge.org/v1", ["s3cret"]),
    "password-with-@": ("https://ann:p@s3cret@judge.org/v1", ["s3cret", "ann"]),
    "password-with-slash": ("https://ann:p/s3cret@judge.org", ["s3cret", "ann"]),
    "password-with-question-mark": ("https://ann:p?s3cret@judge.org", ["s3cret", "ann"]),
    "password-encoded": ("https://ann:s3cret%40@judge.org", ["s3cret", "ann"]),
    "empty-password": ("https://ann:@judge.org", ["ann"]),
    "query": ("https://judge.org/v1?api_key=s3cret", ["s3cret"]),
    "query-of-two": ("https://judge.org/v1?a=1&key=s3cret", ["s3cret"]),
    "fragment": ("https://judge.org/v1#access_token=s3cret", ["s3cret"]),
    "both": ("https://ann:s3cret@judge.org/v1?k=t0ken", ["s3cret", "ann", "t0ken"]),
    "with-a-port": ("http://ann:s3cret@10.0.0.1:8000/v1", ["s3cret", "ann"]),
    "upper-case-scheme": ("HTTPS://ann:s3cret@judge.org", ["s3cret", "ann"]),
    "token-in-the-path": (f"https://judge.org/{TOKEN}/v1", [TOKEN]),
    "key-in-the-path": ("https://judge.org/sk-" + "a1" * 12, ["sk-a1"]),
    "quotes": ("https://ann:in\"quotes'&<>secret@judge.org", ["quotes", "secret", "ann"]),
}


@pytest.mark.parametrize("case", CREDENTIALS)
def test_credentials_of_the_recipe_reach_nobody(copy, hub_server, monkeypatch, case):
    monkeypatch.setattr(plots, "draw", lambda data, directory: {})  # seconds, and no text
    url, words = CREDENTIALS[case]
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["eval"]["judge_url"] = url
    (copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run, recipe = open_run(copy)
    assert recipe.eval.judge_url == url  # on this machine it still works
    report.write(run)
    hub.send(prepare(copy, "me/tiny"), "me/tiny", False, api_of(hub_server))
    told = {
        name: content
        for name, content in hub_server.files.items()
        if name.endswith((".md", ".html", ".yaml", ".json", ".jsonl", "DONE"))
        and "/tokenizer" not in name
    }
    leaks = [(name, word) for name, text in told.items() for word in words if leaks_in(text, word)]
    assert not leaks
    assert "judge_url" in told["config.yaml"].decode() and b"REDACTED" in told["config.yaml"]


def leaks_in(text: bytes, word: str) -> bool:
    """`ann` is part of `channel`."""
    return word.encode() + b":" in text if word == "ann" else word.encode() in text


@pytest.mark.parametrize(
    "tree",
    [
        {"data": {"source": f"https://x.org/{TOKEN}.jsonl"}},
        {"a": [{"b": ["https://ann:s3cret@x.org"]}]},
        {"data": {"system_prompt": f"use {TOKEN} to log in"}},
    ],
    ids=["source", "nested", "prompt"],
)
def test_secrets_are_found_wherever_they_stand(tree):
    text = json.dumps(redacted(tree))
    assert "REDACTED" in text and TOKEN not in text and "s3cret" not in text


@pytest.mark.parametrize(
    "value",
    [
        "https://judge.org/v1",
        "http://127.0.0.1:8000/v1",
        "Qwen/Qwen3-4B",
        "data/*.jsonl.gz",
        "risk-" + "a" * 40,
        "mail ann@judge.org?",
        "",
        3,
        None,
    ],
)
def test_what_is_no_secret_stays_as_it_is(value):
    assert redacted({"key": value}) == {"key": value}


# --- the hub

BAD_REPOS = ["me", "/", "me/", "/tiny", "me/a/b", "me/a b", "../x", "me/..", "me/-a", "me/a--b"]
BAD_REPOS += ["me/a.git", "me/ä", "me/a\n", "m" * 100 + "/a", "https://huggingface.co/me/a", ""]


@pytest.mark.parametrize("repo", BAD_REPOS)
def test_a_name_that_no_repository_can_have(copy, capfd, monkeypatch, repo):
    code, line = launch(capfd, monkeypatch, "publish.py", str(copy), "--repo", repo)
    assert code == 2
    one_line(line, "--repo")


def answering(reply: bytes | None):
    """(endpoint, its socket): whoever calls gets `reply`; None: no answer at all."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        kept = []
        while True:
            try:
                caller, _ = listening.accept()
            except OSError:
                return
            kept.append(caller)
            if reply is not None:
                caller.recv(65536)
                caller.sendall(reply)
                caller.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", listening


def http_reply(status: str, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


ANSWERS = {
    "none": (None, "timed out"),
    "closed-at-once": (b"", "disconnected"),
    "no-http": (b"hello\n", "--repo me/tiny"),
    "error-500": (http_reply("500 Oops"), "500"),
    "busy-503": (http_reply("503 Busy"), "503"),
    "too-many-429": (http_reply("429 Slow down"), "429"),
    "not-found-404": (http_reply("404 Not Found", b"<html>"), "404"),
    "forbidden-403": (http_reply("403 Forbidden"), "403"),
    "unknown-token-401": (http_reply("401 Unauthorized"), "hf auth login"),
    "redirected-for-ever": (b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", "redirect"),
    "ok-and-then-nonsense": (http_reply("200 OK", b"<html>"), "--repo me/tiny"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_hub_that_is_none_is_one_line_soon(finished, monkeypatch, case):
    reply, says = ANSWERS[case]
    monkeypatch.setattr(hub, "ANSWER_S", 0.5)
    endpoint, listening = answering(reply)
    upload, began_s = prepare(finished.root, "me/tiny"), time.monotonic()
    with listening:
        api = api_of(type("Server", (), {"endpoint": endpoint}))
        refused(lambda: hub.send(upload, "me/tiny", False, api), says)
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid", "http://[", "nonsense"]
)
def test_no_network_is_one_line_soon(finished, endpoint):
    began_s = time.monotonic()
    api = api_of(type("Server", (), {"endpoint": endpoint}))
    upload = prepare(finished.root, "me/tiny")
    refused(lambda: hub.send(upload, "me/tiny", False, api), "--repo me/tiny", "same command")
    assert time.monotonic() - began_s < 30


def test_nothing_is_written_here_by_publishing(copy, hub_server):
    before = {path: path.lstat().st_mtime_ns for path in copy.rglob("*")}
    upload = prepare(copy, "me/tiny")
    threads = [
        threading.Thread(target=hub.send, args=(upload, "me/tiny", False, api_of(hub_server)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path: path.lstat().st_mtime_ns for path in copy.rglob("*")} == before
    assert len(hub_server.files) == len(upload.files) + len(upload.texts)
