"""The channel, measured between the steps of a training: how much of the CoT reaches the answer
through the trace.

Rows that no phase trains on go through the model with their own traces, the CoT hidden from the
answer. An answer of which every token is the most likely one behind the true tokens before it is
the answer that greedy decoding would write.
"""

import numpy as np
import torch.distributed

from abscot.common import ranks
from abscot.method.lineage import channel_rows
from abscot.method.phases import SEGMENT_Y, HiddenPairs
from abscot.method.sequence import IGNORE
from abscot.model import attention
from abscot.packing.batches import Batch, Documents
from abscot.packing.bins import best_fit
from abscot.packing.make_plan import check_rows
from abscot.training.phase_data import PhaseData
from abscot.training.record import ChannelEntry


class Channel:
    """The rows that it is measured on, in the same bins on any number of ranks."""

    def __init__(self, documents: Documents, rows: np.ndarray, capacity_tokens: int, hidden):
        """rows: of the store, int64. Raises UserError for one that is longer than a bin."""
        lengths = documents.lengths()["total"]
        check_rows(rows, lengths, capacity_tokens, documents.row_name)
        bin_of, num_bins = best_fit(lengths[rows], capacity_tokens)
        self.bins = [rows[bin_of == index] for index in range(num_bins)]
        self.documents, self.hidden = documents, hidden
        self.every_steps = documents.train.channel_every_steps

    @classmethod
    def of(cls, data: PhaseData) -> "Channel | None":
        """That of a training; None where it measures none."""
        training, documents = data.training, data.documents
        if not training.measures_channel:
            return None
        rows = channel_rows(training.recipe, len(documents.store))
        capacity = training.recipe.train.capacity_tokens
        return cls(documents, rows, capacity, training.phase.hidden)

    def is_due(self, step: int, num_steps: int) -> bool:
        """After so many of so many steps?"""
        return step % self.every_steps == 0 or step == num_steps

    def measure(self, model_engine, step: int) -> ChannelEntry:
        """The channel behind `step`, the same on all ranks, which must all call it. It leaves the
        model engine as it was, and draws nothing.
        """
        sums = torch.zeros(4, dtype=torch.int64, device=model_engine.device)
        model_engine.eval()
        for rows in self._bins_here():
            sums += _right(model_engine, self.documents.batch(rows), self.hidden)
        model_engine.train()
        torch.distributed.all_reduce(sums)
        rows, right_rows, tokens, right_tokens = sums.tolist()
        return ChannelEntry(
            step=step,
            rows=rows,
            channel=right_rows / rows,
            channel_tokens=right_tokens / tokens,
        )

    def _bins_here(self) -> list[np.ndarray | None]:
        """This rank's; as many on every rank, None where one has no work."""
        here = self.bins[ranks.rank() :: ranks.world_size()]
        most = -(-len(self.bins) // ranks.world_size())
        return here + [None] * (most - len(here))


@torch.no_grad()
def _right(model_engine, batch: Batch, hidden: HiddenPairs) -> torch.Tensor:
    """int64 [4]: rows of a bin, those whose answer is right, tokens of answers, right ones."""
    batch = batch.to(model_engine.device)
    layout = attention.layout_of(batch, model_engine.module.backend, hidden)
    answers = batch.labels.where(batch.segment_id == SEGMENT_Y, IGNORE)
    right = model_engine(
        batch.input_ids, batch.position_ids, answers, batch.segment_id, layout, greedy=True
    )
    asked = answers != IGNORE
    wrong = asked & ~right
    rows = len(batch.rows)
    wrong_rows = batch.document_id[wrong].unique().numel()
    return asked.new_tensor(
        [rows, rows - wrong_rows, int(asked.sum()), int(right.sum())], dtype=torch.int64
    )
