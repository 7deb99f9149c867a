"""The loss: logits only at supervised positions, a chunk at a time, with the gradient made on the
way.

A training bin supervises a small part of its tokens, and logits are 60 times wider than hidden
states: 32k tokens x 151,936 entries are 20 GB in fp32. Here at most `chunk_tokens` rows of logits
exist, and they become their own gradient in place: three matrix products, no recomputation. The
weight is read in the forward only, where ZeRO-3 has it gathered; its gradient is summed over the
chunks in fp32.
"""

import importlib.util
from typing import NamedTuple

import torch

from abscot.common.hardware import compute_dtype
from abscot.method.phases import SEGMENT_Y, SEGMENT_Z
from abscot.method.sequence import IGNORE

PART_ROWS = 128  # of a chunk, whose logits exist in fp32 at the same time
PART_ENTRIES = 8192  # of the vocabulary, whose 16-bit products exist at the same time


class LossSums(NamedTuple):
    """Summed cross-entropies of one bin, in nats; the trainer divides by the step's supervised
    tokens.
    """

    total: torch.Tensor  # fp32 scalar over all supervised positions, carries the gradient
    z: torch.Tensor  # detached: the part on Z
    y: torch.Tensor  # detached: the part on Y
    n_z: int  # supervised tokens of Z
    n_y: int


def supervised_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor,
    segment_id: torch.Tensor,
    chunk_tokens: int = 1024,
) -> LossSums:
    """Cross-entropy of the LM head at the supervised positions: hidden[t - 1] predicts labels[t].

    hidden: [1, T, H]; lm_head_weight: [V, H], may be tied or frozen; labels: int64 [1, T], -100
    where unsupervised; segment_id: int8 [1, T], SEGMENT_*. At most chunk_tokens x V logits exist at
    a time. With no supervised position the total is a zero whose gradients are zeros, so that
    collectives run on every rank.
    """
    rows = (labels[0, 1:] != IGNORE).nonzero().flatten()
    targets, segment = labels[0, rows + 1], segment_id[0, rows + 1]
    total, losses = _SummedHeadLoss.apply(
        hidden[0, rows], lm_head_weight, targets, chunk_tokens, torch.is_grad_enabled()
    )
    in_z, in_y = segment == SEGMENT_Z, segment == SEGMENT_Y
    return LossSums(total, losses[in_z].sum(), losses[in_y].sum(), int(in_z.sum()), int(in_y.sum()))


@torch.no_grad()
def right_tokens(
    hidden: torch.Tensor, lm_head_weight: torch.Tensor, labels: torch.Tensor, chunk_tokens: int
) -> torch.Tensor:
    """bool [1, T]: where a label stands that greedy decoding would write. Shapes, and how many
    logits exist at a time, as in `supervised_loss`.
    """
    right = torch.zeros_like(labels, dtype=torch.bool)
    compute = compute_dtype(lm_head_weight)
    matrix = lm_head_weight.to(compute)
    for rows in (labels[0, 1:] != IGNORE).nonzero().flatten().split(chunk_tokens):
        logits = hidden[0, rows].to(compute) @ matrix.t()
        right[0, rows + 1] = logits.argmax(1) == labels[0, rows + 1]
    return right


class _SummedHeadLoss(torch.autograd.Function):
    """(sum, each row's) cross-entropy of hidden [rows, H] and targets [rows]; only the sum has a
    gradient.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk_tokens, with_gradient):
        needs_hidden, needs_weight = (
            with_gradient and needed for needed in ctx.needs_input_grad[:2]
        )
        compute = compute_dtype(weight)
        matrix, summed = weight.to(compute), _at_least_fp32(compute)
        losses = torch.empty(len(targets), dtype=summed, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(matrix, dtype=summed) if needs_weight else None
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            x = hidden[chunk].to(compute)
            logits = x @ matrix.t()
            losses[chunk] = _cross_entropy_(logits, targets[chunk])
            if needs_hidden:
                grad_hidden[chunk] = logits @ matrix
            if needs_weight:
                _add_product_(grad_weight, logits, x)
            del logits  # before the next chunk's are made
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad, _):
        # In place: a second copy of the weight's gradient is what this avoids. Autograd notices a
        # reuse.
        grad_hidden, grad_weight = (g if g is None else g.mul_(grad) for g in ctx.saved_tensors)
        if grad_weight is not None:
            grad_weight = grad_weight.to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total [V, H] += left^T right, of left [rows, V] and right [rows, H], which may be of 16 bits
    where the total is fp32.
    """
    if total.dtype == right.dtype:
        total.addmm_(left.t(), right)
    elif total.is_cuda:
        torch.addmm(total, left.t(), right, out_dtype=total.dtype, out=total)
    else:  # a CPU has no such product: parts of it are made in 16 bits
        parts = (total.split(PART_ENTRIES), left.split(PART_ENTRIES, dim=1))
        for part, columns in zip(*parts, strict=True):
            part += columns.t() @ right


def _cross_entropy_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The losses of logits [rows, V], which become their gradient, softmax - one-hot, in place."""
    if logits.is_cuda and importlib.util.find_spec("liger_kernel"):
        return _fused_cross_entropy_(logits, targets)
    parts = zip(logits.split(PART_ROWS), targets.split(PART_ROWS), strict=True)
    return torch.cat([_plain_cross_entropy_(*part) for part in parts])


def _plain_cross_entropy_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same in an fp32 copy of all the logits."""
    work = logits.to(_at_least_fp32(logits.dtype))
    work -= work.amax(1, keepdim=True)
    shifted_target = work.gather(1, targets[:, None])
    normaliser = work.exp_().sum(1, keepdim=True)
    work /= normaliser
    work.scatter_add_(1, targets[:, None], work.new_full((len(targets), 1), -1.0))
    if work is not logits:
        logits.copy_(work)
    return (normaliser.log() - shifted_target)[:, 0]


def _fused_cross_entropy_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same in Liger's Triton kernel: two reads and one write of the logits, and no fp32 copy of
    them.

    Launched directly, because its wrappers return the losses in the dtype of the logits.
    """
    from liger_kernel.ops.cross_entropy import liger_cross_entropy_kernel

    rows, vocab = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    liger_cross_entropy_kernel[(rows,)](
        X_ptr=logits,
        X_stride=logits.stride(0),
        Y_ptr=targets,
        Y_stride=targets.stride(0),
        n_cols=vocab,
        loss_ptr=losses,
        loss_stride=1,
        reduction="sum",
        HAS_GRADIENTS=True,
        ignore_index=IGNORE,
        n_non_ignore=rows,
        sum_non_ignore_weight=rows,
        weight_sum=0.0,
        weight_ptr=None,
        HAS_WEIGHT=False,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        softcap=None,
        HAS_SOFTCAPPING=False,
        z_loss_ptr=None,
        RETURN_Z_LOSS=False,
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        RETURN_TOKEN_ACCURACY=False,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        RETURN_PREDICTED_TOKENS=False,
        BLOCK_SIZE=min(32_768, 1 << (vocab - 1).bit_length()),
        num_warps=32,
    )
    return losses


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
