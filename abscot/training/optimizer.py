"""Optimizer, its groups and the learning rate, which nobody else sets."""

import contextlib
import fcntl
import hashlib
import math
import os
import socket
import sys
from pathlib import Path

import torch

from abscot.common.errors import UserError
from abscot.recipe.schema import Recipe, TrainConfig


@contextlib.contextmanager
def one_builder_per_host():
    """DeepSpeed's operators are compiled on first use. torch guards that by a lock file, which
    outlives a process that is killed, and which the next one would wait for without end; the
    kernel's lock does not.
    """
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[
        :8
    ]  # two of them would rebuild each other's
    own = Path.home() / ".cache" / "torch_extensions" / f"{socket.gethostname()}-{environment}"
    folder = os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own))
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / "abscot.lock", "w") as kernels:
        fcntl.flock(kernels, fcntl.LOCK_EX)
        for left_over in Path(folder).rglob("lock"):
            left_over.unlink()
        yield


def parameter_groups(module, recipe: Recipe) -> list[dict]:
    """Body, and the embedding table with its own learning rate; no weight decay on vectors (norms,
    biases).
    """
    config = recipe.train
    groups = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            table = "embed_tokens" in name or "lm_head" in name
            decay = 0.0 if parameter.ndim < 2 else config.weight_decay
            groups.setdefault((table, decay), []).append(parameter)
    table_scale = (config.new_rows_lr or config.lr) / config.lr
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": table_scale if table else 1.0}
        for (table, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(groups: list[dict], config: TrainConfig, offload: bool, device: torch.device):
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.ops.op_builder import CPUAdamBuilder

        try:
            with one_builder_per_host():
                CPUAdamBuilder().load(verbose=False)
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                "train.deepspeed: offload needs DeepSpeed's CPUAdam, which does not build here "
                f"({reason}); load a CUDA "
                f"toolkit that matches torch's CUDA {torch.version.cuda}, or use "
                "ds_configs/zero3.json"
            ) from error
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=device.type == "cuda", **settings)


def set_lr(engine, lr: float) -> None:
    """The step's learning rate in every group: its only owner (accelerate#1096)."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_optimizer_step(engine, step: int) -> None:
    """Sets what Adam's bias correction counts."""
    for of_tensor in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(of_tensor["step"]):
            of_tensor["step"].fill_(step)
        else:
            of_tensor["step"] = step


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
    }[config.schedule]
    if step < start:
        return peak
    done = (step - start) / (num_steps - start)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * shape)
