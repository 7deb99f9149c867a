"""Started by `deepspeed` from test_zero3_gradients.py, with an empty directory: gradients of two
ZeRO-3 ranks against those of one plain process; then two steps of each way to shard and to
checkpoint, full and LoRA, against each other.

Four bins, two per rank: uneven supervised tokens, and on rank 1 a first bin that has none. The head
is tied.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad

from abscot import cli
from abscot.bench.tools import synthetic_bin
from abscot.common import ranks
from abscot.method.phases import BOTTLENECK
from abscot.method.sequence import IGNORE
from abscot.model import attention
from abscot.model.lm import SupervisedLM
from abscot.model.recompute import checkpoint_layers
from abscot.recipe.load import ROOT
from abscot.recipe.schema import Recipe
from abscot.recipe.schema_train import LoraConfig
from abscot.training import checkpoint
from abscot.training.model_engine import build_model_engine, init_ranks
from abscot.training.optimizer import MASTER, set_lr
from abscot.training.together import on_first_rank
from abscot.training.trainer import forward_backward, rehearse
from kit.tiny_run import make_model, tiny_model, tiny_recipe, tiny_tokenizer

VOCAB = 384
PARTS = [
    [(3, 5, 2, 4), (4, 0, 3, 2)],
    [(4, 6, 0, 0)],
    [(1, 0, 0, 1), (0, 2, 9, 30)],
    [(5, 5, 5, 5)],
]
BACKEND = "abscot_segments"
# As in zero3.json, but for a model of a few thousand parameters: matrices are sharded, few are
# whole at a time, and what is fetched ahead differs between a layer and its recomputation.
SMALL = {
    "stage3_param_persistence_threshold": 100,
    "stage3_prefetch_bucket_size": 20_000,
    "stage3_max_live_parameters": 60_000,
    "stage3_max_reuse_distance": 1000,
}


def tiny() -> SupervisedLM:
    lm = tiny_model(0, attn_implementation=BACKEND).train()
    checkpoint_layers(lm, keep_attention=True)
    return SupervisedLM(lm, BACKEND, chunk_tokens=4)


def total(model, packed) -> torch.Tensor:
    layout = attention.layout_of(packed, BACKEND, BOTTLENECK)
    return model(packed.input_ids, packed.position_ids, packed.labels, packed.segment_id, layout)[0]


def compare_with_one_process(bins, tokens: int) -> None:
    alone = tiny()
    for packed in bins:
        (total(alone, packed) / tokens).backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}

    rank, world = ranks.rank(), ranks.world_size()
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


def two_steps(recipe: Recipe, root: Path, device, bins, tokens: int) -> list[list[float]]:
    """[loss, gradient norm] of each, in bf16, by the project's own engine."""
    engine = build_model_engine(recipe, root / "base", root, device, "pi1_phaseA")
    rehearse_and_compare(engine, bins[2])
    found, world = [], ranks.world_size()
    mine = bins[ranks.rank() :: world]
    for step in range(2):
        loss = 0.0
        for number, packed in enumerate(mine, 1):
            engine.set_gradient_accumulation_boundary(number == len(mine))
            torch.manual_seed(step)  # of LoRA's dropout
            loss += forward_backward(engine, packed, BOTTLENECK, world / tokens)[0] / tokens
        set_lr(engine, 1e-2)
        engine.step()
        torch.distributed.all_reduce(loss)
        found.append([float(loss), float(engine.get_global_grad_norm())])
    engine.destroy()
    return found


def rehearse_and_compare(engine, packed) -> None:
    """The rehearsal's second pass has Adam's moments beside it, and no weight moves."""
    with_moments, before = [], masters(engine)
    of_forward = engine.module.register_forward_pre_hook(
        lambda *_: with_moments.append(any(map(len, engine.optimizer.optimizer.state.values())))
    )
    rehearse(engine, packed, BOTTLENECK)
    of_forward.remove()
    assert with_moments == [False, True], with_moments
    assert all(map(torch.equal, masters(engine), before))


def masters(engine) -> list[torch.Tensor]:
    return [shard.read(MASTER).detach().clone() for shard in checkpoint._shards(engine)]


def write_inputs(root: Path) -> None:
    make_model(root / "base", tiny_tokenizer(), seed=0)
    zero3 = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    zero3["zero_optimization"] |= SMALL
    (root / "zero3.json").write_text(json.dumps(zero3))


def ways(root: Path, embeddings: str | None) -> dict[str, dict]:
    """What is compared: way -> keys of the recipe's sections model and train."""
    kept = {"deepspeed": str(root / "zero3.json")}
    others = {name: {"deepspeed": f"ds_configs/{name}.json"} for name in ("zero1", "zero2")}
    return {
        "kept": kept,
        "recomputed": {**kept, "keep_attention": False},
        "not checkpointed": {**kept, "gradient_checkpointing": False},
        **(others if embeddings != "full" else {}),
    }


def main() -> None:
    torch.set_num_threads(1)
    attention.register()
    root, device = Path(sys.argv[-1]), init_ranks()
    bins = [synthetic_bin(part, VOCAB, seed) for seed, part in enumerate(PARTS)]
    tokens = sum(int((b.labels[0, 1:] != IGNORE).sum()) for b in bins)
    compare_with_one_process(bins, tokens)
    on_first_rank(lambda: write_inputs(root))
    plain, found = tiny_recipe(root), {}
    for embeddings in (None, "new_rows", "full"):
        lora = embeddings and LoraConfig(r=4, alpha=8, dropout=0.1, embeddings=embeddings)
        for way, keys in ways(root, embeddings).items():
            train = replace(plain.train, deepspeed=keys.pop("deepspeed"))
            model = replace(plain.model, loss_chunk_tokens=4, **keys)
            recipe = replace(plain, lora=lora, train=train, model=model)
            found.setdefault(str(embeddings), {})[way] = two_steps(
                recipe, root, device, bins, tokens
            )
    on_first_rank(lambda: (root / "found.json").write_text(json.dumps(found)))


cli.run(main)
