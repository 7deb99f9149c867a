"""C -> H_Z -> Y: what the answer learns of the CoT, it learns through the trace and through nothing
else.
"""

import pytest
import torch
import transformers

from abscot.bench.tools import synthetic_bin
from abscot.method import masks
from abscot.method.phases import BOTTLENECK, SEGMENT_C, SEGMENT_Y, SEGMENT_Z
from abscot.method.sequence import IGNORE
from abscot.model import attention
from abscot.model.loss import supervised_loss


@pytest.fixture(scope="module")
def lm():
    attention.register()
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        attn_implementation="abscot_dense",
    )
    return transformers.Qwen3ForCausalLM(config)


def gradient_at_cot(lm, packed, layout, backend):
    """Gradient of the answer's summed loss in the embeddings of the CoT: [tokens of C, hidden]."""
    lm.set_attn_implementation(attention.PREFIX + backend)
    embeddings = lm.model.embed_tokens(packed.input_ids).detach().requires_grad_()
    hidden = attention.hidden_states(
        lm.model, layout, inputs_embeds=embeddings, position_ids=packed.position_ids
    )
    answer_only = torch.where(packed.segment_id == SEGMENT_Y, packed.labels, IGNORE)
    # The answer's first token is predicted from the row before the answer, which may see the CoT:
    # not from Y.
    answer_only[0, 1:][packed.segment_id[0, :-1] != SEGMENT_Y] = IGNORE
    supervised_loss(hidden, lm.lm_head.weight, answer_only, packed.segment_id).total.backward()
    return embeddings.grad[packed.segment_id == SEGMENT_C]


@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_a_trace_carries_the_cot_and_an_empty_one_nothing(lm, backend):
    for trace_tokens, flows in ((3, True), (0, False)):
        packed = synthetic_bin([(4, 6, trace_tokens, 5), (2, 5, trace_tokens, 3)])
        layout = attention.layout_of(packed, attention.PREFIX + backend, BOTTLENECK)
        gradient = gradient_at_cot(lm, packed, layout, backend)
        assert bool((gradient.abs().sum(1) > 0).all()) if flows else bool((gradient == 0).all())


def test_a_trace_cut_from_the_cot_carries_nothing(lm):
    packed = synthetic_bin([(4, 6, 3, 5)])
    mask = masks.dense_mask(packed.document_id, packed.segment_id, BOTTLENECK)
    in_z, in_c = (packed.segment_id[0] == s for s in (SEGMENT_Z, SEGMENT_C))
    cut = mask & ~(in_z[:, None] & in_c[None, :])
    assert (gradient_at_cot(lm, packed, cut, "dense") == 0).all()
    assert (gradient_at_cot(lm, packed, mask, "dense") != 0).any()


def test_the_split_in_two_passes_carries_nothing(lm):
    """[X;Z;Y] as a pass of its own, as a public reproduction does it: its Z has never seen C."""
    whole = synthetic_bin([(4, 6, 3, 5)])
    second = synthetic_bin([(4, 0, 3, 5)])
    second.input_ids = whole.input_ids[:, whole.segment_id[0] != SEGMENT_C]
    second.position_ids = whole.position_ids[:, whole.segment_id[0] != SEGMENT_C]
    changed = whole.input_ids.clone()
    changed[whole.segment_id == SEGMENT_C] += 1

    def answer(packed, input_ids):
        lm.set_attn_implementation("abscot_segments")
        layout = attention.layout_of(packed, "abscot_segments", BOTTLENECK)
        hidden = attention.hidden_states(
            lm.model, layout, input_ids=input_ids, position_ids=packed.position_ids
        )
        return hidden[packed.segment_id == SEGMENT_Y].detach()

    one_pass = answer(whole, whole.input_ids)
    # the answer follows the CoT
    assert not torch.allclose(one_pass, answer(whole, changed), atol=1e-4)
    split = answer(second, second.input_ids)
    assert not torch.allclose(one_pass, split, atol=1e-4)  # and the split is another function
