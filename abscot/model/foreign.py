"""Models that a run did not make: a directory, a hub id, or an adapter of either; checked, loaded,
and named for evaluation.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from abscot.common import files
from abscot.common.draws import keyed_seed
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.method.lineage import Model
from abscot.method.vocab import codebook_size_of, missing_tokens
from abscot.model.adapters import (
    BASE,
    CONFIG,
    attached,
    check_adapter,
    is_adapter,
    merged,
    tokenizer_directory,
)
from abscot.model.check import (
    check_config,
    check_content,
    check_model,
    check_weights,
    checked_tokenizer,
    one_line,
    quiet,
)
from abscot.model.lm import DTYPES
from abscot.model.weights import Notes, fingerprint, said
from abscot.recipe.load import local_path
from abscot.recipe.run import Run
from abscot.recipe.schema import ModelConfig, Recipe

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+", re.ASCII)
HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Source:
    """A checked model from elsewhere. directory: of the plain model; adapter: what is merged into
    it; weights: the files of both. where: its name in messages.
    """

    where: str
    directory: Path
    adapter: Path | None
    weights: tuple[Path, ...]
    config: ModelConfig

    @classmethod
    def of(
        cls, name: str, key: str, config: ModelConfig, trained: bool, notes: Notes | None = None
    ) -> "Source":
        """`name`, a directory or hub id that the user gave as `key`, wholly checked. Only reads.

        trained: whether it is to be trained, or only asked. Raises UserError.
        """
        where = f"{key}: {said(name, 400)}"
        with one_line(where, OSError):
            directory = located(name, where, config)
            if is_adapter(directory, where):
                return cls._adapter(directory, where, config, trained)
            expect_model(directory, where)
            if config.random_init and trained:
                rows = check_config(directory, where, config, trained).vocab_size
                checked_tokenizer(directory, where, config, rows)
                return cls(where, directory, None, (), config)
            weights = check_model(directory, where, config, trained, notes)
            return cls(where, directory, None, tuple(weights), config)

    @classmethod
    def _adapter(cls, directory: Path, where: str, config: ModelConfig, trained: bool) -> "Source":
        named, weights = check_adapter(directory, where)
        below = f"{where}: {CONFIG}: {BASE}: {said(named, 100)}"
        base = located(named, below, config)
        if is_adapter(base, below):
            raise UserError(f"{below} is an adapter too; merge that one first")
        files_of_base, lm = check_weights(base, below, config, trained)
        if lm is None:
            raise UserError(f"{below}: its weights are quantised; nothing can be merged into them")
        tokenizer = checked_tokenizer(tokenizer_directory(directory, base), where, config)
        attached(lm, tokenizer, directory, where)
        check_content(base, files_of_base, below)
        return cls(where, base, directory, (*weights, *files_of_base), config)

    @property
    def tokenizer(self):
        directory = self.directory
        if self.adapter:
            directory = tokenizer_directory(self.adapter, self.directory)
        return checked_tokenizer(directory, self.where, self.config)

    def load(self, seed: int):
        """The plain model on the CPU in the recipe's dtype, adapter merged in. seed: of random
        weights.
        """
        config, dtype = self.config, DTYPES[self.config.dtype]
        code = {"trust_remote_code": config.trust_remote_code}
        with one_line(self.where):
            if not self.weights:
                shape = transformers.AutoConfig.from_pretrained(self.directory, **code)
                torch.manual_seed(keyed_seed("random_init", seed))
                return transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype, **code)
            with quiet():
                lm = transformers.AutoModelForCausalLM.from_pretrained(
                    self.directory, dtype=dtype, use_safetensors=True, **code
                )
            return merged(lm, self.tokenizer, self.adapter, self.where) if self.adapter else lm

    def fingerprint(self, notes: Notes) -> str:
        """One hash of what the model computes."""
        parts = [
            fingerprint(directory, [p for p in self.weights if p.parent == directory], notes)
            for directory in filter(None, (self.directory, self.adapter))
        ]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16] if parts[1:] else parts[0]


def located(name: str, where: str, config: ModelConfig) -> Path:
    """The directory that a path, a hub id (owner/name) or a folder of one (owner/name/folder)
    means; fetched from the hub where it must be.
    """
    path = local_path(name)
    if path is not None and path.is_dir():
        return path.resolve()
    if not HUB_ID.fullmatch(name) or (path is not None and path.exists()):
        found = "not a directory" if path is not None and path.exists() else "no such directory"
        raise UserError(
            f"{where}: {found}; give a model directory or a hub id such as Qwen/Qwen3-4B"
        )
    owner, repository, *folders = name.split("/")
    folder = "/".join(folders)
    directory = _fetched(f"{owner}/{repository}", folder, where, config) / folder
    if not directory.is_dir():
        raise UserError(
            f"{where}: no directory {folder} on this machine or in {owner}/{repository}"
        )
    return directory


def _fetched(hub_id: str, folder: str, where: str, config: ModelConfig) -> Path:
    """The newest snapshot, or the one in the cache without network. Nothing pickled comes along."""
    import huggingface_hub

    wanted = [*HUB_FILES, *["*.safetensors"] * (not config.random_init)]
    wanted += ["*.py"] * config.trust_remote_code
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id,
                allow_patterns=[f"{folder}/{name}" if folder else name for name in wanted],
                ignore_patterns=f"{folder}/*/*" if folder else "*/*",
            )
        )
    except Exception as error:
        raise UserError(
            f"{where}: no such directory, and not fetched from the hub ({said(error, 160)}); "
            "check its name and the network, or give a downloaded directory"
        ) from None


def expect_model(directory: Path, where: str) -> None:
    if not (directory / "config.json").exists():
        inside = sorted({p.parent.name for p in directory.glob("*/config.json")})
        inside = [name for name in inside if name.isprintable()][:5]
        mend = (
            f"name one of those in it: {', '.join(inside)}" if inside else "give a model directory"
        )
        raise UserError(f"{where}: no config.json; {mend}")


def open_model(recipe: Recipe, run: Run, name: str, option: str = "--model") -> Model:
    """The model that `--model PATH|HUB_ID`, or another option, means, checked; nothing is written
    but a note of what was hashed. An adapter's directory is made by `make`, when it is asked.
    """
    notes = Notes(run.results / ".read.json")
    source = Source.of(name, option, recipe.model, False, notes)
    with one_line(source.where, OSError):
        plain, digest, tokenizer = name_of(name), source.fingerprint(notes), source.tokenizer
    missing = missing_tokens(tokenizer, recipe.codebook_size)
    if not missing and (size := codebook_size_of(tokenizer)) > recipe.codebook_size:
        log(
            f"{source.where}: has {size} codebook tokens; asked with the first "
            f"{recipe.codebook_size} (codebook_size)"
        )
    directory = run.root / "merged" / f"{plain}-{digest}" if source.adapter else source.directory
    modes = recipe.eval.base_modes if missing else recipe.eval.modes
    return Model(plain, directory, None, tuple(modes), digest, name, tuple(missing))


def make(model: Model, recipe: Recipe) -> None:
    """What an adapter and its base make together, in `model.directory`; nothing for others."""
    if model.source is None or (model.directory / "config.json").is_file():
        return
    source = Source.of(model.source, "--model", recipe.model, trained=False)
    with one_line(source.where), files.publish(model.directory, {"merged": model.source}) as temp:
        source.load(recipe.seed).save_pretrained(temp)
        source.tokenizer.save_pretrained(temp)


def name_of(name: str) -> str:
    """A name for files: the last two parts of a path or id, and a hash of the whole."""
    path = local_path(name)
    whole = str(path.resolve()) if path else name
    parts = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(Path(whole).parts[-2:]))
    return f"{parts.strip('-.')[:60]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
