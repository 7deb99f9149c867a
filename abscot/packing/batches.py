"""Plan + shards + this phase's traces -> batches: one packed bin of whole documents, without
padding. What a document is stands in method/sequence.py.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from abscot.data.rows import Row
from abscot.data.shards import ShardStore
from abscot.generation.trace_set import TraceSet
from abscot.method.phases import SEGMENT_X, SEGMENT_Y, SEGMENT_Z, Phase
from abscot.method.sequence import IGNORE, Piece, document, document_lengths, pause_trace
from abscot.method.vocab import AbstractVocab
from abscot.packing.plan import Plan, StepPlan
from abscot.recipe.schema import TraceConfig, TrainConfig


@dataclass(frozen=True)
class Batch:
    """One bin of T tokens. Positions run through the whole [X; C; Z; Y]: Y stands where it does in
    one pass.

    input_ids, labels, position_ids: int64 [1, T], labels -100 where unsupervised (logits at t - 1
    predict label t). document_id: int32 [1, T]; segment_id: int8 [1, T], SEGMENT_*. rows: int64,
    rows of the shard store; ids: their names.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    document_id: torch.Tensor
    segment_id: torch.Tensor
    rows: np.ndarray
    ids: list[str]

    def to(self, device: torch.device) -> "Batch":
        tensors = ("input_ids", "labels", "position_ids", "document_id", "segment_id")
        return replace(
            self, **{name: getattr(self, name).to(device, non_blocking=True) for name in tensors}
        )

    def counts(self) -> torch.Tensor:
        """float64 [4]: tokens, supervised tokens, those in Z, those in Y; all 0 for an
        idle rank.
        """
        supervised = self.labels != IGNORE
        of_z, of_y = ((supervised & (self.segment_id == s)).sum() for s in (SEGMENT_Z, SEGMENT_Y))
        tokens = supervised.new_tensor(
            self.labels.numel() if len(self.rows) else 0, dtype=torch.int64
        )
        return torch.stack([tokens, supervised.sum(), of_z, of_y]).double()


class Documents:
    """The training documents of one phase: their lengths, for the plan, and their tokens, bin by
    bin.
    """

    def __init__(
        self,
        store: ShardStore,
        traces: TraceSet | None,
        phase: Phase,
        vocab: AbstractVocab,
        train: TrainConfig,
        trace_config: TraceConfig,
    ):
        self.store, self.traces, self.phase, self.train = store, traces, phase, train
        self.marks = store.marks(vocab)
        self.pause = np.array(pause_trace(vocab, trace_config.m_max), np.int32)

    def lengths(self) -> dict[str, np.ndarray]:
        """`sequence.document_lengths` of every row of the store; without traces, Z is as long as it
        can be.

        Raises ValueError for a row without prompt: its first token would be supervised, and nothing
        predicts it.
        """
        trace = self.traces.lengths() if self.traces else np.full(len(self.store), len(self.pause))
        texts = {**self.store.lengths(), "trace": trace}
        lengths = document_lengths(self.phase, self.train, self.marks, texts)
        if not (lengths["X"] > 0).all():
            raise ValueError(
                f"row {int(np.argmin(lengths['X']))} of {self.store.directory} has no prompt"
            )
        return lengths

    def row_name(self, row: int) -> str:
        """For people."""
        return f"{self.store.directory}: row {row} ({self.store.row(row).id})"

    def batch(self, rows: np.ndarray | None) -> Batch:
        """The bin of `rows`; None makes the dummy of an idle rank: a few tokens, nothing
        supervised.
        """
        if rows is None:
            row = self.store.row(0)
            return _collate(
                [[(row.prompt[:4], SEGMENT_X, False), (row.answer[:4], SEGMENT_Y, False)]], rows, []
            )
        found = [self.store.row(int(row)) for row in rows]
        documents = [
            self._document(row, int(number)) for row, number in zip(found, rows, strict=True)
        ]
        batch = _collate(documents, rows, [row.id for row in found])
        # Reading a row maps the pages around it: random rows would map the whole store.
        self.store.release()
        return batch

    def plain(self, most_tokens: int) -> Batch:
        """The first row's prompt and answer as plain text: what an exported model is
        compared on.
        """
        row = self.store.row(0)
        return self.text(np.concatenate([row.prompt, row.answer])[:most_tokens])

    def text(self, tokens: Sequence[int]) -> Batch:
        """These tokens as plain text, of no row and without labels."""
        return _collate([[(np.asarray(tokens, np.int32), SEGMENT_X, False)]], None, [])

    def _document(self, row: Row, number: int) -> list[Piece]:
        trace = self.traces.trace(number) if self.traces else self.pause
        texts = {"prompt": row.prompt, "cot": row.cot, "trace": trace, "answer": row.answer}
        return document(self.phase, self.train, self.marks, texts)


def _collate(documents: list[list[Piece]], rows: np.ndarray | None, ids: list[str]) -> Batch:
    tokens, segments, supervised = zip(
        *(piece for document in documents for piece in document), strict=True
    )
    piece_lengths = [len(part) for part in tokens]
    lengths = np.array([sum(len(part) for part, *_ in document) for document in documents])
    starts = np.cumsum(lengths) - lengths
    input_ids = np.concatenate(tokens).astype(np.int64)
    arrays = (
        input_ids,
        np.where(np.repeat(supervised, piece_lengths), input_ids, IGNORE),
        np.arange(len(input_ids)) - np.repeat(starts, lengths),
        np.repeat(np.arange(len(documents), dtype=np.int32), lengths),
        np.repeat(np.array(segments, np.int8), piece_lengths),
    )
    rows = np.empty(0, np.int64) if rows is None else np.asarray(rows, np.int64)
    return Batch(*(torch.from_numpy(array)[None] for array in arrays), rows, ids)


def prefetched(
    plan: Plan, documents: Documents, rank: int, world_size: int, first_step: int
) -> Iterator[tuple[StepPlan, list[Batch]]]:
    """(step, this rank's micro-batches) from `first_step` on. A thread works ahead by a step."""
    ready: queue.Queue = queue.Queue(maxsize=1)
    ended = threading.Event()

    def put(item) -> None:
        while not ended.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for index in range(first_step, plan.num_steps):
                if ended.is_set():
                    return
                step = plan.step(index)
                put((step, [documents.batch(bins[rank]) for bins in step.micro_steps(world_size)]))
            put(None)
        except BaseException as error:  # noqa: BLE001  raised again where the batches are consumed
            put(error)

    worker = threading.Thread(target=work, name="batches", daemon=True)
    worker.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        worker.join()
