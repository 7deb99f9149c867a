"""Started by `deepspeed` from test_zero3_gradients.py: gradients of two ZeRO-3 ranks against those
of one plain process.

Four bins, two per rank: uneven supervised tokens, and on rank 1 a first bin that has none. The head
is tied.
"""

import deepspeed
import torch
import transformers
from deepspeed.utils import safe_get_full_grad

from abscot import cli
from abscot.bench.tools import synthetic_bin
from abscot.method.phases import BOTTLENECK
from abscot.method.sequence import IGNORE
from abscot.model import attention
from abscot.model.lm import SupervisedLM

VOCAB = 1000
PARTS = [
    [(3, 5, 2, 4), (4, 0, 3, 2)],
    [(4, 6, 0, 0)],
    [(1, 0, 0, 1), (0, 2, 9, 30)],
    [(5, 5, 5, 5)],
]
BACKEND = "abscot_segments"


def tiny() -> SupervisedLM:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        attn_implementation=BACKEND,
    )
    lm = transformers.Qwen3ForCausalLM(config).train()
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    lm.enable_input_require_grads()
    return SupervisedLM(lm, BACKEND, chunk_tokens=4)


def total(model, packed) -> torch.Tensor:
    layout = attention.layout_of(packed, BACKEND, BOTTLENECK)
    return model(packed.input_ids, packed.position_ids, packed.labels, packed.segment_id, layout)[0]


def main() -> None:
    torch.set_num_threads(1)
    attention.register()
    deepspeed.init_distributed("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    bins = [synthetic_bin(part, VOCAB, seed) for seed, part in enumerate(PARTS)]
    tokens = sum(int((b.labels[0, 1:] != IGNORE).sum()) for b in bins)

    alone = tiny()
    for packed in bins:
        (total(alone, packed) / tokens).backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}

    model, micro_steps = tiny(), len(bins) // world
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
    }
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=list(model.parameters()), config=settings
    )
    for packed in bins[rank::world]:
        # The engine averages over ranks and over micro-steps; the step's loss is a sum over all of
        # them.
        engine.backward(total(engine, packed) * world * micro_steps / tokens)
        if engine.is_gradient_accumulation_boundary():
            gradients = {
                name: safe_get_full_grad(p) for name, p in engine.module.named_parameters()
            }
        engine.step()
    assert gradients.keys() == expected.keys()
    worst = max((gradients[name] - expected[name]).abs().max().item() for name in expected)
    if rank == 0:
        print(f"worst difference {worst:.1e} over {len(expected)} parameters")
    assert worst < 1e-6


cli.run(main)
