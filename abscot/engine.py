"""The DeepSpeed engine: ranks, configuration, optimizer groups and the learning rate, which nobody
else sets.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import resource
import socket
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from abscot import dist, model, paths
from abscot.config import ROOT, Recipe, TrainConfig, UserError


def init_ranks() -> torch.device:
    """Joins the process group with the launcher's ranks (deepspeed, torchrun or srun), or as the
    only rank.
    """
    dist.take_ranks_from_slurm()
    if (
        "RANK" not in os.environ
    ):  # plain python; with any of the five missing DeepSpeed would ask mpi4py
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": _free_port(),
        }
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.set_num_threads(dist.cores_a_rank())
        _without_shared_memory_operator()
    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    device = torch.device("cuda", dist.local_rank()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return device


def _without_shared_memory_operator() -> None:
    """It serves inference alone, and a rank that is killed leaves its 69 MB in /dev/shm, which is
    memory, for good.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextlib.contextmanager
def _one_builder_a_host():
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


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def deepspeed_config(recipe: Recipe) -> dict:
    """The recipe's DeepSpeed file with what the recipe decides filled in. Raises UserError for what
    would clash.
    """
    path = Path(recipe.train.deepspeed)
    path = path if path.is_absolute() else ROOT / path
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"train.deepspeed: {path}:{error.lineno}: not JSON ({error.msg})") from None
    owned = {
        "optimizer",
        "scheduler",
        "gradient_clipping",
        "gradient_accumulation_steps",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    } & set(config)
    if owned:
        raise UserError(
            f"train.deepspeed: {path}: remove {', '.join(sorted(owned))}; the recipe's train "
            "section owns it"
        )
    config["bf16"] = {**config.get("bf16", {}), "enabled": recipe.model.dtype == "bf16"}
    # A micro-batch is one packed bin; the number of them in a step is the plan's, not DeepSpeed's.
    config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.train.grad_clip,
    }
    return config


def build_engine(recipe: Recipe, start: Path, directory: Path, device: torch.device):
    """The engine for the model at `start`; the resolved DeepSpeed config goes into `directory`."""
    config = deepspeed_config(recipe)
    with _sharded_loading(config, recipe):
        module = model.load_for_training(start, recipe, device)
    model.restore_rotary(module)
    offload = config["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
    optimizer = _optimizer(parameter_groups(module, recipe), recipe.train, offload, device)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if dist.rank() == 0:
        paths.write_json_atomic(directory / "deepspeed.json", config)
    trainable, total = model.parameter_counts(engine.module)
    dist.log(
        f"{trainable:,} of {total:,} parameters trained ({100 * trainable / total:.2f}%), "
        f"ZeRO-{engine.zero_optimization_stage()}, {dist.world_size()} ranks on "
        f"{get_accelerator().device_name()}, "
        f"{recipe.model.dtype}, attention {module.backend}"
    )
    return engine


@contextlib.contextmanager
def _sharded_loading(config: dict, recipe: Recipe):
    """Under ZeRO-3 every rank keeps only its part of each tensor while loading: no rank ever holds
    the model.

    Not with LoRA: peft's token rows are made from whole weights.
    """
    if config["zero_optimization"]["stage"] != 3 or recipe.lora:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(config)  # transformers holds a weak reference to it
    try:
        yield alive
    finally:
        unset_hf_deepspeed_config()


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


def _optimizer(groups: list[dict], config: TrainConfig, offload: bool, device: torch.device):
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.ops.op_builder import CPUAdamBuilder

        try:
            with _one_builder_a_host():
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


def peak_bytes(device: torch.device) -> int:
    """The most memory that this rank has taken: reserved by torch on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
