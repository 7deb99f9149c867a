"""A DeepSpeed file (`train.deepspeed`), read and checked without DeepSpeed, which takes seconds to
load: what it may say, and what the recipe says instead.
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from abscot.common import json_text
from abscot.common.errors import UserError, shown
from abscot.recipe.yaml_text import read

OWNED = (  # by the recipe's sections train, optimizer and model
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "fp16",
    "torch_autocast",
)
SHIPPED = "see ds_configs/zero3.json"

Count = Annotated[int, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Above0 = Annotated[int, pydantic.Field(gt=0)]
Section = dict[str, Any]  # DeepSpeed checks its keys when training begins
Dtype = Literal["fp32", "fp16", "bf16"]


class _Keys(pydantic.BaseModel):
    """A key without a value here may be left out, and is not null."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OffloadOptimizer(_Keys):
    device: Literal["none", "cpu"]
    pin_memory: bool = None
    buffer_count: Count = None
    fast_init: bool = None
    ratio: Share = None
    cpuadam_cores_perc: Share = None


class OffloadParameters(_Keys):
    device: Literal["none", "cpu"]
    pin_memory: bool = None
    buffer_count: Count = None
    buffer_size: Count = None
    max_in_cpu: Count = None


class ZeroOptimization(_Keys):
    """stage 0, which shards nothing, has no checkpoint of ours."""

    stage: Annotated[int, pydantic.Field(ge=1, le=3)]
    offload_optimizer: OffloadOptimizer = None
    offload_param: OffloadParameters = None
    overlap_comm: bool = None
    contiguous_gradients: bool = None
    reduce_scatter: bool = None
    allgather_partitions: bool = None
    round_robin_gradients: bool = None
    ignore_unused_parameters: bool = None
    use_multi_rank_bucket_allreduce: bool = None
    memory_efficient_linear: bool = None
    log_trace_cache_warnings: bool = None
    reduce_bucket_size: Above0 = None
    allgather_bucket_size: Count = None
    sub_group_size: Count = None
    zero_hpz_partition_size: Count = None
    zero_quantized_weights: bool = None
    zero_quantized_gradients: bool = None
    stage3_prefetch_bucket_size: Count = None
    stage3_param_persistence_threshold: Count = None
    stage3_model_persistence_threshold: Count = None
    stage3_max_live_parameters: Count = None
    stage3_max_reuse_distance: Count = None
    stage3_module_granularity_threshold: Count = None
    stage3_gather_16bit_weights_on_model_save: bool = None
    stage3_use_all_reduce_for_fetch_params: bool = None
    stage3_allgather_sequential: bool = None

    @pydantic.model_validator(mode="after")
    def _parameters_are_sharded_to_be_offloaded(self):
        if self.offload_param and self.offload_param.device != "none" and self.stage != 3:
            raise ValueError("offload_param wants stage 3")
        return self


class Bf16(_Keys):
    """enabled: the recipe's model.dtype says it."""

    enabled: bool = None
    immediate_grad_update: bool = None
    check_overflow: bool = None


class DataTypes(_Keys):
    grad_accum_dtype: Dtype = None


class DeepSpeedFile(_Keys):
    zero_optimization: ZeroOptimization
    bf16: Bf16 = None
    data_types: DataTypes = None
    communication_data_type: Dtype = None
    zero_allow_untested_optimizer: bool = None
    zero_force_ds_cpu_optimizer: bool = None
    steps_per_print: Above0 = None
    wall_clock_breakdown: bool = None
    memory_breakdown: bool = None
    dump_state: bool = None
    prescale_gradients: bool = None
    gradient_predivide_factor: Annotated[float, pydantic.Field(gt=0)] = None
    disable_allgather: bool = None
    disable_python_gc: bool = None
    log_level: str | None = None
    activation_checkpointing: Section = None
    aio: Section = None
    comms_logger: Section = None
    compile: Section = None
    csv_monitor: Section = None
    flops_profiler: Section = None
    tensorboard: Section = None
    timers: Section = None
    wandb: Section = None


def read_deepspeed_file(path: Path) -> dict:
    """The DeepSpeed file at `path`, checked. Raises UserError with file, line or key."""
    config = _json(path)
    if not isinstance(config, dict):
        raise _refused(path, f"expected a JSON object, found {shown(config)}")
    if owned := sorted(set(OWNED) & set(config)):
        raise _refused(path, f"remove {', '.join(owned)}; the recipe owns it")
    try:
        DeepSpeedFile.model_validate(config)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _refused(path, f"{_what(first)}; {SHIPPED}") from None
    return config


def _what(error: dict) -> str:
    """key: what is wrong with its value."""
    if not error["loc"]:  # no text: half a character
        return error["msg"]
    *parents, key = map(str, error["loc"])
    where = ".".join([*parents, shown(key)])
    if error["type"] == "extra_forbidden":
        model = DeepSpeedFile
        for name in parents:
            model = model.model_fields[name].annotation
        near = difflib.get_close_matches(key, model.model_fields, n=1)
        return f"{where}: unknown key" + "".join(f"; did you mean {name}?" for name in near)
    if error["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: {error['msg']}, found {shown(error['input'])}"


def _json(path: Path) -> Any:
    text = read(path, "a DeepSpeed file (train.deepspeed)")
    try:
        return json_text.DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _refused(f"{path}:{error.lineno}", f"not JSON ({error.msg})") from None
    except RecursionError:
        raise _refused(path, "nested too deep") from None
    except ValueError as error:  # a key twice, NaN, an integer of thousands of digits
        raise _refused(path, str(error).partition(";")[0]) from None


def _refused(path: Path | str, what: str) -> UserError:
    return UserError(f"train.deepspeed: {path}: {what}")
