"""The loss head: right in value and gradient, lean in memory, and the same on any number
of ranks.
"""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from abscot.bench.tools import synthetic_bin
from abscot.method.phases import SEGMENT_Y, SEGMENT_Z
from abscot.method.sequence import IGNORE
from abscot.model.loss import _fused_cross_entropy_, right_tokens, supervised_loss

HIDDEN, VOCAB = 24, 300
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

DOCUMENTS = [(3, 5, 2, 4), (1, 0, 0, 1), (4, 0, 3, 2), (0, 2, 9, 30)]


def inputs(dtype=torch.float64, documents=DOCUMENTS, seed=0):
    packed = synthetic_bin(documents, VOCAB, seed, pad_to_tokens=sum(map(sum, documents)) + 3)
    generator = torch.Generator().manual_seed(1)
    hidden = (
        torch.randn(1, packed.labels.shape[1], HIDDEN, generator=generator)
        .to(dtype)
        .requires_grad_()
    )
    weight = torch.randn(VOCAB, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return packed, hidden, weight


def full_logits(hidden, weight, labels):
    """What Hugging Face computes, summed."""
    logits = hidden[0, :-1] @ weight.t()
    return cross_entropy(logits, labels[0, 1:], ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1024])
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_value_and_gradients(chunk_tokens, dtype, bound):
    packed, hidden, weight = inputs(dtype)
    sums = supervised_loss(hidden, weight, packed.labels, packed.segment_id, chunk_tokens)
    (sums.total / 7).backward()
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    exact = full_logits(exact_hidden, exact_weight, packed.labels)
    (exact / 7).backward()
    assert sums.total.item() == pytest.approx(exact.item(), rel=bound)
    for got, reference in ((hidden.grad, exact_hidden.grad), (weight.grad, exact_weight.grad)):
        assert (got.double() - reference).abs().max() <= bound * reference.abs().max()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_many_chunks_of_16_bits_lose_nothing(device):
    """Summed in 16 bits, the weight's gradient was off by 3.5% after a thousand chunks."""
    generator, rows = torch.Generator().manual_seed(1), 4096
    hidden = torch.randn(1, rows + 1, HIDDEN, generator=generator).bfloat16()
    hidden[..., 0] = 1.0  # as biases do: every row adds to the same sums
    weight = torch.randn(VOCAB, HIDDEN, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(VOCAB, (1, rows + 1), generator=generator)
    segment_id = torch.full_like(labels, SEGMENT_Y)
    inputs = (x.to(device) for x in (hidden, weight, labels, segment_id))
    supervised_loss(*inputs, chunk_tokens=4).total.backward()
    exact = weight.detach().double().requires_grad_()
    full_logits(hidden.double(), exact, labels).backward()
    error = (weight.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < torch.finfo(torch.bfloat16).eps / 2  # one rounding


def test_sums_by_segment():
    packed, hidden, weight = inputs()
    sums = supervised_loss(hidden, weight, packed.labels, packed.segment_id)
    for segment, got, count in ((SEGMENT_Z, sums.z, sums.n_z), (SEGMENT_Y, sums.y, sums.n_y)):
        only = torch.where(packed.segment_id == segment, packed.labels, IGNORE)
        assert got.item() == pytest.approx(full_logits(hidden, weight, only).item())
        assert count == (only != IGNORE).sum()
        assert not got.requires_grad
    assert (sums.z + sums.y).item() == pytest.approx(sums.total.item())


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1024])
def test_right_tokens_are_those_that_greedy_decoding_writes(chunk_tokens):
    packed, hidden, weight = inputs()
    greedy = (hidden[0, :-1] @ weight.t()).argmax(1)
    labels = packed.labels.clone()
    supervised = (labels[0] != IGNORE).nonzero().flatten()
    labels[0, supervised[::2]] = greedy[supervised[::2] - 1]  # every other one is made right
    right = right_tokens(hidden, weight, labels, chunk_tokens)
    expected = torch.zeros_like(labels[0], dtype=torch.bool)
    expected[1:] = labels[0, 1:] == greedy
    assert torch.equal(right[0], expected) and len(supervised) // 2 < right.sum() < len(supervised)
    assert not right_tokens(hidden, weight, torch.full_like(labels, IGNORE), 7).any()


