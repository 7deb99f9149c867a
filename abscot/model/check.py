"""Does a directory hold a causal LM whose config, weights and tokenizer fit each other? Asked of
what somebody else made, before anything is made of it.
"""

import contextlib
import logging
import math
import re
import warnings
from pathlib import Path

import torch
import transformers

from abscot.common import files
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.data.chat import ChatTokenizer
from abscot.model.weights import (
    Notes,
    check_finite,
    kinds,
    opened,
    read_json,
    said,
    tensor_shapes,
    weight_files,
)
from abscot.recipe.schema import ModelConfig

HEADS = ("ForCausalLM", "LMHeadModel")  # how the names of causal LMs end
SIZES = {  # a number of config.json -> the most that is believed
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
}
ABOVE_ZERO = ("rms_norm_eps", "rope_theta")
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors writes them
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def check_config(directory: Path, where: str, model: ModelConfig, trained: bool):
    """The transformers config of a causal LM. trained: what cannot be trained is refused too.

    Raises UserError with `where`, which names the model as the user did.
    """
    tree = read_json(directory / "config.json", where)
    kind, heads = str(tree.get("model_type")), tree.get("architectures") or []
    heads = [str(head) for head in (heads if isinstance(heads, list) else [heads])]
    for name, most in SIZES.items():
        size = tree.get(name)
        if size is not None and not (type(size) is int and 0 < size <= most):
            raise UserError(
                f"{where}: config.json: {name}: expected 1 to {most:,}, found {_cut(size)}"
            )
    for name in ABOVE_ZERO:
        number = tree.get(name)
        if number is not None and not (type(number) in (int, float) and 0 < number < math.inf):
            raise UserError(
                f"{where}: config.json: {name}: expected a number above 0, found {_cut(number)}"
            )
    custom = tree.get("auto_map") is not None
    if kind not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        _check_code(where, "config.json", custom, model)
        if not custom:
            raise UserError(
                f"{where}: config.json: model_type: transformers {transformers.__version__} does "
                f"not know {said(kind, 60)}"
            )
    elif custom and not model.trust_remote_code:
        log(f"{where}: transformers' own {kind}; its code runs with model.trust_remote_code=true")
    if heads and not any(head.endswith(HEADS) for head in heads) and not custom:
        raise UserError(f"{where}: config.json: a {said(heads[0], 60)}, not a causal LM")
    with one_line(f"{where}: config.json"):
        config = transformers.AutoConfig.from_pretrained(
            directory, trust_remote_code=model.trust_remote_code
        )
    _check_decoder(config, where, trained)
    return config


def _cut(value) -> str:
    return said(repr(value), 60)


def _check_code(where: str, file: str, custom: bool, model: ModelConfig) -> None:
    if custom and not model.trust_remote_code:
        raise UserError(
            f"{where}: {file} wants code that comes with the model (auto_map); read that code, "
            "then use --set model.trust_remote_code=true"
        )


def _check_decoder(config, where: str, trained: bool) -> None:
    if config.is_encoder_decoder:
        raise UserError(f"{where}: config.json: an encoder-decoder, not a causal LM")
    positions = getattr(config, "max_position_embeddings", None)
    if type(positions) is not int or positions < 1:
        raise UserError(
            f"{where}: config.json: max_position_embeddings: expected a number above 0, found "
            f"{_cut(positions)}"
        )
    if trained and getattr(config, "quantization_config", None):
        raise UserError(f"{where}: its weights are quantised, which cannot be trained")
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if trained and slides and getattr(config, "sliding_window", None):
        raise UserError(
            f"{where}: its attention has a sliding window, which packed attention has not"
        )


def check_weights(directory: Path, where: str, model: ModelConfig, trained: bool):
    """(weight files, model on the meta device) that fit each other tensor by tensor; None for a
    model whose weights are quantised. Raises UserError.

    The model is made without memory, and loaded without values: transformers' own table of what
    was missing, left over or of another shape, with its renamings and ties, is what decides.
    """
    config = check_config(directory, where, model, trained)
    paths = weight_files(directory, where)
    shapes = tensor_shapes(paths, where)
    _check_layers(config, shapes, where)
    if getattr(config, "quantization_config", None):
        return paths, None  # its tensors are not those of the plain model
    with one_line(where), quiet():
        lm, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
        )
    for key, wrong in (
        ("missing_keys", "is missing"),
        ("mismatched_keys", "has another shape than config.json says"),
        ("unexpected_keys", "has no place in the model of config.json"),
    ):
        names = sorted(name if isinstance(name, str) else name[0] for name in info[key])
        if names:
            count = f" (and {len(names) - 1} more)" if names[1:] else ""
            raise UserError(f"{where}: weights: {said(names[0])}{count} {wrong}")
    if trained and not _trainable(lm):
        raise UserError(
            f"{where}: a {type(lm).__name__} cannot be trained with packed attention; use a "
            "decoder like Qwen3"
        )
    _check_numbers(lm, paths, where)
    _check_tie(config, shapes, paths, where)
    return paths, lm


