"""The recipe: a tree of dataclasses with the defaults, the bounds of each field, and the rules
between fields.

A rule that does not hold raises ValueError; its message begins with the key that it is about.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from abscot.recipe import names
from abscot.recipe.bounds import (
    Amount,
    Count,
    Each,
    Few,
    Line,
    Name,
    Paragraph,
    Positive,
    Rate,
    Seed,
    Share,
    Some,
    Spread,
    Temperature,
    Url,
    ascending,
    section,
)
from abscot.recipe.schema_train import LoraConfig, OptimizerConfig, TrainConfig


@section
class WorldConfig:
    """The world that the project makes itself (problems, tokenizer, base model). Null in recipes on
    real data.
    """

    rows: Annotated[int, Field(ge=1, le=1_000_000)] = 4200  # training rows
    heldout: Few = 300  # evaluation problems
    # in the row; a guess is right 1 time in so many. Two cups would only take turns.
    cups: Annotated[int, Field(ge=3, le=26)] = 6
    swaps: Annotated[int, Field(ge=1, le=30)] = 6  # per problem, each a step of its CoT
    hidden_size: Annotated[int, Field(ge=64, le=16_384, multiple_of=32)] = 128  # of the base model
    num_layers: Annotated[int, Field(ge=1, le=200)] = 3  # of the base model
    base_steps: Count = 400  # optimizer steps of the base model
    base_thinking_rows: Few = 8  # rows per step, with CoT
    base_direct_rows: Few = 2  # rows per step, without CoT: they teach the form alone
    base_lr: Rate = 0.02  # of Muon, on matrices; AdamW has a fifth of it, on the rest


@section
class ModelConfig:
    base: Line = "world"  # directory or hub id of a model or of a LoRA adapter, or `world`
    dtype: Literal["bf16", "fp32"] = "bf16"  # of weights and activations; the optimizer keeps fp32
    # auto: varlen on CUDA in bf16, segments elsewhere
    attention: Literal["auto", "segments", "varlen", "dense"] = "auto"
    gradient_checkpointing: bool = True  # recompute activations in the backward pass
    # but not attention: its outputs are kept, per layer and token 2 x heads x head_dim + 4 x heads
    # bytes (Qwen3-4B: 9.8 GB at 32k), and its forward runs once
    keep_attention: bool = True
    new_rows: Literal["mean", "normal", "zero"] = "mean"  # start of the 66 new embedding rows
    new_rows_std: Spread = 1e-3  # N(0, std) added to `mean`; the spread of `normal`
    loss_chunk_tokens: Count = 1024  # supervised positions whose logits exist at the same time
    trust_remote_code: bool = False  # run code that comes with the base model
    # random weights from the base's config.json: shape tests and benchmarks
    random_init: bool = False


@section
class DataConfig:
    source: Line = "world"  # file, glob, hub id, or `world`
    # layout of a row (abscot/data/formats.py)
    format: Literal["messages", "prompt_cot_answer", "problem_solution", "gsm8k"] = "messages"
    split: Line = "train"  # of a hub id
    subset: Line | None = None  # of a hub id that has several, e.g. `main`
    revision: Line | None = None  # of a hub id: commit or tag; pin it, the hub's files may change
    rows: Count | None = None  # drawn uniformly by a hash of (seed, id); null: all
    # put before prompts that bring none; null: none
    system_prompt: Paragraph | None = (
        "Please reason step by step, and put your final answer within \\boxed{}."
    )
    min_cot_chars: Amount = 200  # shorter CoTs are rejected
    max_row_bytes: Count = 4 * 2**20  # of text; larger rows are rejected unread
    keep_sources: Each[Line] = field(default_factory=list)  # parts of a dataset_source; empty: all
    drop_sources: Each[Line] = field(default_factory=list)  # parts of one; these are left out
    # rows longer than train.capacity_tokens; counted
    long_rows: Literal["drop", "truncate_cot_left", "truncate_cot_middle", "truncate_cot_right"] = (
        "drop"
    )
    # a shard file is closed at this many rows: the unit of work and of restart
    shard_rows: Count = 20_000
    shard_chars: Count = 256_000_000  # or at this many characters of text, whichever comes first
    decontaminate: bool = True  # leave out rows that overlap the evaluation sets
    # share of an evaluation problem's word 5-grams that a prompt may not reach
    max_overlap: Rate = 0.5


@section
class TraceConfig:
    m_min: Amount = 4  # codebook tokens of a trace, at least; the sampler enforces it
    m_max: Few = 128  # codebook tokens of a trace, at most (paper: 128)
    # phase -> where its traces come from, round by round, the last for all that follow; a phase
    # that is not named has them from where the schedule says
    sources: dict[names.PhaseName, Some[names.TraceSource]] = field(default_factory=dict)
    # `model` and `model_with_cot`: samples per row, of which the one with the highest
    # log p(answer | prompt, trace) is kept
    best_of: Few = 1
    # `random`: rand(1, |l|/2) tokens per CoT step l (paper), or uniform
    random: Literal["steps", "uniform"] = "steps"
    random_min: Amount | None = None  # of uniform random traces, at least; null: m_min
    random_max: Few | None = None  # and at most; null: m_max
    temperature: Temperature = 1.0  # of trace sampling
    top_p: Rate = 1.0  # of trace sampling
    allow_empty: bool = False  # keep rows whose trace came back empty
    on_collapse: Literal["warn", "stop"] = "warn"  # stop: a collapsed trace set ends the round
    shards: Few | None = None  # independent engines, shard i of n; null: as many as GPUs allow
    # prompts that get further samples, to see how much a trace tells about its prompt
    probe_prompts: Amount = 64
    probe_samples: Few = 3  # further samples per probed prompt

    @model_validator(mode="after")
    def _lengths_are_a_range(self):
        random_min = self.m_min if self.random_min is None else self.random_min
        random_max = self.random_max or self.m_max
        ascending(m_min=self.m_min, random_min=random_min, random_max=random_max, m_max=self.m_max)
        return self


@section
class GroundingConfig:
    """Of grounded traces: a code for each step of a CoT, out of the base's hidden states."""

    layer: Share = 1.0  # depth of the hidden state, as a share of the layers; 1: behind the last
    # token whose state it is: the step's last, or the one before the step's last word, where the
    # model holds what it is about to write
    position: Literal["end", "before_result"] = "before_result"
    tokens_per_step: Few = 1  # codes of a step: of its state, then of what the codes before leave
    fit_steps: Count = 200_000  # steps that the centroids are fitted to, drawn by a hash
    codebook: Line | None = None  # directory of one that is there, of the same base; null: fitted


