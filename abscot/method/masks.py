"""The attention rule of a phase, once: as a dense reference, as a FlexAttention block mask and as
causal calls.

A query attends to a key when the key is not later, both are in one document, neither is padding,
and the phase does not hide the key's segment from the query's. In phase A the answer Y never sees
the verbal CoT C: hidden={("Y", "C")}, paper section 3.1, C -> H_Z -> Y. One document X X C C Z Y Y:

              X X C C Z Y Y
           X  1 . . . . . .      call 1: queries = keys = [X;C;Z], causal
           X  1 1 . . . . .
           C  1 1 1 . . . .      call 2: queries = Y, keys = [X;Z;Y], causal,
           C  1 1 1 1 . . .              the last query at the last key
           Z  1 1 1 1 1 . .      Together the calls hold every 1 and no dot: exact, without waste.
           Y  1 1 . . 1 1 .
           Y  1 1 . . 1 1 1

Any hidden pairs become calls in the same way: neighbouring segments from which the same is hidden
form one call. All calls belong to ONE forward pass: the Z that call 2 reads has seen C in the
layers below.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from abscot.method.phases import SEGMENT_OF, HiddenPairs


def mask_mod(document_id: torch.Tensor, segment_id: torch.Tensor, hidden: HiddenPairs):
    """The rule as FlexAttention's `mask_mod(batch, head, query, key)`; index tensors broadcast.

    document_id: int [1, T] or [T], -1 where padding; segment_id: int, the same shape, SEGMENT_*.
    """
    document, segment = document_id.flatten(), segment_id.flatten()
    pairs = _segment_ids(hidden)

    def allowed(batch, head, query, key):
        seen = (query >= key) & (document[query] == document[key]) & (document[query] >= 0)
        for of_query, of_key in pairs:
            seen = seen & ~((segment[query] == of_query) & (segment[key] == of_key))
        return seen

    return allowed


def _segment_ids(hidden: HiddenPairs) -> list[tuple[int, int]]:
    return sorted((SEGMENT_OF[query], SEGMENT_OF[key]) for query, key in hidden)


def dense_mask(
    document_id: torch.Tensor, segment_id: torch.Tensor, hidden: HiddenPairs
) -> torch.Tensor:
    """The rule as bool [T, T], True where the row (query) may attend to the column (key)."""
    position = torch.arange(document_id.numel(), device=document_id.device)
    return mask_mod(document_id, segment_id, hidden)(
        None, None, position[:, None], position[None, :]
    )


def block_mask(
    document_id: torch.Tensor, segment_id: torch.Tensor, hidden: HiddenPairs
) -> BlockMask:
    """The rule as a BlockMask for one batch. A constant T, a multiple of 128, spares
    recompilation.
    """
    tokens, device = document_id.numel(), document_id.device
    rule = mask_mod(document_id, segment_id, hidden)
    # Compiled, the mask is reduced to blocks as it is made; eagerly all T x T entries exist (1 GB
    # at 32k).
    return create_block_mask(
        rule, None, None, tokens, tokens, device=device, _compile=device.type == "cuda"
    )


class Run(NamedTuple):
    """Neighbouring rows of one segment of one document: start .. stop in the packed bin."""

    segment: int
    start: int
    stop: int


class Sequence(NamedTuple):
    """A run of query rows, and the runs of key rows that it sees causally, its last row at the last
    key.
    """

    queries: tuple[int, int]  # start, stop in the packed bin
    keys: tuple[tuple[int, int], ...]

    @property
    def num_queries(self) -> int:
        return self.queries[1] - self.queries[0]

    @property
    def num_keys(self) -> int:
        return sum(stop - start for start, stop in self.keys)


@dataclass(frozen=True)
class CausalCall:
    """Independent sequences in one causal attention call, in the terms of a varlen kernel and as
    runs.
    """

    sequences: tuple[Sequence, ...]
    # int64 [rows of queries]: where they stand in the bin, ascending; None: all rows of it
    query_index: torch.Tensor | None
    key_index: torch.Tensor | None  # int64 [rows of keys]: likewise
    cu_seqlens_q: torch.Tensor  # int32 [sequences + 1]
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    # 0, the ends of all runs and T: between two neighbours lies one run, or none.
    cuts: tuple[int, ...]

    @classmethod
    def of(cls, sequences: list[Sequence], num_tokens: int, device: torch.device) -> "CausalCall":
        runs = [run for s in sequences for run in (s.queries, *s.keys)]
        num_queries, num_keys = [s.num_queries for s in sequences], [s.num_keys for s in sequences]
        return cls(
            tuple(sequences),
            _rows([s.queries for s in sequences], num_tokens, device),
            _rows([run for s in sequences for run in s.keys], num_tokens, device),
            _cumulated(num_queries).to(device),
            _cumulated(num_keys).to(device),
            max(num_queries),
            max(num_keys),
            tuple(sorted({0, num_tokens}.union(*runs))),
        )


@dataclass(frozen=True)
class Layout:
    """The rule as causal calls for one packed bin; each row but padding is a query in exactly one
    call.
    """

    num_tokens: int
    calls: tuple[CausalCall, ...]

    @classmethod
    def of(
        cls, document_id: torch.Tensor, segment_id: torch.Tensor, hidden: HiddenPairs
    ) -> "Layout":
        """Built once per batch, outside the layers, on the CPU; its index tensors go to
        document_id's device.

        document_id: int [1, T], equal within a document, -1 where padding; segment_id: int [1, T],
        SEGMENT_*. Raises ValueError where padding is not last, documents interleave, or a document
        is not in order.
        """
        pairs, calls = _segment_ids(hidden), []
        for runs in _documents(document_id, segment_id):
            for number, sequence in enumerate(_sequences(runs, pairs)):
                if number == len(calls):
                    calls.append([])
                calls[number].append(sequence)
        tokens, device = document_id.numel(), document_id.device
        return cls(tokens, tuple(CausalCall.of(call, tokens, device) for call in calls))

    @cached_property
    def allowed_pairs(self) -> int:
        """(query, key) pairs that attend: the bin's attention costs 4 x head_dim FLOPs per pair
        and head.
        """
        sequences = [s for call in self.calls for s in call.sequences]
        return sum(
            s.num_queries * s.num_keys - s.num_queries * (s.num_queries - 1) // 2 for s in sequences
        )


def _sequences(runs: list[Run], hidden: list[tuple[int, int]]) -> list[Sequence]:
    """One document's runs as sequences, one per call: a new one begins where other runs are hidden.

    Runs X, C, Z, Y and hidden (Y, C): queries XCZ with keys XCZ, then queries Y with keys X, Z, Y.
    """
    groups: list[tuple[list[Run], list[Run]]] = []  # (runs of queries, runs hidden from them)
    for number, run in enumerate(runs):
        unseen = [key for key in runs[:number] if (run.segment, key.segment) in hidden]
        if groups and groups[-1][1] == unseen:
            groups[-1][0].append(run)
        else:
            groups.append(([run], unseen))
    sequences = []
    for queries, unseen in groups:
        own = queries[0].start, queries[-1].stop
        before = [(r.start, r.stop) for r in runs if r.stop <= own[0] and r not in unseen]
        sequences.append(Sequence(own, (*before, own)))
    return sequences


def _documents(document_id: torch.Tensor, segment_id: torch.Tensor) -> list[list[Run]]:
    """Each document as its runs, in order, without the padding at the end."""
    document, segment = document_id.flatten().cpu(), segment_id.flatten().cpu()
    changes = (document.diff() != 0) | (segment.diff() != 0)
    starts = [0, *(changes.nonzero().flatten() + 1).tolist()]
    documents, previous = [], (-1, 0)
    for start, stop in zip(starts, [*starts[1:], document.numel()], strict=True):
        owner, kind = int(document[start]), int(segment[start])
        if owner >= 0 and (owner, kind) <= previous:
            raise ValueError(
                f"row {start}: documents must follow each other, each in the order X, C, Z, Y, "
                "padding last"
            )
        if owner > previous[0]:
            documents.append([])
        if owner >= 0:
            documents[-1].append(Run(kind, start, stop))
        previous = (owner if owner >= 0 else document.numel(), kind)
    return documents


def _rows(
    runs: list[tuple[int, int]], num_tokens: int, device: torch.device
) -> torch.Tensor | None:
    """The rows of ascending runs; None where they are all of the bin."""
    rows = torch.cat([torch.arange(start, stop) for start, stop in runs])
    return None if len(rows) == num_tokens else rows.to(device)


def _cumulated(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
