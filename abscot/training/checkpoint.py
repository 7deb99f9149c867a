"""Trained weights, optimizer state and TrainState of one phase: atomic, checksummed, for any number
of ranks.

A rank writes its own slices of every trained tensor, as DeepSpeed partitions them, each with the
index at which it begins; a run on other ranks reads the slices that it needs. Weights that training
does not change are not in it.

    step_0000120/DONE                       checksums, TrainState
                 rank_00003_000.safetensors fp32/NAME, exp_avg/NAME, exp_avg_sq/NAME: flat float32
                                            slices of tensor NAME
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydantic
import torch.distributed
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from abscot.common import files, ranks
from abscot.common.disk import naming
from abscot.common.errors import DamagedInput, UserError, shown
from abscot.common.log import log
from abscot.common.record import Record
from abscot.model import checkpoint_dirs
from abscot.training.optimizer import MASTER, OPTIMIZERS, set_optimizer_step
from abscot.training.together import on_all_ranks

FILE_BYTES = 1 << 30
# `first` in a file's metadata: tensor name -> the element at which its slice begins.
BEGINS = pydantic.TypeAdapter(dict[str, pydantic.NonNegativeInt])


class TrainState(Record):
    """What a resumed run must agree on. `step` is the number of optimizer steps already taken."""

    step: pydantic.NonNegativeInt
    epoch: pydantic.NonNegativeInt
    tokens: pydantic.NonNegativeInt
    plan_hash: str
    world_size: pydantic.PositiveInt


def save(model_engine, directory: Path, state: TrainState, keep: int, optimizer: str) -> None:
    """Writes directory/step_N, all ranks at once; it exists only when it is complete. Keeps the
    `keep` newest. optimizer: its name, for the state that it keeps.
    """
    began_s = time.monotonic()
    final = checkpoint_dirs.at_step(directory, state.step)
    temp = checkpoint_dirs.hidden(final)
    if ranks.rank() == 0:
        for path in checkpoint_dirs.unfinished(directory):
            shutil.rmtree(path)
        temp.mkdir(parents=True)
    torch.distributed.barrier()
    try:
        sums = on_all_ranks(lambda: _write_slices(model_engine, temp, optimizer))
    except OSError:  # a disk that is full ends all ranks, and what they wrote is removed
        if ranks.rank() == 0:
            shutil.rmtree(temp, ignore_errors=True)
        raise
    if ranks.rank() == 0:
        sums = {name: digest for of_rank in sums for name, digest in of_rank.items()}
        files.seal(temp, state.model_dump(), sums)
        shutil.rmtree(final, ignore_errors=True)
        temp.rename(final)
        checkpoint_dirs.clear(directory, keep)
        size_bytes = sum((final / name).stat().st_size for name in sums)
        log(
            f"checkpoint {final.name}: {size_bytes / 1e9:.2f} GB in "
            f"{time.monotonic() - began_s:.1f} s"
        )
    torch.distributed.barrier()


def state_of(checkpoint: Path) -> TrainState:
    """Raises DamagedInput where DONE is not a checkpoint's."""
    if not files.is_done(checkpoint):
        raise DamagedInput(checkpoint, f"{checkpoint}: its {files.DONE} is gone")
    meta, where = files.read_done(checkpoint), str(checkpoint / files.DONE)
    try:
        return TrainState.of(meta, f"{where}: meta", mend="")
    except UserError as error:
        raise DamagedInput(checkpoint, str(error)) from None


def tensor_files(checkpoint: Path) -> list[str]:
    """The names of those that DONE lists. Raises as `files.read_done` does."""
    names = files.Done.of_directory(checkpoint).files
    return sorted(name for name in names if name.endswith(".safetensors"))


def load(model_engine, checkpoint: Path, optimizer: str) -> TrainState:
    """Restores weights, optimizer and step on all ranks, however many wrote it. The optimizer has
    taken a step before: its state must exist.

    Raises UserError, on all ranks, where the checkpoint holds other tensors than the model engine
    trains.
    """

    def restore() -> None:
        with _Slices(checkpoint) as slices:
            for shard in _shards(model_engine):
                shard.write(
                    {
                        key: slices.read(f"{key}/{shard.name}", shard.first, shard.numel)
                        for key in OPTIMIZERS[optimizer].saved
                    }
                )

    state = state_of(checkpoint)
    on_all_ranks(restore)
    set_optimizer_step(model_engine, state.step)
    _publish_masters(model_engine.optimizer)
    return state