@section
class InferenceConfig:
    # auto: bf16 where the machine computes in it; what was trained in fp32 is to be asked in fp32
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    max_model_len_tokens: Count = 40_960  # window; longer CoTs are cut in the middle, counted
    max_num_seqs: Count = 256  # sequences decoded together
    tensor_parallel: Few = 1  # GPUs per engine
    gpu_memory_utilization: Rate = 0.9  # share of the GPU that vLLM takes
    cpu_kv_cache_gib: Few = 2  # KV cache of vLLM on a CPU
    enforce_eager: bool = False  # no CUDA graphs
    # of prompts and traces (a decoded one counts as two) between two appends to a trace set: what
    # a kill loses; 2 to 5 minutes of an H100 with a model of 4B
    chunk_tokens: Count = 6_000_000
    # nats per token by which an engine may differ from the weights that were trained; bf16 kernels
    # that differ stay far below
    handover_kl: Positive = 0.015
    # GPUs: bitwise the same results whatever is batched together, at some speed
    batch_invariant: bool = False


@section
class EvalConfig:
    # names of abscot/evaluation/benchmarks.py
    benchmarks: Each[names.BenchmarkName] = field(default_factory=lambda: ["world"])
    modes: Each[names.ModeName] = field(default_factory=lambda: ["abstract"])  # of each round
    base_modes: Each[names.ModeName] = field(
        default_factory=lambda: ["verbal"]
    )  # of the base model
    limit: Count | None = None  # problems per benchmark; null: all
    samples: Few = 1  # answers per problem
    trace_temperature: Temperature = 0.0  # of a trace that an answer is asked behind; 0: greedy
    trace_top_p: Rate = 1.0  # of such a trace
    m_min: Amount | None = None  # codebook tokens of such a trace, at least; null: traces.m_min
    m_max: Few | None = None  # and at most; null: traces.m_max
    answer_temperature: Temperature = 0.0  # of what stands behind the trace; 0: greedy
    answer_top_p: Rate = 1.0  # of sampled answers
    max_reasoning_tokens: Count = 28_672  # of a thought, in mode `thinking`
    max_answer_tokens: Count = 8192  # of what is not a thought
    # mode -> max_answer_tokens, where it differs
    mode_answer_tokens: dict[names.ModeName, Count] = field(default_factory=dict)
    # benchmark -> local file instead of the hub
    files: dict[names.BenchmarkName, Line] = field(default_factory=dict)
    # OpenAI-compatible endpoint for alpaca_eval; null: answers are only written out
    judge_url: Url | None = None
    judge_model: Line = "gpt-4.1"  # that compares two answers of alpaca_eval
    # first problems of a benchmark that mode `channel` asks: it decodes without vLLM
    channel_problems: Count = 200


