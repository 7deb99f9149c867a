"""What a phase trains on: its plan, its documents, and what a step of it costs."""

from dataclasses import dataclass

import numpy as np
import torch

from abscot.common import hardware, ranks
from abscot.data.shards import ShardStore
from abscot.generation.trace_set import TraceSet
from abscot.method.phases import Phase
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.model.shape import ModelShape
from abscot.packing.batches import Documents, prefetched
from abscot.packing.phase_plan import plan_of
from abscot.packing.plan import Plan
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class PhaseData:
    """The plan of a phase, and the rows and traces it speaks of."""

    phase: Phase
    tag: str
    seed: int
    plan: Plan
    documents: Documents
    peak_lr: float
    shape: ModelShape
    frozen: bool  # LoRA
    peak_flops: float | None  # of one rank's device, per second; None for a CPU

    def batches(self, first_step: int):
        """(StepPlan, this rank's micro-batches) of every step from `first_step` on, prefetched."""
        return prefetched(self.plan, self.documents, ranks.rank(), ranks.world_size(), first_step)

    def mfu(self, step, wall_s: float) -> float | None:
        """Share of the devices' peak that went into FLOPs of real tokens and allowed pairs;
        recomputation not counted.
        """
        if self.peak_flops is None:
            return None
        tokens, pairs = self.plan.sizes.work(step.rows, self.shape.pair_cost)
        flops = self.shape.training_flops(tokens, pairs, step.supervised_tokens, self.frozen)
        return flops / (wall_s * self.peak_flops * ranks.world_size())

    def meta(self, recipe: Recipe, round_: int) -> dict:
        """The head of the train log."""
        return {
            "tag": self.tag,
            "round": round_,
            "phase": self.phase.name,
            "world_size": ranks.world_size(),
            "plan_hash": self.plan.hash,
            "num_steps": self.plan.num_steps,
            "rows": len(np.unique(self.plan.rows)),
            "epochs": int(self.plan.epochs.max()) + 1,
            "seed": recipe.seed,
            "peak_lr": self.peak_lr,
        }


def load_data(recipe: Recipe, run: Run, phase: Phase, round_: int) -> PhaseData:
    """Store, traces and plan of a phase. Raises UserError where they do not fit together."""
    store = ShardStore(run.shards)
    tokenizer = load_tokenizer(run.base)
    store.check_tokenizer(tokenizer)
    traces = (
        TraceSet.load(run.traces(phase.tag(round_)), store, round_, phase.name)
        if phase.trace_source == "model"
        else None
    )
    vocab = AbstractVocab.of(tokenizer, recipe.codebook_size)
    documents = Documents(store, traces, phase, vocab, recipe.train, recipe.traces)
    gpu = hardware.gpu_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return PhaseData(
        phase,
        phase.tag(round_),
        recipe.seed,
        plan_of(recipe, run, phase, round_, documents),
        documents,
        recipe.train.phase_lr.get(phase.name, recipe.train.lr),
        ModelShape.of_directory(run.base),
        recipe.lora is not None,
        gpu and gpu.flops,
    )