@dataclass(frozen=True)
class _Shard:
    """This rank's part of one trained tensor: elements first .. first + numel of its flat fp32
    master and moments.
    """

    name: str
    first: int
    numel: int
    parameter: torch.nn.Parameter

    def read(self, key: str) -> torch.Tensor:
        """float32 [numel], perhaps a view of the live state."""
        p = self.parameter
        if not hasattr(p, "ds_id"):
            return p._hp_mapping.get_hp_fragment(None if key == MASTER else key)
        whole = (
            safe_get_local_fp32_param(p)
            if key == MASTER
            else safe_get_local_optimizer_state(p, key)
        )
        return whole[: self.numel]

    def write(self, values: dict[str, torch.Tensor]) -> None:
        p = self.parameter
        for key, value in values.items():
            if not hasattr(p, "ds_id"):
                self.read(key).data.copy_(value)
                continue
            whole = torch.nn.functional.pad(value, (0, p.ds_tensor.numel() - self.numel))
            if key == MASTER:
                safe_set_local_fp32_param(p, whole)
            else:
                safe_set_local_optimizer_state(p, whole, key)


def _shards(model_engine) -> Iterator[_Shard]:
    if hasattr(model_engine.optimizer, "_hp_optimizer_states_linked"):
        # ZeRO-1 and 2 link the states of all groups when the first group has stepped: the others
        # had none then.
        model_engine.optimizer._hp_optimizer_states_linked = False
        model_engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in model_engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):  # ZeRO-3: equal parts, the last one padded
            size = parameter.ds_tensor.numel()
            first = min(ranks.rank() * size, parameter.ds_numel)
            yield _Shard(name, first, min(size, parameter.ds_numel - first), parameter)
        elif (
            parameter._hp_mapping is not None
        ):  # ZeRO-1 and 2: a rank holds a range of all tensors laid end to end
            address = parameter._hp_mapping.lp_fragment_address
            yield _Shard(name, address.start, address.numel, parameter)


def _write_slices(model_engine, directory: Path, optimizer: str) -> dict[str, str]:
    """Writes this rank's files, of at most FILE_BYTES and one tensor; returns their checksums."""
    tensors, first, size, sums = {}, {}, 0, {}

    def flush() -> None:
        nonlocal tensors, first, size
        path = directory / f"rank_{ranks.rank():05}_{len(sums):03}.safetensors"
        with naming(path):
            save_file(tensors, path, metadata={"first": json.dumps(first)})
            sums[path.name] = files.sha256_on_disk(path)
        tensors, first, size = {}, {}, 0

    for shard in _shards(model_engine):
        for key in OPTIMIZERS[optimizer].saved:
            value = shard.read(key).detach().to("cpu", copy=True)
            if tensors and size + value.nbytes > FILE_BYTES:
                flush()
            tensors[f"{key}/{shard.name}"], first[f"{key}/{shard.name}"] = value, shard.first
            size += value.nbytes
    flush()
    return sums


class _Slices(contextlib.ExitStack):
    """All slices of a checkpoint, memory-mapped: what is not asked for is not read."""

    def __init__(self, checkpoint: Path):
        super().__init__()
        self.checkpoint, self.of = checkpoint, {}
        for path in (checkpoint / name for name in tensor_files(checkpoint)):
            try:
                file = self.enter_context(safe_open(path, "pt"))
                begins = BEGINS.validate_json((file.metadata() or {}).get("first", ""))
                for name, first in begins.items():
                    self.of.setdefault(name, []).append((first, file.get_slice(name)))
            except (OSError, SafetensorError, ValueError) as error:
                what = shown(str(error), 200)
                raise DamagedInput(checkpoint, f"{path}: no slices of ours ({what})") from None

    def read(self, name: str, first: int, numel: int) -> torch.Tensor:
        """float32 [numel] of tensor `name` from element `first` on, put together from the files
        that hold it.
        """
        out, found = torch.empty(numel), 0
        for start, part in self.of.get(name, ()):
            low, high = max(first, start), min(first + numel, start + part.get_shape()[0])
            if low < high:
                out[low - first : high - first] = part[low - start : high - start]
                found += high - low
        if found != numel:
            raise UserError(
                f"{self.checkpoint}: holds {found} of {numel} elements of {name}: it was made by "
                f"training other tensors; delete {self.checkpoint.parent} to start over"
            )
        return out


def _publish_masters(optimizer) -> None:
    """The weights that the model computes with, from the fp32 masters: what the optimizer does
    after each step.
    """
    if hasattr(optimizer, "update_lp_params"):  # ZeRO-1 and 2
        optimizer.update_lp_params()
        return
    optimizer.checkpoint_event_prologue()
    for half, master in zip(
        optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
    ):
        half.data.copy_(master.data)
    optimizer.checkpoint_event_epilogue()
