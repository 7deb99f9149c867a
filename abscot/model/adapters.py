"""A PEFT adapter from elsewhere: what it says is checked, and it is merged into its own base."""

from pathlib import Path

import torch

from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.method.vocab import TABLE_MULTIPLE
from abscot.model.check import TOKENIZER_FILES, check_content, one_line, quiet
from abscot.model.weights import (
    ADAPTER_WEIGHTS,
    INDEX,
    PICKLED,
    SINGLE,
    read_json,
    said,
    tensor_shapes,
)

CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"
WHOLE_TABLES = (".embed_tokens.weight", ".lm_head.weight")


def is_adapter(directory: Path, where: str) -> bool:
    """Raises UserError for a directory that is a model and an adapter: transformers would load both
    into one.
    """
    if not (directory / CONFIG).exists():
        return False
    for name in (SINGLE, INDEX):
        if (directory / name).exists():
            raise UserError(f"{where}: both {name} and {CONFIG}; move away the one not meant")
    return True


def check_adapter(directory: Path, where: str) -> tuple[str, list[Path]]:
    """(what it names as its base, its weight files). Raises UserError."""
    config = read_json(directory / CONFIG, where)
    if config.get("peft_type") != "LORA":
        kind = said(repr(config.get("peft_type")), 40)
        raise UserError(f"{where}: {CONFIG}: only LORA adapters can be merged, found {kind}")
    if config.get("megatron_config") is not None:
        raise UserError(f"{where}: {CONFIG}: megatron_config: Megatron's adapters are not read")
    base = config.get(BASE)
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{where}: {CONFIG}: {BASE}: expected its base, found {said(repr(base), 40)}"
        )
    weights = directory / ADAPTER_WEIGHTS
    if not weights.is_file():
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED)
        found = f"; {pickled[0]} is not read, for it may run code" if pickled else ""
        raise UserError(f"{where}: an adapter without {ADAPTER_WEIGHTS}{found}")
    if not tensor_shapes([weights], where):
        raise UserError(f"{where}: {ADAPTER_WEIGHTS}: holds no tensors")
    check_content(directory, [weights], where)
    return base, [weights]


def tokenizer_directory(adapter: Path, base: Path) -> Path:
    """The adapter's own tokenizer, where it brings one; else its base's."""
    own = any((adapter / name).is_file() for name in TOKENIZER_FILES)
    return adapter if own else base


def attached(lm, tokenizer, directory: Path, where: str):
    """`lm` with the adapter beside its weights; its tables get the adapter's number of rows first.
    A model on the meta device shows whether the two fit. Raises UserError where they do not.
    """
    import peft

    shapes = tensor_shapes([directory / ADAPTER_WEIGHTS], where)
    rows = _rows(lm, tokenizer, directory, shapes, where)
    with one_line(f"{where}: not an adapter of its base"), quiet():
        if rows != lm.get_input_embeddings().weight.shape[0]:
            lm.resize_token_embeddings(rows, mean_resizing=False)
        config = peft.LoraConfig.from_pretrained(str(directory))
        config.inference_mode = True
        wrapped = peft.PeftModelForCausalLM(
            lm, config, autocast_adapter_dtype=False, low_cpu_mem_usage=lm.device.type == "meta"
        )
        loaded = wrapped.load_adapter(
            str(directory),
            "default",
            torch_device="cpu",
            autocast_adapter_dtype=False,
            low_cpu_mem_usage=lm.device.type == "meta",
        )
        # Of a resized table peft also saves its own copy, under a name that it does not read.
        extra = [name for name in loaded.unexpected_keys if ".modules_to_save." not in name]
        wrong = [*loaded.missing_keys, *extra, *_left_out(config, shapes)]
        if wrong:
            raise UserError(
                f"{where}: not an adapter of its base: {len(wrong)} tensors of the one have no "
                f"place in the other, first {said(wrong[0])}"
            )
    return wrapped


def merged(lm, tokenizer, directory: Path, where: str):
    """`lm` with the adapter merged in, as a plain model. Raises UserError."""
    tied = lm.config.tie_word_embeddings
    wrapped = attached(lm, tokenizer, directory, where)
    with one_line(where), quiet():
        lm = wrapped.merge_and_unload(safe_merge=True)
        return _tied_as_trained(lm, where) if tied else lm


def _left_out(config, shapes: dict) -> list[str]:
    """Modules that the config says were trained whole, and that the file does not hold."""
    return [m for m in config.modules_to_save or [] if not any(f".{m}." in name for name in shapes)]


def _rows(lm, tokenizer, directory: Path, shapes: dict, where: str) -> int:
    """Rows that the tables have under the adapter: those of a table that it brings whole; more than
    the base's only where it brings them.
    """
    brought = {shape[0] for name, shape in shapes.items() if name.endswith(WHOLE_TABLES)}
    brought |= {shape[1] for name, shape in shapes.items() if "lora_embedding_A" in name}
    if len(brought) > 1:
        raise UserError(f"{where}: its tables have {' and '.join(map(str, sorted(brought)))} rows")
    rows, last = lm.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if brought:
        rows = brought.pop()
    elif last >= rows:
        trained = read_json(directory / CONFIG, where).get("trainable_token_indices")
        lists = trained.values() if isinstance(trained, dict) else [trained or []]
        if not all(set(range(rows, last + 1)) <= set(ids) for ids in lists):
            raise UserError(
                f"{where}: its tokenizer has ids up to {last:,}, its base {rows:,} rows, and it "
                "does not bring the others"
            )
        rows = -(-(last + 1) // TABLE_MULTIPLE) * TABLE_MULTIPLE
    if last >= rows:
        raise UserError(f"{where}: its tokenizer has ids up to {last:,}, its tables {rows:,} rows")
    return rows


def _tied_as_trained(lm, where: str):
    """A tied model whose two tables were trained apart is untied; equal ones are one tensor."""
    table, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    lm.config.tie_word_embeddings = torch.equal(head.weight, table.weight)
    if lm.config.tie_word_embeddings:
        head.weight = table.weight
    else:
        log(f"{where}: the adapter trained the two tied tables apart: untied")
    return lm
