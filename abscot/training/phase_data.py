"""What a training reads: its plan, its documents, and what a step of it costs."""

from dataclasses import dataclass

import numpy as np
import torch

from abscot.common import hardware, ranks
from abscot.data.shards import ShardStore
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import Training
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.model.shape import ModelShape
from abscot.packing.batches import Batch, Documents, prefetched
from abscot.packing.phase_plan import plan_of
from abscot.packing.plan import Plan, StepPlan
from abscot.training.record import TrainLogMeta


@dataclass(frozen=True)
class PhaseData:
    """The plan of a training, and the rows and traces it speaks of."""

    training: Training
    plan: Plan
    documents: Documents
    shape: ModelShape
    peak_flops: float | None  # of one rank's device, per second; None for a CPU

    def batches(self, first_step: int):
        """(StepPlan, this rank's micro-batches) of every step from `first_step` on, prefetched."""
        return prefetched(self.plan, self.documents, ranks.rank(), ranks.world_size(), first_step)

    def most_expensive_batch(self) -> Batch:
        return self.documents.batch(self.plan.most_expensive_bin())

    def seconds_at_peak(self, step: StepPlan) -> float | None:
        """How long the FLOPs of a step's real tokens and allowed pairs take where every device runs
        at its peak; recomputation not counted. Over the step's time this is its MFU.
        """
        if self.peak_flops is None:
            return None
        tokens, pairs = self.plan.sizes.work(step.rows, self.shape.pair_cost)
        frozen = self.training.recipe.lora is not None
        flops = self.shape.training_flops(tokens, pairs, step.supervised_tokens, frozen)
        return flops / (self.peak_flops * ranks.world_size())

    def meta(self) -> TrainLogMeta:
        """The head of the train log."""
        return TrainLogMeta(
            tag=self.training.tag,
            round=self.training.round,
            phase=self.training.phase.name,
            world_size=ranks.world_size(),
            plan_hash=self.plan.hash,
            num_steps=self.plan.num_steps,
            rows=len(np.unique(self.plan.rows)),
            epochs=int(self.plan.epochs.max()) + 1,
            seed=self.training.recipe.seed,
            peak_lr=self.training.peak_lr,
            until_channel=(
                self.training.recipe.train.until_channel if self.training.measures_channel else None
            ),
        )


def load_data(training: Training) -> PhaseData:
    """Store, traces and plan of a training. Raises UserError where they do not fit together."""
    recipe, run, phase = training.recipe, training.run, training.phase
    store = ShardStore(run.shards)
    tokenizer = load_tokenizer(run.base, recipe.model.trust_remote_code)
    store.check_tokenizer(tokenizer)
    vocab, traces = AbstractVocab.of(tokenizer, recipe.codebook_size), None
    if training.reads_traces:
        traces = TraceSet.load(training.traces, store, training.round, phase.name, vocab)
    documents = Documents(store, traces, phase, vocab, recipe.train, recipe.traces)
    gpu = hardware.gpu_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    plan = plan_of(training, documents)
    return PhaseData(
        training, plan, documents, ModelShape.of_directory(run.base), gpu and gpu.flops
    )
