"""A phase at a real model's shape on this machine: random weights, real rows; its time and memory,
and what it hands on.

  python tests/drills/shape_drill.py 4B --lora --tokenizer DIR --rows FILE --chars 3000-4500 \
      --batch 1 --steps 2
  python tests/drills/shape_drill.py 0.6B --ranks 2 --deepspeed ds_configs/zero3_offload.json \
      --kill --tokenizer DIR --rows FILE
  python tests/drills/shape_drill.py 512x6 ..             a small shape: hidden size x layers

Extends and saves the base, makes the traces, trains phase A on the first rows of --chars
characters, SIGKILLs it behind its first checkpoint and starts it again (--kill), exports, and loads
the export in transformers. Ends with one line of JSON: seconds per stage, rank 0's peak memory, and
the divergence of the reloaded model from the live engine.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # a script: the kit lies beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from abscot.bench.gpu_run import qwen3_config
from abscot.common import files
from abscot.model.shape import QWEN3, ModelShape
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, claim
from kit.training_run import TAG, ranks_of, saved_step, start, steps_of, wait_for

TOKENIZER = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def shape_of(text: str) -> ModelShape:
    """`4B` of the Qwen3 family, or `512x6`: hidden size and layers of a small one with its
    vocabulary.
    """
    if text in QWEN3:
        return QWEN3[text]
    hidden, layers = map(int, text.split("x"))
    return ModelShape(
        hidden, 3 * hidden, layers, hidden // 64, hidden // 128, 64, QWEN3["4B"].vocab, True
    )


def make_base(directory: Path, shape: ModelShape, tokenizer: Path) -> None:
    """A base without weights: model.random_init draws them."""
    from transformers import Qwen3Config

    Qwen3Config(
        **qwen3_config(shape),
        bos_token_id=151_643,
        eos_token_id=151_645,
    ).save_pretrained(directory)
    for name in TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, directory / name)


def write_rows(source: Path, target: Path, chars: str, count: int) -> None:
    """The first `count` lines of `source` whose length in characters is within `chars`, as
    LOW-HIGH.
    """
    import pyarrow as pa

    low, high = map(int, chars.split("-"))
    with pa.input_stream(str(source), compression="detect") as file:
        kept = [line for line in file.read().decode().split("\n") if low <= len(line) <= high][
            :count
        ]
    if len(kept) < count:
        sys.exit(f"{source}: {len(kept)} lines of {chars} characters, {count} wanted")
    target.write_text("\n".join(kept) + "\n")


def make(root: Path, args) -> tuple:
    """(recipe, run, seconds of each stage) of a run whose phase A can begin."""
    make_base(root / "model", shape_of(args.shape), args.tokenizer)
    write_rows(args.rows, root / "rows.jsonl", args.chars, args.steps * args.batch)
    keys = {
        "name": "shape",
        "run_root": root,
        "schedule": "paper",
        "codebook_size": 64,
        "world": "null",
        "model.base": root / "model",
        "model.dtype": "bf16",
        "model.random_init": "true",
        "model.gradient_checkpointing": "true",
        "model.loss_chunk_tokens": 256,
        "data.source": root / "rows.jsonl",
        "data.format": args.format,
        "data.min_cot_chars": 20,
        "data.decontaminate": "false",
        "eval.benchmarks": "[]",
        "traces.m_max": 64,
        "train.deepspeed": args.deepspeed,
        "train.num_gpus": args.ranks,
        "train.capacity_tokens": args.capacity_tokens,
        "train.global_batch_examples": args.batch,
        "train.checkpoint_every_steps": 1,
        "train.keep_checkpoints": 1,
        "train.channel_rows": 0,
    }
    if args.lora:
        keys["lora.r"] = 32
    recipe, seconds = load_recipe(None, [f"{key}={value}" for key, value in keys.items()]), {}
    run = claim(recipe)
    for stage, extra in (
        ("extend", ()),
        ("prepare", ()),
        ("traces", ("--round", "1", "--phase", "A")),
    ):
        began_s = time.monotonic()
        subprocess.run(
            [sys.executable, ROOT / "launch" / f"{stage}.py", "--recipe", run.config, *extra],
            check=True,
        )
        seconds[stage] = round(time.monotonic() - began_s)
    return recipe, run, seconds


def train(recipe, run: Run, kill: bool) -> str:
    """Phase A, perhaps killed and started again; its output."""
    process = start(recipe, run)
    if kill:
        wait_for(lambda: saved_step(run) or process.poll() is not None, 3600)
        for pid in ranks_of(run):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        process = start(recipe, run)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(output)
    return output


def reload_kl(run: Run) -> float:
    """Nats a token between the live engine's recorded probabilities of a text and the export's, in
    fp32.
    """
    from transformers import AutoModelForCausalLM

    export = run.checkpoints(TAG) / "export"
    probe = files.read_done(export)["probe"]
    lm = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    assert (
        lm.config.tie_word_embeddings
        == json.loads((run.base / "config.json").read_text())["tie_word_embeddings"]
    )
    tokens = torch.tensor(probe["tokens"])
    with torch.no_grad():
        logits = lm(tokens[None]).logits[0]
    live = torch.tensor(probe["surprisals"])
    log_ratio = (
        torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")[-len(live) :]
        - live
    )
    return float((log_ratio.exp() - 1 - log_ratio).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="directory of the real tokenizer"
    )
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines")
    parser.add_argument("--format", default="prompt_cot_answer")
    parser.add_argument("--chars", default="0-4000", help="of a row, LOW-HIGH")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="rows per step")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--deepspeed", default="ds_configs/zero3.json")
    parser.add_argument("--capacity-tokens", type=int, default=2048)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--dir", type=Path, help="kept; default: a temporary directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.dir or Path(temporary)
        (root / "model").mkdir(parents=True)
        recipe, run, seconds = make(root, args)
        began_s = time.monotonic()
        output = train(recipe, run, args.kill)
        seconds["train"] = round(time.monotonic() - began_s)
        steps = steps_of(run)
        print(output)
        print(
            json.dumps(
                {
                    "shape": args.shape,
                    "ranks": args.ranks,
                    "seconds": seconds,
                    "goes_on": "goes on from" in output,
                    "step_s": [round(step["wall_s"], 1) for step in steps],
                    "tokens": [step["tokens"] for step in steps],
                    "loss": [round(step["loss"], 4) for step in steps],
                    "peak_bytes": max(step["peak_bytes"] for step in steps),
                    "reload_kl": reload_kl(run),
                }
            )
        )


if __name__ == "__main__":
    main()
