"""The model engine's weights -> verified safetensors: full model (LoRA merged) and, with LoRA, the
adapter.

Weights are gathered one parameter at a time and written shard by shard, so that nothing larger than
one shard exists beside the model, and what is written is what the engine computes with: no
optimizer file is read back. Every rank must call `export`: gathering is collective
(DeepSpeed#3841).
"""

import contextlib
import json
import shutil
from pathlib import Path

import deepspeed
from safetensors import safe_open
from safetensors.torch import save_file

from abscot.common import files, ranks
from abscot.common.errors import UserError
from abscot.model.chat_model import ChatModel, DecodingRules
from abscot.model.handover import ExportMeta
from abscot.model.lm import unwrapped
from abscot.model.lora import ADAPTER_PARTS, adapter_parameters, merged_weight, plain_name

SHARD_BYTES = 4 << 30


def export(
    lm,
    source: Path,
    target: Path,
    adapter: Path | None,
    meta: ExportMeta,
    codebook: Path | None = None,
    chat: ChatModel | None = None,
) -> None:
    """Publishes `target` (loads with AutoModelForCausalLM and vLLM) and `adapter` (loads with
    PeftModel). codebook: goes along as target/codebook, where no loader of models looks.

    lm: the transformers or peft model inside the model engine. source: the model that training
    started from; its tensor names, shapes and dtypes are what `target` must have, and its config
    and tokenizer go along unchanged. chat: what a model that writes traces carries beside them, and
    its adapter too.
    """
    with _on_rank0(files.publish(target, meta.model_dump(exclude_none=True))) as temp:
        _write_shards(_full_tensors(lm), temp)
        if temp:
            _check_complete(tensor_table(temp), tensor_table(source), source)
            _copy_companions(source, temp)
            if chat:
                chat.write(temp)
            if codebook:
                sealed = shutil.ignore_patterns(files.DONE)  # by the DONE of `target`
                shutil.copytree(codebook, temp / codebook.name, ignore=sealed)
    if adapter:
        with _on_rank0(
            files.publish(adapter, meta.model_copy(update={"applies_to": str(source)}).model_dump())
        ) as temp:
            _write_adapter(lm, temp)
            if temp and chat:
                shutil.copyfile(source / DecodingRules.FILE, temp / DecodingRules.FILE)
                chat.write(temp)


@contextlib.contextmanager
def _on_rank0(publishing):
    """`publishing` on rank 0; None on the others, which only take part in the gathering."""
    if ranks.rank() == 0:
        with publishing as temp:
            yield temp
    else:
        yield None


def tensor_table(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """name -> (shape, dtype) of every tensor of a model directory, from the safetensors headers
    alone.
    """
    table = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                view = file.get_slice(name)
                table[name] = (tuple(view.get_shape()), view.get_dtype())
    if not table:
        raise UserError(
            f"{directory}: no *.safetensors; expected a model directory made by launch/extend.py"
        )
    return table


def _full_tensors(lm):
    """(name, CPU tensor on rank 0 or None) of the plain model, adapters merged in; one parameter
    gathered at a time.
    """
    bare = unwrapped(lm)
    modules = dict(bare.named_modules())
    for name, parameter in bare.named_parameters():
        if any(part in name for part in ADAPTER_PARTS):
            continue
        wrapper = modules[name.partition(".base_layer.")[0]] if ".base_layer." in name else None
        with gathered([parameter, *adapter_parameters(wrapper)]):
            tensor = merged_weight(parameter, wrapper) if ranks.rank() == 0 else None
        yield plain_name(name), tensor
    for name, buffer in bare.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if leaf not in modules[owner]._non_persistent_buffers_set and "token_adapter" not in name:
            yield plain_name(name), buffer.detach().cpu().clone()


def gathered(parameters: list):
    """The parameters whole on every rank, under ZeRO-3; a plain block otherwise."""
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    return (
        deepspeed.zero.GatheredParameters(partitioned) if partitioned else contextlib.nullcontext()
    )


def _write_shards(tensors, directory: Path | None) -> None:
    """Streams tensors into model-0000N.safetensors of at most SHARD_BYTES, and the index that names
    them.
    """
    shard, size, number, total, index = {}, 0, 0, 0, {}

    def flush():
        nonlocal shard, size, number
        number += 1
        name = f"model-{number:05}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    for name, tensor in tensors:
        if tensor is None or directory is None:
            continue
        assert name not in index and name not in shard, f"{name} twice"
        nbytes = tensor.numel() * tensor.element_size()
        if shard and size + nbytes > SHARD_BYTES:
            flush()
        shard[name] = tensor
        size += nbytes
        total += nbytes
    if directory:
        flush()
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        (directory / "model.safetensors.index.json").write_text(text)


def _check_complete(written: dict, expected: dict, source: Path) -> None:
    """Every tensor of the source is there with its shape and dtype, and no other."""
    wrong = sorted(
        name for name in {*written, *expected} if written.get(name) != expected.get(name)
    )
    if wrong:
        name = wrong[0]
        raise RuntimeError(
            f"export: {len(wrong)} tensors differ from {source}, first {name}: expected "
            f"{expected.get(name)}, wrote {written.get(name)}"
        )


def _copy_companions(source: Path, target: Path) -> None:
    """config, generation config, tokenizer and chat template, as they are there."""
    for path in source.iterdir():
        weights = path.suffix == ".safetensors" or path.name == "model.safetensors.index.json"
        if path.is_file() and not weights and path.name not in (files.DONE, "README.md"):
            shutil.copyfile(path, target / path.name)


def _write_adapter(lm, directory: Path | None) -> None:
    tensors = {}
    for name, parameter in lm.named_parameters(
        remove_duplicate=False
    ):  # peft wants both names of a tied table
        if parameter.requires_grad:
            with gathered([parameter]):
                tensors[name] = parameter.detach().cpu().clone().contiguous()
    if directory:
        import peft

        state = peft.get_peft_model_state_dict(lm, state_dict=tensors, save_embedding_layers=False)
        save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        lm.peft_config["default"].save_pretrained(directory)
