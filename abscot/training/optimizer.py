"""The optimizer: a table of kinds, with the state that each keeps, its parameter groups, and the
learning rate, which nobody else sets.

torch is imported where it is needed: estimates read the table without it.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from abscot.common.errors import UserError
from abscot.model.shape import FP32_BYTES
from abscot.recipe.schema import OptimizerConfig, Recipe, TrainConfig

MASTER = "fp32"  # the fp32 copy of a weight, which every kind steps


@dataclass(frozen=True)
class OptimizerKind:
    """One row of the table, by the recipe's optimizer.name.

    states: fp32 tensors per parameter beside the master, by torch's names: what a checkpoint keeps
    and memory holds. step_copies: tensors as large as its parameters that a step in torch holds for
    a moment. make: (groups, lr, config, device) -> the optimizer. make_offloaded: likewise, on the
    CPU's memory; None where DeepSpeed has no such kind.
    """

    states: tuple[str, ...]
    step_copies: int
    make: Callable
    make_offloaded: Callable | None = None

    @property
    def saved(self) -> tuple[str, ...]:
        """What a checkpoint keeps of every trained tensor."""
        return (MASTER, *self.states)

    @property
    def bytes_per_parameter(self) -> int:
        return FP32_BYTES * len(self.saved)


def _adamw(groups: list[dict], lr: float, config: OptimizerConfig, device):
    import torch

    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=device.type == "cuda")


def _cpu_adam(groups: list[dict], lr: float, config: OptimizerConfig, device):
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        with one_builder_per_host():
            CPUAdamBuilder().load(verbose=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            "train.deepspeed: offload needs DeepSpeed's CPUAdam, which does not build here "
            f"({reason}); it wants a C++ compiler (c++, or the one that $CXX names), ninja and "
            "Python's headers, on GPUs too, and no CUDA toolkit; or use ds_configs/zero3.json"
        ) from error
    betas = (config.beta1, config.beta2)
    return DeepSpeedCPUAdam(groups, lr=lr, betas=betas, adamw_mode=True)


OPTIMIZERS = {
    "adamw": OptimizerKind(
        states=("exp_avg", "exp_avg_sq"), step_copies=3, make=_adamw, make_offloaded=_cpu_adam
    ),
}


def make_optimizer(module, recipe: Recipe, offload: bool, device):
    """The recipe's optimizer over the trained parameters of `module`.

    Raises UserError for one that cannot be offloaded, or whose operator does not build.
    """
    kind, groups = OPTIMIZERS[recipe.optimizer.name], parameter_groups(module, recipe)
    make = kind.make_offloaded if offload else kind.make
    if make is None:
        raise UserError(
            f"train.deepspeed: {recipe.train.deepspeed} offloads the optimizer, which "
            f"optimizer.name={recipe.optimizer.name} cannot; use ds_configs/zero3.json"
        )
    return make(groups, recipe.train.lr, recipe.optimizer, device)


def parameter_groups(module, recipe: Recipe) -> list[dict]:
    """Body, and the embedding table with its own learning rate; no weight decay on vectors (norms,
    biases).
    """
    train, groups = recipe.train, {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            table = "embed_tokens" in name or "lm_head" in name
            decay = 0.0 if parameter.ndim < 2 else recipe.optimizer.weight_decay
            groups.setdefault((table, decay), []).append(parameter)
    table_scale = (train.new_rows_lr or train.lr) / train.lr
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": table_scale if table else 1.0}
        for (table, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


@contextlib.contextmanager
def one_builder_per_host():
    """DeepSpeed's operators are compiled on first use. torch guards that by a lock file, which
    outlives a process that is killed, and which the next one would wait for without end; the
    kernel's lock does not.
    """
    # Two environments would rebuild each other's.
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    own = Path.home() / ".cache" / "torch_extensions" / f"{socket.gethostname()}-{environment}"
    folder = os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own))
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / "abscot.lock", "w") as kernels:
        fcntl.flock(kernels, fcntl.LOCK_EX)
        for left_over in Path(folder).rglob("lock"):
            left_over.unlink()
        yield


def set_lr(model_engine, lr: float) -> None:
    """The step's learning rate in every group: its only owner (accelerate#1096)."""
    for group in model_engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_optimizer_step(model_engine, step: int) -> None:
    """Sets what a bias correction counts, where the optimizer has one."""
    for of_tensor in model_engine.optimizer.optimizer.state.values():
        counted = of_tensor.get("step")
        if isinstance(counted, int):
            of_tensor["step"] = step
        elif counted is not None:
            counted.fill_(step)


def lr_at(step: int, num_steps: int, peak: float, config: TrainConfig) -> float:
    """Learning rate of the 0-based `step` of `num_steps`: linear warm-up, then cosine, constant or
    WSD.

    Warm-up step k of w gets (k + 1) / w of the peak; the decay would reach min_lr_ratio on the step
    after the last, so that no step is spent at zero. WSD holds the peak and decays linearly over
    the last fifth.
    """
    warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    start = {
        "cosine": warmup,
        "wsd": max(warmup, math.floor(0.8 * num_steps)),
        "constant": num_steps,
    }[config.lr_schedule]
    if step < start:
        return peak
    done = (step - start) / (num_steps - start)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.lr_schedule == "cosine" else 1 - done
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * shape)
