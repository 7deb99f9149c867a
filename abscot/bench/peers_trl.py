"""TRL's side of `bench.py peers`: its SFTTrainer under the same DeepSpeed file, at its best, or as
a CPU gets it.
"""

import sys

import datasets
import tokenizers
import torch
import transformers
import trl
import trl.trainer.utils
from torch.nn.functional import scaled_dot_product_attention
from trl.data_utils import pack_dataset

from abscot.bench.peers import AS_IS
from abscot.bench.peers_ours import data_of, rows_of
from abscot.bench.turns import Turn
from abscot.method.lineage import Training, training_of
from abscot.model.shape import ModelShape
from abscot.recipe.run import open_run
from abscot.training.model_engine import deepspeed_config, init_ranks

DOCUMENTS = "documents"


def documents_attention(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, **_):
    """transformers' attention function: a causal call a document, by the lengths that TRL's
    collator gives. What FlashAttention does on a GPU; a CPU has SDPA with a dense mask alone.
    """
    lengths = cu_seq_lens_q.diff().tolist()
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    out = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in pieces
    ]
    return torch.cat(out, dim=2).transpose(1, 2), None


class InTurns(transformers.TrainerCallback):
    """Waits before each optimizer step, and reports it."""

    def __init__(self, turn: Turn, bins: int):
        self.turn, self.bins = turn, bins

    def on_step_begin(self, *_, **__):
        self.turn.begin()

    def on_step_end(self, *_, **__):
        self.turn.end()

    def on_log(self, args, state, control, logs, **_):
        if "loss" in logs:
            tokens = logs["num_tokens"] / state.global_step
            self.turn.report(loss=logs["loss"], tokens=tokens, bins=self.bins)


def trainer_of(turn: Turn, training: Training, as_is: bool) -> trl.SFTTrainer:
    rows = datasets.Dataset.from_list(rows_of(data_of(training).documents))
    train, optimizer = training.recipe.train, training.recipe.optimizer
    bins = len(pack_dataset(rows.select_columns("input_ids"), train.capacity_tokens))
    has_bf16 = training.recipe.model.dtype == "bf16"
    shape = ModelShape.of_directory(training.run.base)
    deepspeed = deepspeed_config(training.recipe, shape) | {"gradient_accumulation_steps": bins}
    config = trl.SFTConfig(
        output_dir=str(training.run.root / "trl"),
        deepspeed=deepspeed,
        model_init_kwargs={
            "dtype": "bfloat16" if has_bf16 else "float32",
            "attn_implementation": "sdpa" if as_is else DOCUMENTS,
        },
        bf16=has_bf16,
        packing=True,  # best-fit decreasing, without padding
        max_length=train.capacity_tokens,
        completion_only_loss=True,
        gradient_checkpointing=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=bins,
        max_steps=training.epochs,
        learning_rate=training.peak_lr,
        lr_scheduler_type="constant",
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        max_grad_norm=train.grad_clip,
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    return trl.SFTTrainer(
        model=str(training.run.base),
        args=config,
        train_dataset=rows,
        processing_class=_tokenizer(),
        callbacks=[InTurns(turn, bins)],
    )


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """TRL asks for one; the rows are tokens already."""
    words = tokenizers.models.WordLevel({"a": 0, "<pad>": 1}, unk_token="a")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), eos_token="a", pad_token="<pad>"
    )


def main(turn: Turn, training: Training, as_is: bool) -> None:
    init_ranks()
    datasets.disable_progress_bars()
    transformers.AttentionInterface.register(DOCUMENTS, documents_attention)
    if not as_is:
        # Its LM head looks at the supervised positions alone on GPUs, at all of them elsewhere.
        trl.trainer.utils._use_triton = lambda device: True
    trainer_of(turn, training, as_is).train()


if __name__ == "__main__":
    reports, root, phase, name = sys.argv[1:]
    main(Turn(reports), training_of(*reversed(open_run(root)), phase, 1), name == AS_IS)
