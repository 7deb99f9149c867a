"""The attention rule: a literal matrix, and its three forms saying the same over fuzzed
packings.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abscot.bench.tools import synthetic_bin
from abscot.method import masks
from abscot.method.phases import BOTTLENECK, NOTHING_HIDDEN
from kit.hidden_pairs import HIDDEN

lengths = st.tuples(*[st.integers(0, 9)] * 4).filter(any)
packings = st.tuples(
    st.lists(lengths, min_size=1, max_size=6), st.integers(0, 7), st.sampled_from(HIDDEN)
)


def _bin(packing):
    documents, padding, _ = packing
    return synthetic_bin(documents, pad_to_tokens=sum(map(sum, documents)) + padding)


def test_literal_matrix():
    packed = synthetic_bin([(2, 2, 1, 2), (1, 0, 0, 1)], pad_to_tokens=10)
    expected = """
        1.........
        11........
        111.......
        1111......
        11111.....
        11..11....
        11..111...
        .......1..
        .......11.
        ..........
    """
    mask = masks.dense_mask(packed.document_id, packed.segment_id, BOTTLENECK)
    assert ["".join(".1"[bit] for bit in row) for row in mask.int().tolist()] == expected.split()


def test_without_bottleneck_the_answer_sees_the_cot():
    packed = synthetic_bin([(2, 2, 1, 2)])
    mask = masks.dense_mask(packed.document_id, packed.segment_id, NOTHING_HIDDEN)
    assert torch.equal(mask, torch.ones(7, 7, dtype=torch.bool).tril())


def rows(index, layout):
    return torch.arange(layout.num_tokens) if index is None else index


@settings(max_examples=60, deadline=None)
@given(packings)
def test_the_two_calls_hold_every_allowed_pair_once(packing):
    packed, hidden = _bin(packing), packing[2]
    layout = masks.Layout.of(packed.document_id, packed.segment_id, hidden)
    counts = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.int64)
    for call in layout.calls:
        boundaries = zip(*(x.tolist() for x in (call.cu_seqlens_q, call.cu_seqlens_k)), strict=True)
        boundaries = list(boundaries)
        for (q0, k0), (q1, k1) in zip(boundaries, boundaries[1:], strict=False):
            queries = rows(call.query_index, layout)[q0:q1]
            keys = rows(call.key_index, layout)[k0:k1]
            assert len(queries) <= call.max_seqlen_q and len(keys) <= call.max_seqlen_k
            causal = torch.ones(len(queries), len(keys), dtype=torch.int64).tril(
                len(keys) - len(queries)
            )
            counts[queries[:, None], keys[None, :]] += causal
    dense = masks.dense_mask(packed.document_id, packed.segment_id, hidden)
    assert torch.equal(counts, dense.long())
    assert layout.allowed_pairs == dense.sum()


@settings(max_examples=60, deadline=None)
@given(packings)
def test_the_runs_are_what_the_indices_say(packing):
    packed = _bin(packing)
    layout = masks.Layout.of(packed.document_id, packed.segment_id, packing[2])
    for call in layout.calls:
        queries = [row for s in call.sequences for row in range(*s.queries)]
        keys = [row for s in call.sequences for run in s.keys for row in range(*run)]
        assert queries == rows(call.query_index, layout).tolist()
        assert keys == rows(call.key_index, layout).tolist()
        assert len(set(queries)) == len(queries) and len(set(keys)) == len(keys)


def test_a_phase_without_cot_needs_one_call_of_all_rows():
    packed = synthetic_bin([(3, 0, 2, 4), (1, 0, 3, 2)])
    (call,) = masks.Layout.of(packed.document_id, packed.segment_id, BOTTLENECK).calls
    assert call.query_index is None and call.key_index is None
    packed = synthetic_bin([(3, 5, 2, 4)])
    assert len(masks.Layout.of(packed.document_id, packed.segment_id, NOTHING_HIDDEN).calls) == 1
    assert len(masks.Layout.of(packed.document_id, packed.segment_id, BOTTLENECK).calls) == 2


def test_work_of_a_cot_of_99_percent():
    """Call 2 must not pay for the CoT: one document of 10,000 tokens whose answer sees 60."""
    packed = synthetic_bin([(40, 9900, 20, 40)])
    layout = masks.Layout.of(packed.document_id, packed.segment_id, BOTTLENECK)
    assert layout.calls[1].max_seqlen_k == 100
    assert layout.allowed_pairs == 9960 * 9961 // 2 + 40 * 60 + 40 * 41 // 2


def test_block_mask_holds_the_blocks_of_the_rule():
    packed = synthetic_bin([(60, 200, 30, 50), (20, 0, 16, 100), (1, 90, 0, 70)], pad_to_tokens=768)
    for hidden in (BOTTLENECK, NOTHING_HIDDEN):
        dense = masks.dense_mask(packed.document_id, packed.segment_id, hidden)
        block = masks.block_mask(packed.document_id, packed.segment_id, hidden)
        touched = dense.unflatten(0, (6, 128)).unflatten(2, (6, 128)).any(3).any(1)
        assert torch.equal(block.to_dense()[0, 0].bool(), touched)
        assert block.shape[-2:] == (768, 768)


def test_foreign_orders_are_refused():
    packed = synthetic_bin([(2, 2, 2, 2), (1, 0, 0, 3)])
    hole = packed.document_id.clone()
    hole[0, 3] = -1
    returning = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]])
    for document_id, segment_id in [
        (packed.document_id, packed.segment_id.flip(1)),
        (hole, packed.segment_id),
        (returning, packed.segment_id),
    ]:
        with pytest.raises(ValueError, match="documents must follow each other"):
            masks.Layout.of(document_id, segment_id, BOTTLENECK)