@section
class Recipe:
    name: Name = "tiny-cpu"  # the run directory is run_root/name
    run_root: Line = "runs"  # relative to the project
    seed: Seed = 0  # every random draw comes from it and the example
    rounds: Few = 3  # T
    # where traces come from and how many epochs a phase has (abscot/method/schedules.py)
    schedule: names.ScheduleName = "paper"
    # trained and asked with the last round; launch/ladder.py takes all
    baselines: Each[names.BaselineName] = field(default_factory=list)
    # partition: each phase sees its own part of the data (paper)
    staging: Literal["reuse", "partition"] = "reuse"
    # M; vLLM allows 1,024 ids, the end of a trace among them
    codebook_size: Annotated[int, Field(ge=1, le=1023)] = 64
    # a stage that prints nothing for so long is ended, and started again
    hang_minutes: Positive = 60.0
    # of training curves; the last two want a pip install
    trackers: Each[Literal["tensorboard", "wandb", "trackio"]] = field(
        default_factory=lambda: ["tensorboard"]
    )
    world: WorldConfig | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    traces: TraceConfig = field(default_factory=TraceConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @model_validator(mode="after")
    def _the_sections_agree(self):
        self._world_is_there()
        traces, asked = self.traces, self.eval
        m_min = traces.m_min if asked.m_min is None else asked.m_min
        ascending(**{"eval.m_min": m_min, "eval.m_max": asked.m_max or traces.m_max})
        if traces.m_max + 2 >= self.train.capacity_tokens:
            raise ValueError(
                f"train.capacity_tokens: expected room for a trace of traces.m_max "
                f"({traces.m_max}) and more, found {self.train.capacity_tokens}"
            )
        self._answers_fit_the_window()
        greedy = not (asked.answer_temperature or asked.trace_temperature)
        if asked.samples > 1 and greedy:
            raise ValueError(
                "eval.samples: expected 1, since greedy answers are all the same; set "
                "eval.answer_temperature or eval.trace_temperature"
            )
        return self

    def _answers_fit_the_window(self) -> None:
        asked, window = self.eval, self.inference.max_model_len_tokens
        for mode in {*asked.modes, *asked.base_modes}:
            most = asked.mode_answer_tokens.get(mode, asked.max_answer_tokens)
            most += asked.max_reasoning_tokens * (mode == "thinking")
            if most >= window:
                raise ValueError(
                    f"eval.max_answer_tokens: expected mode {mode} to generate less than the "
                    f"window of {window:,} tokens (inference.max_model_len_tokens), found {most:,}"
                )

    def _world_is_there(self) -> None:
        users = [
            key
            for key, value in (
                ("model.base", [self.model.base]),
                ("data.source", [self.data.source]),
                ("eval.benchmarks", [b for b in self.eval.benchmarks if b not in self.eval.files]),
            )
            if "world" in value
        ]
        if self.world is None and users:
            raise ValueError(f"{users[0]}: `world` needs a section `world: {{}}` of the recipe")
