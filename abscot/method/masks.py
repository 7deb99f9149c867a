"""The bottleneck rule, once: as a dense reference, as a FlexAttention block mask and as two causal
calls.

A query attends to a key when the key is not later, both are in one document, neither is padding,
and not (the query is in the answer Y and the key in the verbal CoT C): paper section 3.1, C -> H_Z
-> Y. One document, X X C C Z Y Y:

              X X C C Z Y Y
           X  1 . . . . . .      call 1: queries = keys = [X;C;Z], causal
           X  1 1 . . . . .
           C  1 1 1 . . . .      call 2: queries = Y, keys = [X;Z;Y], causal, the last query at the last key
           C  1 1 1 1 . . .
           Z  1 1 1 1 1 . .      Together the calls hold every 1 and no dot: exact, without waste.
           Y  1 1 . . 1 1 .
           Y  1 1 . . 1 1 1

Both calls belong to ONE forward pass: the Z that call 2 reads has seen C in the layers below.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from abscot.method.phases import SEGMENT_C, SEGMENT_Y


def mask_mod(document_id: torch.Tensor, segment_id: torch.Tensor, bottleneck: bool):
    """The rule as FlexAttention's `mask_mod(batch, head, query, key)`; index tensors broadcast.

    document_id: int [1, T] or [T], -1 where padding; segment_id: int, the same shape, SEGMENT_*.
    """
    document, segment = document_id.flatten(), segment_id.flatten()

    def allowed(batch, head, query, key):
        causal = (query >= key) & (document[query] == document[key]) & (document[query] >= 0)
        if not bottleneck:
            return causal
        return causal & ~((segment[query] == SEGMENT_Y) & (segment[key] == SEGMENT_C))

    return allowed


def dense_mask(
    document_id: torch.Tensor, segment_id: torch.Tensor, bottleneck: bool
) -> torch.Tensor:
    """The rule as bool [T, T], True where the row (query) may attend to the column (key)."""
    position = torch.arange(document_id.numel(), device=document_id.device)
    return mask_mod(document_id, segment_id, bottleneck)(
        None, None, position[:, None], position[None, :]
    )


def block_mask(document_id: torch.Tensor, segment_id: torch.Tensor, bottleneck: bool) -> BlockMask:
    """The rule as a BlockMask for one batch. A constant T, a multiple of 128, spares recompilation."""
    tokens, device = document_id.numel(), document_id.device
    rule = mask_mod(document_id, segment_id, bottleneck)
    # Compiled, the mask is reduced to blocks as it is made; eagerly all T x T entries exist (1 GB
    # at 32k).
    return create_block_mask(
        rule, None, None, tokens, tokens, device=device, _compile=device.type == "cuda"
    )


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
    query_index: torch.Tensor  # int64 [rows of queries]: where they stand in the bin, no row twice
    key_index: torch.Tensor  # int64 [rows of keys]: likewise
    cu_seqlens_q: torch.Tensor  # int32 [sequences + 1]
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    cuts: tuple[
        int, ...
    ]  # 0, the ends of all runs and T: between two neighbours lies one run, or none

    @classmethod
    def of(cls, sequences: list[Sequence], num_tokens: int, device: torch.device) -> "CausalCall":
        runs = [run for s in sequences for run in (s.queries, *s.keys)]
        num_queries, num_keys = [s.num_queries for s in sequences], [s.num_keys for s in sequences]
        return cls(
            tuple(sequences),
            _rows([s.queries for s in sequences]).to(device),
            _rows([run for s in sequences for run in s.keys]).to(device),
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
    def of(cls, document_id: torch.Tensor, segment_id: torch.Tensor, bottleneck: bool) -> "Layout":
        """Built once a batch, outside the layers, on the CPU; its index tensors go to document_id's
        device.

        document_id: int [1, T], equal within a document, -1 where padding; segment_id: int [1, T],
        SEGMENT_*. Raises ValueError where padding is not last, documents interleave, or a document
        is not in order.
        """
        first, second = [], []
        for runs in _documents(document_id, segment_id):
            start, stop = runs[0][1], runs[-1][2]
            answer = next((a for segment, a, _ in runs if segment == SEGMENT_Y), stop)
            visible = tuple((a, b) for segment, a, b in runs if segment != SEGMENT_C)
            cut = bottleneck and answer < stop and len(visible) < len(runs)
            if cut:
                second.append(Sequence((answer, stop), visible))
            if not cut or start < answer:
                end = answer if cut else stop
                first.append(Sequence((start, end), ((start, end),)))
        tokens, device = document_id.numel(), document_id.device
        return cls(
            tokens, tuple(CausalCall.of(call, tokens, device) for call in (first, second) if call)
        )

    @cached_property
    def allowed_pairs(self) -> int:
        """(query, key) pairs that attend: the bin's attention costs 4 x head_dim FLOPs a pair and
        head.
        """
        sequences = [s for call in self.calls for s in call.sequences]
        return sum(
            s.num_queries * s.num_keys - s.num_queries * (s.num_queries - 1) // 2 for s in sequences
        )


def _documents(
    document_id: torch.Tensor, segment_id: torch.Tensor
) -> list[list[tuple[int, int, int]]]:
    """Each document as its runs (segment, start, stop), in order, without the padding at the end."""
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
            documents[-1].append((kind, start, stop))
        previous = (owner if owner >= 0 else document.numel(), kind)
    return documents


def _rows(runs: list[tuple[int, int]]) -> torch.Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in runs])


def _cumulated(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
