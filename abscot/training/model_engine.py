"""DeepSpeed's model engine: ranks, configuration, sharded loading. The one door to DeepSpeed."""

import contextlib
import copy
import os
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from abscot.common import files, gpus, ranks
from abscot.common.caches import use_local_caches
from abscot.common.errors import MachineError, UserError
from abscot.common.log import log
from abscot.common.process import free_port
from abscot.model.lm import load_for_training, parameter_counts, restore_rotary
from abscot.model.shape import ModelShape
from abscot.recipe.deepspeed_file import read_deepspeed_file
from abscot.recipe.load import ROOT
from abscot.recipe.schema import Recipe
from abscot.training.optimizer import make_optimizer


def init_ranks() -> torch.device:
    """Joins the process group with the launcher's ranks (deepspeed, torchrun or srun), or as the
    only rank. Returns this rank's device. Raises MachineError where there is no GPU for it, though
    GPUs are visible, and where torch cannot use them.
    """
    gpus.hide_where_asked()
    if "RANK" not in os.environ:  # plain python; without all five DeepSpeed would ask mpi4py
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
    use_local_caches()
    device = _device_of_rank()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault(gpus.ACCELERATOR, "cpu")
        torch.set_num_threads(ranks.cores_per_rank())
        _without_shared_memory_operator()
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return device


def _device_of_rank() -> torch.device:
    """Its number among the ranks of this machine is that of its GPU. A task that is shown one GPU
    alone (srun --gpus-per-task) was given it.
    """
    if not gpus.on_gpu():
        return torch.device("cpu")
    said, seen = os.environ.get(gpus.VISIBLE), torch.cuda.device_count()
    if seen == 1 and "," not in (said or ""):
        return torch.device("cuda", 0)
    here = max(ranks.local_rank() + 1, ranks.told_local_world_size() or 0)
    if here > seen:
        raise MachineError(
            f"{here} ranks on this machine, but CUDA shows them {seen} GPU{'s' * (seen != 1)} "
            f"({gpus.VISIBLE} {'is not set' if said is None else said}); start a rank a GPU: "
            f"deepspeed --num_gpus {seen}, or --set train.num_gpus={seen}"
        )
    return torch.device("cuda", ranks.local_rank())


def _without_shared_memory_operator() -> None:
    """It serves inference alone, and a rank that is killed leaves its 69 MB in /dev/shm, which is
    memory, for good.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def deepspeed_config(recipe: Recipe, shape: ModelShape) -> dict:
    """The recipe's DeepSpeed file with what the recipe and the model decide filled in. Raises
    UserError for what would clash, and for what DeepSpeed refuses.
    """
    path = Path(recipe.train.deepspeed)
    path = path if path.is_absolute() else ROOT / path
    config = read_deepspeed_file(path)
    config["bf16"] = {**config.get("bf16", {}), "enabled": recipe.model.dtype == "bf16"}
    # A micro-batch is one packed bin; the number of them in a step is the plan's, not DeepSpeed's.
    config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.train.grad_clip,
        # Which optimizers work is for our own table to say (optimizer.py).
        "zero_allow_untested_optimizer": True,
    }
    if config["zero_optimization"]["stage"] == 3:
        # What one gather fetches ahead, as long as no more than stage3_max_live_parameters are
        # whole: two layers, where DeepSpeed's own 50M are half a layer of 4B.
        two_layers = 2 * shape.linear_parameters_per_layer
        config["zero_optimization"].setdefault("stage3_prefetch_bucket_size", two_layers)
    try:
        deepspeed.DeepSpeedConfig(copy.deepcopy(config))
    except Exception as error:  # it has no error of its own
        says = " ".join(str(error).split())[:300]
        raise UserError(f"train.deepspeed: {path}: DeepSpeed refuses it: {says}") from error
    return config


def build_model_engine(
    recipe: Recipe, start: Path, directory: Path, device: torch.device, name: str
):
    """The model engine for `start`; the resolved DeepSpeed config goes into `directory`. name: of
    the training.
    """
    config = deepspeed_config(recipe, ModelShape.of_directory(start))
    with _sharded_loading(config, recipe):
        module = load_for_training(start, recipe, device, name)
    restore_rotary(module)
    offload = config["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
    optimizer = make_optimizer(module, recipe, offload, device)
    model_engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if ranks.rank() == 0:
        files.write_json_atomic(directory / "deepspeed.json", config)
    trainable, total = parameter_counts(model_engine.module)
    log(
        f"{trainable:,} of {total:,} parameters trained ({100 * trainable / total:.2f}%), "
        f"ZeRO-{model_engine.zero_optimization_stage()}, {ranks.world_size()} ranks on "
        f"{get_accelerator().device_name()}, {recipe.model.dtype}, attention {module.backend}"
    )
    return model_engine


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
