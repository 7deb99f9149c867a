"""`bench.py loader`: tokens per second, memory and resume time of the batch stream, beside two
other libraries.

Rows with a sixteenth of Dolci-like lengths are written as a shard store with traces, and as each
peer's own format. Every reader runs in its own process. Ours makes whole phase A batches in the
plan's order; a peer makes one tensor of tokens per row in its own shuffled order, which is less
work.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from abscot.bench.synthetic_rows import VOCAB, write_store, write_traces
from abscot.common.arguments import whole_number
from abscot.common.draws import rng
from abscot.common.files import is_done, write_json_atomic
from abscot.common.log import log
from abscot.data.shards import ShardStore
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import Training
from abscot.method.phases import PHASES
from abscot.packing.batches import Documents, prefetched
from abscot.packing.phase_plan import plan_of
from abscot.pipeline import estimate
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

SHORTER = 16  # than Dolci-like rows, so that 600k rows are 2.5 GB
PEER_ROWS = 50_000  # a peer reads at most these many
PEER_S = 30.0  # .. and at most this long
RESUMES = 5


def run(argv: list[str] = ()) -> dict:
    """Keys: tokens_per_s, rss_bytes, resume_s (slowest of 5, a fresh process each, until the first
    batch), over_mosaicml, over_datasets (ours / theirs, null where the peer is not installed).
    """
    parser = argparse.ArgumentParser(prog="bench.py loader", description=__doc__)
    parser.add_argument("--rows", type=whole_number(1), default=600_000)
    parser.add_argument(
        "--dir",
        type=Path,
        help="keep the data here and use it again (default: a temporary directory)",
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.dir or Path(temporary)
        _write(root, args.rows)
        peers = {
            "mosaicml": importlib.util.find_spec("streaming"),
            "datasets": importlib.util.find_spec("datasets"),
        }
        readers = ["ours", *(name for name, spec in peers.items() if spec)]
        measured = {name: [_measure(name, root) for _ in range(2)] for name in readers}
        resumes = [_measure("resume", root, str(i)) for i in range(RESUMES)]
    speed = {name: max(m["tokens_per_s"] for m in runs) for name, runs in measured.items()}
    results = {
        "rows": args.rows,
        "tokens_per_s": speed["ours"],
        "rss_bytes": max(m["rss_bytes"] for m in measured["ours"]),
        "resume_s": max(r["seconds"] for r in resumes),
        **{f"{name}_tokens_per_s": speed.get(name) for name in peers},
        **{
            f"over_{name}": speed["ours"] / speed[name] if name in speed else None for name in peers
        },
    }
    from abscot.bench import tools

    print(
        tools.table(
            "batch stream, one process", ["", "value"], [[k, v] for k, v in results.items()]
        )
    )
    return results


def _measure(reader: str, root: Path, *arguments: str) -> dict:
    from abscot.bench import tools  # its imports are not to count as the readers' memory

    result = tools.in_own_process("abscot.bench.loader", reader, str(root), *arguments)
    log(f"{reader}: {json.dumps(result)}")
    return result


def _recipe() -> Recipe:
    return load_recipe(
        None,
        [
            "train.capacity_tokens=32768",
            "train.global_batch_tokens=1048576",
            "train.global_batch_examples=null",
        ],
    )


def _write(root: Path, rows: int) -> None:
    """root/run: shards, traces and a base's config."""
    training = _training(root)
    run, done = training.run, root / "rows.json"
    if is_done(training.traces) and json.loads(done.read_text()) == rows:
        return
    total = estimate.dolci_like_lengths(rows, rng("bench")) // SHORTER + 8
    eighth = total // 8
    store = write_store(run, np.stack([eighth, total - 2 * eighth, eighth], axis=1))
    write_traces(training, store)
    write_json_atomic(
        run.base / "config.json",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "tie_word_embeddings": True,
        },
    )
    write_json_atomic(done, rows)


def _training(root: Path) -> Training:
    return Training(_recipe(), Run(root / "run"), PHASES["A"], 1)


def _open(root: Path):
    """(plan, documents) as the trainer opens them."""
    training = _training(root)
    recipe, store = training.recipe, ShardStore(training.run.shards)
    traces = TraceSet.load(training.traces, store)
    documents = Documents(store, traces, training.phase, VOCAB, recipe.train, recipe.traces)
    return plan_of(training, documents), documents


def _ours(root: Path) -> dict:
    """The whole epoch, batch by batch."""
    plan, documents = _open(root)
    start, tokens = time.perf_counter(), 0
    for _, micro_batches in prefetched(plan, documents, 0, 1, 0):
        tokens += sum(batch.input_ids.numel() for batch in micro_batches)
    seconds = time.perf_counter() - start
    return {
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "rss_bytes": _peak_rss_bytes(),
    }


def _resume(root: Path, number: str) -> dict:
    """From nothing open to the first batches of a random step; the plan is the one the run has
    kept.
    """
    start = time.perf_counter()
    plan, documents = _open(root)
    first = int(rng("bench", "resume", number).integers(plan.num_steps))
    next(prefetched(plan, documents, 0, 8, first))
    return {"seconds": time.perf_counter() - start, "step": first}


def _mosaicml(root: Path) -> dict:
    # Image sets: they want torchvision.
    sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
    import streaming

    local = root / "mds"
    if not (local / "index.json").is_file():
        columns = {name: "ndarray:int32" for name in ("prompt", "cot", "answer")}
        with streaming.MDSWriter(out=str(local), columns=columns) as writer:
            store = ShardStore(root / "run" / "shards")
            for row in map(store.row, range(min(len(store), PEER_ROWS))):
                writer.write({"prompt": row.prompt, "cot": row.cot, "answer": row.answer})
    return _read(
        iter(streaming.StreamingDataset(local=str(local), shuffle=True, batch_size=1)),
        ("prompt", "cot", "answer"),
    )


def _datasets(root: Path) -> dict:
    import datasets

    files = sorted(map(str, (root / "run" / "shards").glob("*.arrow")))
    stream = datasets.load_dataset(
        "arrow", data_files=files, split="train", streaming=True
    ).with_format("numpy")
    return _read(
        iter(stream.shuffle(seed=0, buffer_size=1000)),
        ("prompt_tokens", "cot_tokens", "answer_tokens"),
    )


def _read(rows: Iterator[dict], columns: tuple[str, ...]) -> dict:
    """One int64 tensor a row. The first row is not timed: it fills the peer's buffers."""
    next(rows)
    start, tokens = time.perf_counter(), 0
    for count, row in enumerate(rows, 2):
        tokens += torch.from_numpy(
            np.concatenate([row[name] for name in columns]).astype(np.int64)
        ).numel()
        if count >= PEER_ROWS or time.perf_counter() - start > PEER_S:
            break
    seconds = time.perf_counter() - start
    return {
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "rss_bytes": _peak_rss_bytes(),
    }


def _peak_rss_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    reader, root, *rest = sys.argv[1:]
    found = {"ours": _ours, "resume": _resume, "mosaicml": _mosaicml, "datasets": _datasets}[
        reader
    ](Path(root), *rest)
    print(json.dumps(found))
