"""Hidden states of packed documents: those of a plain forward pass."""

import numpy as np
import pytest
import torch
import transformers

from abscot.common.errors import UserError
from abscot.model.states import Document, HiddenStates, bins
from kit.tiny_run import make_model, tiny_tokenizer

LENGTHS = (7, 20, 1, 13)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("states") / "base"
    make_model(directory, tiny_tokenizer(), seed=0)
    return directory


def documents() -> list[Document]:
    draw = np.random.default_rng(0)
    tokens = [draw.integers(0, 300, n).astype(np.int32) for n in LENGTHS]
    return [Document(t, np.unique([0, len(t) // 2, len(t) - 1])) for t in tokens]


@pytest.mark.parametrize(("share", "layer"), [(0.0, 0), (0.5, 1), (1.0, 2)])
@pytest.mark.parametrize("capacity", [20, 64])
def test_states_are_those_of_each_document_alone(base, share, layer, capacity):
    lm = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    raw = {}
    # The library hands out the last state behind the final norm only.
    lm.model.norm.register_forward_pre_hook(lambda _, args: raw.update({2: args[0]}))
    states, told = HiddenStates(base, share, capacity, "fp32"), []
    assert states.layer_number == layer
    found_of_all = states.of(documents(), lambda bin_: told.append(len(bin_)))
    for document, found in zip(documents(), found_of_all, strict=True):
        tokens = torch.from_numpy(document.tokens.astype(np.int64))[None]
        with torch.inference_mode():
            out = lm(tokens, output_hidden_states=True)
        expected = {0: out.hidden_states[0], 1: out.hidden_states[1], **raw}[layer][0]
        np.testing.assert_allclose(found, expected[document.positions], rtol=1e-4, atol=1e-4)
    assert told == ([1, 1, 2] if capacity == 20 else [4])  # whole bins


def test_bins_hold_whole_documents_in_order():
    sizes = [[len(d.tokens) for d in b] for b in bins(documents(), 21)]
    assert sizes == [[7], [20, 1], [13]]
    with pytest.raises(ValueError, match="20 tokens in bins of 19"):
        list(bins(documents(), 19))


def test_a_base_without_a_row_of_layers_is_refused(tmp_path):
    """GPT-2 keeps its layers elsewhere."""
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="grounding.layer: .* is a GPT2LMHeadModel without a row"):
        HiddenStates(tmp_path, 0.5, 64, "fp32")


def test_nothing_above_the_layer_is_run(base, tmp_path):
    lm = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for part in (lm.model.layers[1], lm.model.norm):
        for weight in part.parameters():
            torch.nn.init.constant_(weight, torch.nan)
    lm.save_pretrained(tmp_path)
    whole, cut = (HiddenStates(path, 0.5, 64, "fp32").of(documents()) for path in (base, tmp_path))
    for expected, found in zip(whole, cut, strict=True):
        assert np.array_equal(expected, found)
