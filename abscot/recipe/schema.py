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
    changes: int = 3  # steps per problem
    max_total: int = 20  # running totals stay within 0 and this
    max_change: int = 5  # a step adds or takes away at most this
    hidden_size: int = 128  # of the base model
    num_layers: int = 3  # of the base model
    base_steps: int = 250  # optimizer steps of the base model
    base_thinking_rows: int = 16  # rows per step, with CoT
    base_direct_rows: int = 32  # rows per step, without CoT
    base_lr: float = 0.02  # of Muon, on matrices; AdamW has a fifth of it, on the rest


@dataclass
class ModelConfig:
    base: str = "world"  # directory, hub id, or `world`
    dtype: Literal["bf16", "fp32"] = "bf16"  # of weights and activations; the optimizer keeps fp32
    # auto: varlen on CUDA, segments elsewhere
    attention: Literal["auto", "segments", "varlen", "flex", "dense"] = "auto"
    gradient_checkpointing: bool = True  # recompute activations in the backward pass
    new_rows: Literal["mean", "normal", "zero"] = "mean"  # start of the 66 new embedding rows
    new_rows_std: float = 1e-3  # N(0, std) added to `mean`; the spread of `normal`
    loss_chunk_tokens: int = 1024  # supervised positions whose logits exist at the same time
    trust_remote_code: bool = False  # run code that comes with the base model
    # random weights from the base's config.json: shape tests and benchmarks
    random_init: bool = False


@dataclass
class DataConfig:
    source: str = "world"  # file, glob, hub id, or `world`
    # layout of a row (abscot/data/formats.py)
    format: Literal["messages", "prompt_cot_answer", "problem_solution", "gsm8k"] = "messages"
    split: str = "train"  # of a hub id
    subset: str | None = None  # of a hub id that has several, e.g. `main`
    revision: str | None = None  # of a hub id: commit or tag; pin it, the hub's files may change
    rows: int | None = None  # drawn uniformly by a hash of (seed, id); null: all
    # put before prompts that bring none; null: none
    system_prompt: str | None = (
        "Please reason step by step, and put your final answer within \\boxed{}."
    )
    min_cot_chars: int = 200  # shorter CoTs are rejected
    max_row_bytes: int = 4 * 2**20  # of text; larger rows are rejected unread
    keep_sources: list[str] = field(default_factory=list)  # parts of a dataset_source; empty: all
    drop_sources: list[str] = field(default_factory=list)  # parts of one; these are left out
    # rows longer than train.capacity_tokens; counted
    long_rows: Literal["drop", "truncate_cot_left", "truncate_cot_middle", "truncate_cot_right"] = (
        "drop"
    )
    # a shard file is closed at this many rows: the unit of work and of restart
    shard_rows: int = 20_000
    shard_chars: int = 256_000_000  # or at this many characters of text, whichever comes first
    decontaminate: bool = True  # leave out rows that overlap the evaluation sets
    # share of an evaluation problem's word 5-grams that a prompt may not reach
    max_overlap: float = 0.5


@dataclass
class TraceConfig:
    m_min: int = 4  # codebook tokens of a trace, at least; the sampler enforces it
    m_max: int = 128  # codebook tokens of a trace, at most (paper: 128)
    # round 1: rand(1, |l|/2) tokens per CoT step (paper), or uniform
    random: Literal["steps", "uniform"] = "steps"
    temperature: float = 1.0  # of trace sampling
    top_p: float = 1.0  # of trace sampling
    allow_empty: bool = False  # keep rows whose trace came back empty
    on_collapse: Literal["warn", "stop"] = "warn"  # stop: a collapsed trace set ends the round
    shards: int = 1  # independent engines, shard i of n
    # prompts that get further samples, to see how much a trace tells about its prompt
    probe_prompts: int = 64
    probe_samples: int = 3  # further samples per probed prompt


