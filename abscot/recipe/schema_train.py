"""The sections of the recipe that training reads: train, optimizer, lora; see schema.py."""

from dataclasses import field
from typing import Literal

from pydantic import model_validator

from abscot.recipe import names
from abscot.recipe.bounds import (
    Amount,
    Count,
    Decay,
    Each,
    EpochsByRound,
    Few,
    Line,
    Positive,
    Rate,
    Share,
    section,
)


@section
class TrainConfig:
    deepspeed: Line = "ds_configs/zero3.json"  # ZeRO stage, offload and buckets
    capacity_tokens: Count = 32_768  # of a packed bin; longer rows follow data.long_rows
    global_batch_examples: Count | None = 32  # rows per optimizer step, on any number of ranks
    global_batch_tokens: Count | None = None  # instead of the above
    epochs: Few = 1  # of each phase; a baseline gets as many as all rounds together
    lr: Rate = 1e-5  # peak
    new_rows_lr: Rate | None = None  # learning rate of the embedding table; null: lr
    # over the true number of steps of the phase
    lr_schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup_ratio: Share = 0.05  # share of the steps
    min_lr_ratio: Share = 0.0  # of the peak, at the last step
    grad_clip: Positive = 1.0  # global norm
    # loss on <endabstract>; without it a model cannot learn when to stop
    supervise_end: bool = True
    supervise_begin: bool = False  # loss on <beginabstract>
    # the last step is always saved, until the model is exported
    checkpoint_every_steps: Count | None = None
    checkpoint_every_minutes: Positive | None = 30.0  # whichever comes first
    keep_checkpoints: Few = 2  # newest ones
    # whole models on the way, asked by name (pi1_phaseA_step100); null: none
    export_every_steps: Count | None = None
    # on GPUs: the bits of a training repeat on as many ranks; slower
    deterministic: bool = False
    num_gpus: Few | None = None  # ranks that launch/round.py starts; null: all GPUs of the machine
    phase_lr: dict[names.PhaseName, Rate] = field(
        default_factory=dict
    )  # phase name -> lr, where it differs
    # phase name -> epochs where they differ; a list: round by round, the last for all that follow;
    # 0: the phase is left out
    phase_epochs: dict[names.PhaseName, EpochsByRound] = field(default_factory=dict)
    # rows that no phase trains on: on them the channel is measured where the answer cannot see the
    # CoT, the share of rows whose whole answer is right, and logged
    channel_rows: Amount = 0
    channel_every_steps: Count = 50  # between two measurements
    # share at which such a phase ends before its epochs do, null: never; the learning rate is
    # planned over all epochs: `constant` and `wsd` are at their peak then, `cosine` on its way down
    until_channel: Rate | None = None

    @model_validator(mode="after")
    def _the_channel_is_measured(self):
        if self.until_channel and not self.channel_rows:
            raise ValueError("channel_rows: expected 1 or more, on which until_channel is measured")
        return self

    @model_validator(mode="after")
    def _one_size_of_a_batch(self):
        if (self.global_batch_examples is None) == (self.global_batch_tokens is None):
            raise ValueError(
                "global_batch_examples: expected exactly one of global_batch_examples and "
                "global_batch_tokens; set the other to null"
            )
        return self


@section
class OptimizerConfig:
    name: Literal["adamw"] = "adamw"  # a row of OPTIMIZERS in abscot/training/optimizer.py
    weight_decay: Share = 0.0  # of matrices
    beta1: Decay = 0.9  # of AdamW
    beta2: Decay = 0.95  # of AdamW


@section
class LoraConfig:
    r: Few = 32  # rank
    alpha: Few = 64  # scale is alpha / r
    dropout: Decay = 0.0  # on the adapter input
    # linear layers that get an adapter
    target_modules: Each[Line] = field(
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
