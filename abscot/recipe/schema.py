"""The recipe: a tree of dataclasses with the defaults."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class WorldConfig:
    """The world that the project makes itself (problems, tokenizer, base model). Null in recipes on
    real data.
    """

    rows: int = 3600  # training rows
    heldout: int = 300  # evaluation problems
    changes: int = 3  # steps of a problem
    max_total: int = 20  # running totals stay within 0 and this
    max_change: int = 5  # a step adds or takes away at most this
    hidden_size: int = 128  # of the base model
    num_layers: int = 3
    base_steps: int = 250  # optimizer steps of the base model
    base_thinking_rows: int = 16  # a step, with CoT
    base_direct_rows: int = 32  # a step, without
    base_lr: float = 0.02  # of Muon, on matrices; a fifth of it of AdamW, on the rest


@dataclass
class ModelConfig:
    base: str = "world"  # directory, hub id, or `world`
    dtype: Literal["bf16", "fp32"] = "bf16"  # of weights and activations; the optimizer keeps fp32
    attention: Literal["auto", "segments", "varlen", "flex", "dense"] = (
        "auto"  # auto: varlen on CUDA, segments elsewhere
    )
    gradient_checkpointing: bool = True  # recompute activations in the backward pass
    new_rows: Literal["mean", "normal", "zero"] = "mean"  # start of the 66 new embedding rows
    new_rows_std: float = 1e-3  # N(0, std) added to `mean`; the spread of `normal`
    loss_chunk_tokens: int = 1024  # supervised positions whose logits exist at the same time
    trust_remote_code: bool = False  # run code that comes with the base model
    random_init: bool = (
        False  # random weights from the base's config.json: shape tests and benchmarks
    )


@dataclass
class DataConfig:
    source: str = "world"  # file, glob, hub id, or `world`
    format: Literal["messages", "prompt_cot_answer", "problem_solution", "gsm8k"] = "messages"
    split: str = "train"  # of a hub id
    subset: str | None = None  # of a hub id that has several, e.g. `main`
    revision: str | None = None  # of a hub id: commit or tag; pin it, the hub's files may change
    rows: int | None = None  # drawn uniformly by a hash of (seed, id); null: all
    system_prompt: str | None = (
        "Please reason step by step, and put your final answer within \\boxed{}."
    )
    min_cot_chars: int = 200  # shorter CoTs are rejected
    max_row_bytes: int = 4 * 2**20  # of text; larger rows are rejected unread
    keep_sources: list[str] = field(default_factory=list)  # of dataset_source; empty: all
    drop_sources: list[str] = field(default_factory=list)
    long_rows: Literal["drop", "truncate_cot_left", "truncate_cot_middle", "truncate_cot_right"] = (
        "drop"  # counted
    )
    shard_rows: int = 20_000  # a shard file is closed at this many rows ..
    # .. or characters of text, whichever comes first: the unit of work and of restart.
    shard_chars: int = 256_000_000
    decontaminate: bool = True  # leave out rows that overlap the evaluation sets
    max_overlap: float = (
        0.5  # share of an evaluation problem's word 5-grams that a prompt may not reach
    )


@dataclass
class TraceConfig:
    m_min: int = 4  # codebook tokens; enforced by the sampler
    m_max: int = 128  # paper
    random: Literal["steps", "uniform"] = (
        "steps"  # round 1: rand(1, |l|/2) tokens a CoT step (paper), or uniform
    )
    temperature: float = 1.0  # of trace sampling
    top_p: float = 1.0  # of trace sampling
    allow_empty: bool = False  # keep rows whose trace came back empty
    on_collapse: Literal["warn", "stop"] = "warn"  # stop: a collapsed trace set ends the round
    shards: int = 1  # independent engines, shard i of n
    probe_prompts: int = (
        64  # prompts that get further samples, to see how much a trace tells about its prompt
    )
    probe_samples: int = 3  # samples a probed prompt


@dataclass
class TrainConfig:
    deepspeed: str = "ds_configs/zero3.json"  # ZeRO stage, offload and buckets
    capacity_tokens: int = 32_768  # of a packed bin; longer rows follow data.long_rows
    global_batch_examples: int | None = 32  # rows an optimizer step, on any number of ranks
    global_batch_tokens: int | None = None  # instead of the above
    epochs: int = 1  # of each phase; a baseline gets as many as all rounds together
    lr: float = 1e-5  # peak
    new_rows_lr: float | None = None  # learning rate of the embedding table; null: lr
    schedule: Literal["cosine", "constant", "wsd"] = (
        "cosine"  # over the true number of steps of the phase
    )
    warmup_ratio: float = 0.05  # share of the steps
    min_lr_ratio: float = 0.0  # of the peak, at the last step
    grad_clip: float = 1.0  # global norm
    supervise_end: bool = (
        True  # loss on <endabstract>; without it a model cannot learn when to stop
    )
    supervise_begin: bool = False  # loss on <beginabstract>
    checkpoint_every_steps: int | None = (
        None  # the last step is always saved, until the model is exported
    )
    checkpoint_every_minutes: float | None = 30.0  # whichever comes first
    keep_checkpoints: int = 2  # newest ones
    num_gpus: int | None = None  # ranks that launch/round.py starts; null: all GPUs of the machine
    phase_lr: dict[str, float] = field(default_factory=dict)  # phase name -> lr, where it differs
    phase_epochs: dict[str, int] = field(
        default_factory=dict
    )  # phase name -> epochs, where they differ


@dataclass
class OptimizerConfig:
    name: Literal["adamw"] = "adamw"  # a row of OPTIMIZERS in abscot/training/optimizer.py
    weight_decay: float = 0.0  # of matrices
    beta1: float = 0.9  # AdamW
    beta2: float = 0.95  # AdamW


@dataclass
class LoraConfig:
    r: int = 32  # rank
    alpha: int = 64  # scale is alpha / r
    dropout: float = 0.0  # on the adapter input
    target_modules: list[str] = field(  # linear layers that get an adapter
        default_factory=lambda: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
    )
    embeddings: Literal["new_rows", "full"] = (
        "new_rows"  # full: the whole table, as the public reproduction does
    )


@dataclass
class InferenceConfig:
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the machine computes in it
    max_model_len_tokens: int = 40_960  # window; longer CoTs are cut in the middle, counted
    max_num_seqs: int = 256  # sequences decoded together
    tensor_parallel: int = 1  # GPUs an engine
    gpu_memory_utilization: float = 0.9  # share of the GPU that vLLM takes
    cpu_kv_cache_gib: int = 2  # KV cache of vLLM on a CPU
    enforce_eager: bool = False  # no CUDA graphs
    chunk_rows: int = 2048  # rows between two appends to a trace shard
    batch_invariant: bool = (
        False  # GPUs: bitwise the same results whatever is batched together, at some speed
    )


@dataclass
class EvalConfig:
    benchmarks: list[str] = field(
        default_factory=lambda: ["world"]
    )  # names of abscot/benchmarks.py
    modes: list[str] = field(
        default_factory=lambda: ["abstract"]
    )  # of every round; the base is asked in base_modes
    base_modes: list[str] = field(default_factory=lambda: ["verbal"])  # of the base
    limit: int | None = None  # problems a benchmark
    samples: int = 1  # a problem
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # of sampled answers
    max_reasoning_tokens: int = 4096  # of a verbal CoT
    max_answer_tokens: int = 1024  # after the reasoning
    files: dict[str, str] = field(
        default_factory=dict
    )  # benchmark -> local file instead of the hub
    judge_url: str | None = (
        None  # OpenAI-compatible endpoint for alpaca_eval; null: answers are only written out
    )
    judge_model: str = "gpt-4.1"
    channel_problems: int = (
        200  # first ones of a benchmark that mode `channel` asks: it decodes without vLLM
    )


@dataclass
class Recipe:
    name: str = "tiny-cpu"  # the run directory is run_root/name
    run_root: str = "runs"  # relative to the project
    seed: int = 0  # every random draw comes from it and the example
    rounds: int = 3  # T
    staging: Literal["reuse", "partition"] = (
        "reuse"  # partition: each phase sees its own part of the data (paper)
    )
    codebook_size: int = 64  # M
    hang_minutes: float = (
        60.0  # a stage that prints nothing for so long is ended, and started again
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = (
        field(  # of training curves; the last two: pip install
            default_factory=lambda: ["tensorboard"]
        )
    )
    world: WorldConfig | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    traces: TraceConfig = field(default_factory=TraceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