@dataclass
class TrainConfig:
    deepspeed: str = "ds_configs/zero3.json"  # ZeRO stage, offload and buckets
    capacity_tokens: int = 32_768  # of a packed bin; longer rows follow data.long_rows
    global_batch_examples: int | None = 32  # rows per optimizer step, on any number of ranks
    global_batch_tokens: int | None = None  # instead of the above
    epochs: int = 1  # of each phase; a baseline gets as many as all rounds together
    lr: float = 1e-5  # peak
    new_rows_lr: float | None = None  # learning rate of the embedding table; null: lr
    # over the true number of steps of the phase
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup_ratio: float = 0.05  # share of the steps
    min_lr_ratio: float = 0.0  # of the peak, at the last step
    grad_clip: float = 1.0  # global norm
    # loss on <endabstract>; without it a model cannot learn when to stop
    supervise_end: bool = True
    supervise_begin: bool = False  # loss on <beginabstract>
    # the last step is always saved, until the model is exported
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = 30.0  # whichever comes first
    keep_checkpoints: int = 2  # newest ones
    # whole models of a training on its way, to be evaluated by name (pi1_phaseA_step100); null: none
    export_every_steps: int | None = None
    num_gpus: int | None = None  # ranks that launch/round.py starts; null: all GPUs of the machine
    phase_lr: dict[str, float] = field(default_factory=dict)  # phase name -> lr, where it differs
    # phase name -> epochs, where they differ
    phase_epochs: dict[str, int] = field(default_factory=dict)


@dataclass
class OptimizerConfig:
    name: Literal["adamw"] = "adamw"  # a row of OPTIMIZERS in abscot/training/optimizer.py
    weight_decay: float = 0.0  # of matrices
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.95  # of AdamW


@dataclass
class LoraConfig:
    r: int = 32  # rank
    alpha: int = 64  # scale is alpha / r
    dropout: float = 0.0  # on the adapter input
    # linear layers that get an adapter
    target_modules: list[str] = field(
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
    # full: the whole table, as the public reproduction does
    embeddings: Literal["new_rows", "full"] = "new_rows"


@dataclass
class InferenceConfig:
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the machine computes in it
    max_model_len_tokens: int = 40_960  # window; longer CoTs are cut in the middle, counted
    max_num_seqs: int = 256  # sequences decoded together
    tensor_parallel: int = 1  # GPUs per engine
    gpu_memory_utilization: float = 0.9  # share of the GPU that vLLM takes
    cpu_kv_cache_gib: int = 2  # KV cache of vLLM on a CPU
    enforce_eager: bool = False  # no CUDA graphs
    chunk_rows: int = 2048  # rows between two appends to a trace shard
    # GPUs: bitwise the same results whatever is batched together, at some speed
    batch_invariant: bool = False


@dataclass
class EvalConfig:
    # names of abscot/evaluation/benchmarks.py
    benchmarks: list[str] = field(default_factory=lambda: ["world"])
    modes: list[str] = field(default_factory=lambda: ["abstract"])  # of every round's model
    base_modes: list[str] = field(default_factory=lambda: ["verbal"])  # of the base model
    limit: int | None = None  # problems per benchmark; null: all
    samples: int = 1  # answers per problem
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # of sampled answers
    trace_temperature: float = 0.0  # of a trace that an answer is asked behind; 0: greedy
    trace_top_p: float = 1.0  # of such a trace
    m_min: int | None = None  # codebook tokens of such a trace, at least; null: traces.m_min
    m_max: int | None = None  # and at most; null: traces.m_max
    answer_temperature: float = 0.0  # of what stands behind the trace; 0: greedy
    answer_top_p: float = 1.0  # of sampled answers
    max_reasoning_tokens: int = 28_672  # of a thought, in mode `thinking`
    max_answer_tokens: int = 8192  # of what is not a thought
    # mode -> max_answer_tokens, where it differs
    mode_answer_tokens: dict[str, int] = field(default_factory=dict)
    # benchmark -> local file instead of the hub
    files: dict[str, str] = field(default_factory=dict)
    # OpenAI-compatible endpoint for alpaca_eval; null: answers are only written out
    judge_url: str | None = None
    judge_model: str = "gpt-4.1"  # that compares two answers of alpaca_eval
    # first problems of a benchmark that mode `channel` asks: it decodes without vLLM
    channel_problems: int = 200


@dataclass
class Recipe:
    name: str = "tiny-cpu"  # the run directory is run_root/name
    run_root: str = "runs"  # relative to the project
    seed: int = 0  # every random draw comes from it and the example
    rounds: int = 3  # T
    # partition: each phase sees its own part of the data (paper)
    staging: Literal["reuse", "partition"] = "reuse"
    codebook_size: int = 64  # M
    # a stage that prints nothing for so long is ended, and started again
    hang_minutes: float = 60.0
    # of training curves; the last two want a pip install
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(
        default_factory=lambda: ["tensorboard"]
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
