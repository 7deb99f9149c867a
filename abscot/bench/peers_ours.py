"""Our side of `bench.py peers`: the product's trainer on one rank, and the rows that both sides
get.
"""

import dataclasses
import sys

import numpy as np

from abscot.bench.synthetic_rows import VOCAB
from abscot.bench.turns import Turn
from abscot.data.shards import ShardStore
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import Training, training_of
from abscot.method.sequence import IGNORE
from abscot.model.shape import ModelShape
from abscot.packing.batches import Documents
from abscot.packing.phase_plan import plan_of
from abscot.recipe.run import open_run
from abscot.training.model_engine import init_ranks
from abscot.training.phase_data import PhaseData
from abscot.training.train_phase import work_of
from abscot.training.trainer import Trainer


def data_of(training: Training) -> PhaseData:
    """The plan and the documents, as `load_data` makes them, without a tokenizer."""
    store = ShardStore(training.run.shards)
    traces = TraceSet.load(training.traces, store) if training.reads_traces else None
    recipe = training.recipe
    documents = Documents(store, traces, training.phase, VOCAB, recipe.train, recipe.traces)
    shape = ModelShape.of_directory(training.run.base)
    return PhaseData(training, plan_of(training, documents), documents, shape, None)


def rows_of(documents: Documents) -> list[dict[str, list[int]]]:
    """The documents one by one as TRL reads them: `input_ids`, and where `completion_mask` is 1 is
    what carries loss.
    """
    batches = [documents.batch(np.array([row])) for row in range(len(documents.store))]
    return [
        {
            "input_ids": batch.input_ids[0].tolist(),
            "completion_mask": (batch.labels[0] != IGNORE).int().tolist(),
        }
        for batch in batches
    ]


def main(turn: Turn, training: Training) -> None:
    device, data = init_ranks(), data_of(training)
    work = dataclasses.replace(work_of(training, data), start=training.run.base)
    trainer = Trainer(work, device, data.most_expensive_batch())
    for step, micro_batches in data.batches(0):
        turn.begin()
        entry = trainer.step(step, micro_batches, training.peak_lr, None)
        turn.end()
        turn.report(loss=entry.loss, tokens=entry.tokens, bins=len(micro_batches))


if __name__ == "__main__":
    reports, root, phase, _ = sys.argv[1:]
    main(Turn(reports), training_of(*reversed(open_run(root)), phase, 1))
