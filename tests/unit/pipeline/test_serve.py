"""vLLM's command line, and what is refused before it is started."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from abscot.common import files
from abscot.common.errors import MissingInput, UserError
from abscot.generation.decoding import ABSTRACT_DECODING
from abscot.method.vocab import load_tokenizer
from abscot.model.chat_model import PREFIX, ChatModel, DecodingRules, opening_trace
from abscot.pipeline import serve
from abscot.pipeline.serve import Server, recipe_beside
from kit.tiny_run import make_model, plain_tokenizer, tiny_tokenizer


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(serve, "entry_points", lambda **_: ["abscot"])
    monkeypatch.setattr(serve, "PORT", serve.free_port())


@pytest.fixture(scope="module")
def final(tiny_run):
    """A round's model as older exports were: with the base's chat template."""
    _, run, _ = tiny_run
    directory = run.root / "final"
    shutil.copytree(run.base, directory)
    return directory


def options(command: list[str]) -> dict[str, list[str]]:
    """name -> what stands behind it, of the last that has it."""
    found, name = {}, ""
    for word in command:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = [value] if value else []
        elif name:
            found[name].append(word)
    return found


def test_the_recipe_says_how_a_model_is_served_and_the_user_has_the_last_word(tiny_run, final):
    recipe, run, _ = tiny_run
    server = Server.of(recipe, "final", ["--max-num-seqs", "3", "--api-key=k"])
    command = server.command()
    given = options(command)
    assert str(final) in command and command[-3:] == ["--max-num-seqs", "3", "--api-key=k"]
    assert given["--served-model-name"] == ["tiny/final"]
    assert given["--reasoning-parser"] == ["abstract"]
    assert given["--logits-processors"] == [ABSTRACT_DECODING]
    assert (given["--dtype"], given["--max-model-len"]) == (["float32"], ["256"])
    assert given["--max-num-seqs"] == ["3"]
    own = load_tokenizer(final).chat_template
    assert not own.startswith(PREFIX)
    assert Path(*given["--chat-template"]).read_text() == opening_trace(own)
    added = Path(*given["--generation-config"]) / DecodingRules.FILE
    rules = DecodingRules.of(json.loads(added.read_text()))
    assert (rules.m_min, rules.m_max, len(rules.codebook_token_ids)) == (2, 12, 64)
    file = final / DecodingRules.FILE
    assert (
        json.loads(file.read_text()).items() - {("_from_model_config", True)}
        <= json.loads(added.read_text()).items()
    )


def test_what_an_export_brings_along_stays(tiny_run, tmp_path):
    directory, tokenizer = tmp_path / "runs" / "new", tiny_tokenizer()
    make_model(directory, tokenizer, seed=0)
    (directory / files.DONE).unlink()
    rules = DecodingRules.of_tokenizer(tokenizer, 64, tiny_run[0].traces)
    ChatModel(tokenizer, rules).write(directory)
    server = Server.of(tiny_run[0], str(directory), [])
    given = options(server.command())
    assert server.name == "runs/new" and "--reasoning-parser" in given
    assert not {"--chat-template", "--generation-config"} & given.keys()


def test_a_base_writes_no_traces(tiny_run):
    given = options(Server.of(tiny_run[0], "base", []).command())
    assert given["--served-model-name"] == ["tiny/base"]
    assert not {"--chat-template", "--generation-config", "--reasoning-parser"} & given.keys()


def test_a_server_is_no_rank(tiny_run, final, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    environment = Server.of(tiny_run[0], "final", []).environment()
    assert not {"RANK", "MASTER_PORT"} & environment.keys()
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1" == environment["VLLM_NO_USAGE_STATS"]


def test_of_a_directory_in_a_run_that_runs_recipe_is_read(tiny_run, final, tmp_path):
    assert recipe_beside(str(final)) == tiny_run[1].config.resolve()
    assert recipe_beside(str(tmp_path)) is recipe_beside("Qwen/Qwen3-4B") is None
    assert recipe_beside("final") is None


def test_a_model_that_cannot_be_served_is_named(tiny_run, final, tmp_path, monkeypatch):
    recipe, run, _ = tiny_run

    def refused(model, *arguments, kind=UserError):
        with pytest.raises(kind) as error:
            Server.of(recipe, str(model), arguments)
        return str(error.value)

    assert "round1: missing" in refused("round1", kind=MissingInput)
    assert ": expected one of base, round1, final" in refused("round9")
    assert "no such directory" in refused(tmp_path / "none")
    assert "no config.json" in refused(tmp_path)
    make_model(tmp_path / "plain", plain_tokenizer(), seed=0)
    said = refused(tmp_path / "plain")
    assert "no abstract tokens, so it writes no traces; serve it with: " in said
    assert said.endswith(str(tmp_path / "plain"))
    damaged = tmp_path / "damaged"
    shutil.copytree(final, damaged)
    (damaged / "config.json").write_text("{}")
    assert "config.json" in refused(damaged) and str(damaged) in refused(damaged)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    assert "an adapter; `python launch/evaluate.py" in refused(adapter)
    monkeypatch.setattr(serve, "entry_points", lambda **_: [])
    assert "bash launch/setup.sh" in refused("final")


@pytest.mark.parametrize(
    "words",
    [
        ["--speculative-config", '{"method": "ngram"}'],
        ["--speculative_config={}"],
        ["--speculative-config.method", "ngram"],
        ["-sc", "{}"],
        ["--spec-tokens=3"],
    ],
    ids=str,
)
def test_speculative_decoding_is_refused(tiny_run, final, words):
    with pytest.raises(UserError, match="^-.*cannot be decoded with speculative decoding"):
        Server.of(tiny_run[0], "final", ["--enforce-eager", *words])


def test_a_taken_port_is_refused_with_a_free_one(tiny_run, final):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        here = ["--host", "127.0.0.1"]
        for words in (["--port", port], [f"--port={port}"], [*here, "--port", port]):
            with pytest.raises(UserError, match=f"--port {port}: taken on .*, e.g. --port [0-9]+"):
                Server.of(tiny_run[0], "final", words)
        Server.of(tiny_run[0], "final", ["--port", port, "--uds", "/tmp/socket"])
    with pytest.raises(UserError, match="--port 99999: expected a number up to 65535"):
        Server.of(tiny_run[0], "final", ["--port", "99999"])


def test_a_sealed_model_elsewhere_is_compared_with_its_checksums(tiny_run, final, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(final, copy)
    assert files.is_done(copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="model.safetensors"):
        Server.of(tiny_run[0], str(copy), [])