def test_nothing_supervised_still_has_gradients():
    packed, hidden, weight = inputs()
    unsupervised = torch.full_like(packed.labels, IGNORE)
    sums = supervised_loss(hidden, weight, unsupervised, packed.segment_id)
    sums.total.backward()
    assert sums.total.item() == sums.n_z == sums.n_y == 0
    assert (hidden.grad == 0).all() and (weight.grad == 0).all()


def test_tied_frozen_and_evaluated():
    packed, hidden, weight = inputs()
    # tied: the weight is used twice
    embedded = torch.nn.functional.embedding(packed.input_ids, weight)
    supervised_loss(embedded, weight, packed.labels, packed.segment_id, 5).total.backward()
    exact_weight = weight.detach().requires_grad_()
    embedded = torch.nn.functional.embedding(packed.input_ids, exact_weight)
    full_logits(embedded, exact_weight, packed.labels).backward()
    assert torch.allclose(weight.grad, exact_weight.grad)

    frozen = weight.detach()
    sums = supervised_loss(hidden, frozen, packed.labels, packed.segment_id)
    sums.total.backward()
    assert hidden.grad is not None and frozen.grad is None
    with torch.no_grad():
        evaluated = supervised_loss(hidden, weight, packed.labels, packed.segment_id)
    assert evaluated.total.item() == sums.total.item() and not evaluated.total.requires_grad


def test_a_second_backward_is_refused_not_wrong():
    packed, hidden, weight = inputs()
    total = supervised_loss(hidden, weight, packed.labels, packed.segment_id).total
    total.backward(torch.tensor(2.0, dtype=total.dtype), retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        total.backward()


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's output holds."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_logits_never_exceed_the_chunk():
    packed, hidden, weight = inputs(torch.float32, [(20, 50, 100, 400)] * 2)
    with LargestTensor() as largest:
        supervised_loss(hidden, weight, packed.labels, packed.segment_id, 32).total.backward()
    assert largest.elements <= max(32 * VOCAB, hidden.numel())


# two uneven bins, and one with nothing supervised
PARTS = [DOCUMENTS[:1], [(4, 6, 0, 0)], DOCUMENTS[1:]]


class Tiny(torch.nn.Module):
    """An embedding as body and tied head: every gradient passes both ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(VOCAB, HIDDEN).double()

    def forward(self, packed):
        hidden = self.table(packed.input_ids)
        return supervised_loss(hidden, self.table.weight, packed.labels, packed.segment_id, 4).total


def bins_and_tokens():
    bins = [synthetic_bin(part, VOCAB, seed) for seed, part in enumerate(PARTS)]
    return bins, sum(int((b.labels[0, 1:] != IGNORE).sum()) for b in bins)


def test_accumulation_is_one_packed_bin():
    bins, tokens = bins_and_tokens()
    single = Tiny()
    for packed in bins:  # accumulation
        (single(packed) / tokens).backward()
    whole = Tiny()  # one packed bin
    together = synthetic_bin(sum(PARTS, []), VOCAB)
    together.input_ids = torch.cat([b.input_ids for b in bins], 1)
    together.labels = torch.cat([b.labels for b in bins], 1)
    (whole(together) / tokens).backward()
    assert torch.allclose(single.table.weight.grad, whole.table.weight.grad, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_fused_kernel():
    pytest.importorskip("liger_kernel")
    logits = torch.randn(64, 151_936, device="cuda", dtype=torch.bfloat16) * 3
    targets = torch.randint(151_936, (64,), device="cuda")
    exact = logits.double().requires_grad_()
    reference = cross_entropy(exact, targets, reduction="none")
    reference.sum().backward()
    losses = _fused_cross_entropy_(logits, targets)
    assert losses.dtype == torch.float32
    assert (losses - reference).abs().max() < 1e-4
    assert (logits - exact.grad).abs().max() < 5e-3  # bf16 entries in [-1, 1]
