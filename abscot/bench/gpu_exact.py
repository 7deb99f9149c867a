"""Attention and loss in fp64, in pieces that fit: what kernels are compared with."""

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from abscot.bench.tools import Bin
from abscot.method.masks import mask_mod
from abscot.method.phases import BOTTLENECK, HiddenPairs
from abscot.method.sequence import IGNORE

PIECE_ENTRIES = 2**25  # of scores at a time: a quarter of a GB each in fp64


def exact_attention(
    packed: Bin, query, key, value, upstream, hidden: HiddenPairs = BOTTLENECK
) -> list[torch.Tensor]:
    """Output [1, T, heads, D] and the gradients of query, key and value [1, heads, T, D], fp64.

    upstream: the output's gradient. A document and a key-value head at a time, and of its queries
    as many as fit: each piece is a dense masked attention, its gradients are added up.
    """
    with torch.no_grad():
        out = torch.zeros_like(upstream, dtype=torch.float64)
        grads = [torch.zeros_like(x, dtype=torch.float64) for x in (query, key, value)]
    allowed = mask_mod(packed.document_id, packed.segment_id, hidden)
    of_key = query.shape[1] // key.shape[1]  # query heads of a key-value head
    for start, stop in _documents(packed):
        rows = max(1, PIECE_ENTRIES // (of_key * (stop - start)))
        for head in range(key.shape[1]):
            heads = slice(head * of_key, (head + 1) * of_key)
            k, v = (x[:, head : head + 1, start:stop].detach().double() for x in (key, value))
            for first in range(start, stop, rows):
                piece = slice(first, min(first + rows, stop))
                place = torch.arange(piece.stop, device=query.device)
                mask = allowed(None, None, place[piece][:, None], place[None, start:])
                mask = torch.nn.functional.pad(mask, (0, stop - piece.stop))
                inputs = [query[:, heads, piece].detach().double(), k, v]
                for x in inputs:
                    x.requires_grad_()
                made = scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
                gradient = upstream[:, piece, heads].transpose(1, 2).double()
                of_piece = torch.autograd.grad(made, inputs, gradient)
                out[:, piece, heads] = made.detach().transpose(1, 2)
                grads[0][:, heads, piece] = of_piece[0]
                for whole, found in zip(grads[1:], of_piece[1:], strict=True):
                    whole[:, head : head + 1, start:stop] += found
    return [out, *grads]


def _documents(packed: Bin) -> list[tuple[int, int]]:
    """Start and stop of each document; padding stands last and is none."""
    document = packed.document_id.flatten()
    lengths = torch.bincount(document[document >= 0]).tolist()
    stops = torch.tensor(lengths).cumsum(0).tolist()
    return [(stop - length, stop) for length, stop in zip(lengths, stops, strict=True)]


def exact_loss(hidden, weight, labels) -> list[torch.Tensor]:
    """Summed cross-entropy at the supervised positions, and the gradients of hidden [1, T, H] and
    weight [V, H], fp64.
    """
    inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = inputs[0][0, :-1] @ inputs[1].t()
    total = cross_entropy(logits, labels[0, 1:], ignore_index=IGNORE, reduction="sum")
    return [total.detach(), *torch.autograd.grad(total, inputs)]