def _check_layers(config, shapes: dict, where: str) -> None:
    """Before a model of so many layers is built."""
    told = getattr(config, "num_hidden_layers", None)
    found = [int(m[1]) for name in shapes if (m := re.search(r"\.(?:layers|h)\.(\d+)\.", name))]
    layers = len(set(found))
    if isinstance(told, int) and found and told > layers:
        raise UserError(f"{where}: config.json has {told} layers, the weights have {layers}")


def _trainable(lm) -> bool:
    return (
        hasattr(lm, "model")
        and lm.get_output_embeddings() is not None
        and (lm._supports_attention_backend)
    )


def _check_numbers(lm, paths: list[Path], where: str) -> None:
    """Integers would be taken for weights, their scale forgotten."""
    names = {name for name, _ in lm.named_parameters()}
    for name, kind in kinds(paths, where).items():
        if name in names and kind not in FLOATS:
            raise UserError(
                f"{where}: weights: {said(name)} is {kind}, and config.json has no "
                f"quantization_config; expected {', '.join(FLOATS)}"
            )


def _check_tie(config, shapes: dict, paths: list[Path], where: str) -> None:
    """A config that ties two tables that differ: loaders would drop one of them."""
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    if config.tie_word_embeddings and {table, head} <= shapes.keys():
        found = {}
        for path in paths:
            with opened(path, where) as file:
                found |= {n: file.get_tensor(n) for n in (table, head) if n in file.keys()}  # noqa: SIM118
        if not torch.equal(found[table], found[head]):
            raise UserError(
                f"{where}: config.json: tie_word_embeddings is true, but {head} differs from "
                f"{table}; write false to keep both"
            )


def checked_tokenizer(directory: Path, where: str, model: ModelConfig, rows: int | None = None):
    """The tokenizer of a model whose table has so many rows, fast and with a usable chat template.

    Raises UserError.
    """
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{where}: no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (directory / name).exists():
            tree = read_json(directory / name, where)
            if name == "tokenizer_config.json":
                _check_code(where, name, "auto_map" in tree, model)
    with one_line(f"{where}: tokenizer"), quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=model.trust_remote_code
        )
        ids = tokenizer.get_vocab().values()
        if tokenizer.chat_template is None:
            raise UserError(
                f"{where}: its tokenizer has no chat template; use an instruct model, e.g. "
                "Qwen/Qwen3-4B"
            )
        if not ids:
            raise UserError(f"{where}: tokenizer: has no tokens")
        if _chat_of(tokenizer, where).turn_end_id is None:
            raise UserError(f"{where}: tokenizer: no <|im_end|> and no eos token ends a turn")
    if rows is not None and max(ids) >= rows:
        raise UserError(
            f"{where}: tokenizer: its ids go up to {max(ids):,}, but the embedding table has "
            f"{rows:,} rows"
        )
    return tokenizer


def _chat_of(tokenizer, where: str) -> ChatTokenizer:
    try:
        return ChatTokenizer(tokenizer)
    except UserError as error:
        why = str(error).removeprefix(f"{tokenizer.name_or_path}: ")
        raise UserError(f"{where}: tokenizer: {why}") from None


def check_model(
    directory: Path, where: str, model: ModelConfig, trained: bool, notes: Notes | None = None
) -> list[Path]:
    """The weight files of a whole model: config, weights and tokenizer fit each other, and every
    weight is a number. notes: spare reading files whole that were read before. Raises UserError.
    """
    paths, _ = check_weights(directory, where, model, trained)
    rows = read_json(directory / "config.json", where).get("vocab_size")
    checked_tokenizer(directory, where, model, rows)
    if (directory / "generation_config.json").exists():
        read_json(directory / "generation_config.json", where)
    check_content(directory, [p for p in paths if notes is None or not notes.get(p)], where)
    return paths


def check_content(directory: Path, paths: list[Path], where: str) -> None:
    """Reads weight files whole: they are what DONE says, where there is one, and hold numbers."""
    if paths and files.is_done(directory):
        files.verify(directory)
    check_finite(paths, where)


@contextlib.contextmanager
def one_line(where: str, caught: type[BaseException] = BaseException):
    """Whatever a library raises about a foreign file becomes one line. tokenizers panics in Rust,
    which is no Exception.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except caught as error:
        raise UserError(f"{where}: {said(error)}") from None


@contextlib.contextmanager
def quiet():
    """Without the tables, bars and warnings of transformers and peft: the one line says it."""
    from transformers.utils import logging as spoken

    level, bars = spoken.get_verbosity(), spoken.is_progress_bar_enabled()
    spoken.set_verbosity(logging.CRITICAL)
    spoken.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        spoken.set_verbosity(level)
        if bars:
            spoken.enable_progress_bar()
