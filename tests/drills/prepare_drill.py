"""600,000 rows prepared by 1, 2 and 4 MPI ranks, and by 2 that are killed again and again: one
hash. A third of the rows is drawn, and the longer half of all passed over, in several passes.

  python tests/drills/prepare_drill.py [--rows 600000] [--kills 20] [--dir DIR] [--tokenizer DIR]

Ends with one line of JSON: rows, counts, rows_per_s of each number of ranks, hashes, kills,
same_hash.
"""

import argparse
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # a script: the kit lies beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from abscot.common import files
from abscot.common.draws import rng
from abscot.common.log import Progress
from abscot.data.prepare_job import read_rejected
from abscot.data.shards import ShardStore
from abscot.method.vocab import extend_tokenizer
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, claim
from kit.tiny_run import tiny_tokenizer

FILES, SOURCES = 8, ("math", "code", "chat")
WORDS = (
    "we have three boxes of seven and two more\nso that makes twenty three\nthen one is lost\n"
).split(" ")
KILL_AFTER = (0.05, 0.5)  # of the time that an undisturbed run takes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--capacity-tokens", type=int, default=560, help="of a bin")
    parser.add_argument(
        "--dir", type=Path, help="keep the runs here (default: a temporary directory)"
    )
    parser.add_argument("--tokenizer", type=Path, help="a Hugging Face tokenizer (default: bytes)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.dir or Path(temporary)
        write_rows(root, args.rows, args.seed)
        tokenizer = load_tokenizer(args.tokenizer)
        hashes, rates = {}, {}
        for ranks in (1, 2, 4):
            run = begin(root, f"ranks{ranks}", tokenizer, args)
            began_s = time.monotonic()
            if start(run, ranks).wait():
                sys.exit(f"prepare failed with {ranks} ranks")
            seconds = time.monotonic() - began_s
            hashes[f"ranks{ranks}"], rates[ranks] = (
                ShardStore(run.shards).hash,
                round(args.rows / seconds),
            )
        undisturbed_s = args.rows / rates[2]
        run = begin(root, "killed", tokenizer, args)
        kills = kill_often(run, args.kills, undisturbed_s, rng("prepare drill", args.seed))
        store = ShardStore(run.shards)
        store.verify()
        hashes["killed"] = store.hash
        rejected = read_rejected(run.shards / "rejected.jsonl")
        counts = {"kept": len(store), **Counter(line.reason for line in rejected)}
    result = {
        "rows": args.rows,
        "counts": counts,
        "rows_per_s": rates,
        "hashes": hashes,
        "kills": kills,
    }
    print(json.dumps({**result, "same_hash": len(set(hashes.values())) == 1}))


def load_tokenizer(directory: Path | None):
    if directory is None:
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    extend_tokenizer(tokenizer)
    return tokenizer


def write_rows(root: Path, rows: int, seed: int) -> None:
    """rows_N.jsonl.gz, shaped like Dolci-Think-SFT; every hundredth row has no CoT, every fiftieth
    id comes twice.
    """
    root.mkdir(parents=True, exist_ok=True)
    draw = rng("prepare drill rows", seed)
    text = " ".join(WORDS[i] for i in draw.integers(len(WORDS), size=200_000))
    starts, lengths = draw.integers(len(text) - 2000, size=rows), draw.integers(250, 600, rows)
    with Progress(rows, "rows", "write") as progress:
        for part in range(FILES):
            with gzip.open(root / f"rows_{part}.jsonl.gz", "wt", compresslevel=1) as file:
                for i in range(part, rows, FILES):
                    cot = "" if i % 100 == 7 else text[starts[i] : starts[i] + lengths[i]]
                    file.write(json.dumps(row(i - FILES if i % 50 == 49 else i, cot)) + "\n")
                    progress.update(1)


def row(number: int, cot: str) -> dict:
    answer = f"<think>\n{cot}\n</think>\n\n\\boxed{{{number}}}"
    turns = [
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": answer},
    ]
    return {
        "id": f"row-{number}",
        "messages": turns,
        "dataset_source": SOURCES[number % len(SOURCES)],
    }


def begin(root: Path, name: str, tokenizer, args: argparse.Namespace) -> Run:
    keys = {
        "run_root": root,
        "name": name,
        "codebook_size": 64,
        "data.source": root / "rows_*.jsonl.gz",
        "data.decontaminate": "false",
        "data.rows": args.rows // 3,
        "train.capacity_tokens": args.capacity_tokens,
    }
    recipe = load_recipe(None, [f"{key}={value}" for key, value in keys.items()])
    run = claim(recipe)
    if not files.is_done(run.base):
        with files.publish(run.base) as base:
            tokenizer.save_pretrained(base)
    return run


def start(run: Run, ranks: int) -> subprocess.Popen:
    """launch/prepare.py as a user starts it, in a session of its own."""
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "--oversubscribe", "-n", str(ranks)]
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), "--recipe", str(run.config)]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environ = {**os.environ, **root}
    return subprocess.Popen(
        [*(mpiexec if ranks > 1 else []), *command], env=environ, start_new_session=True
    )


def kill_often(run: Run, kills: int, undisturbed_s: float, draw) -> int:
    """SIGKILL to mpiexec and all ranks at random moments, then one run to the end. Returns the
    kills that hit.
    """
    hit = 0
    while hit < kills and not files.is_done(run.shards):
        process = start(run, ranks=2)
        try:
            process.wait(timeout=undisturbed_s * draw.uniform(*KILL_AFTER) * min(1, 5 / kills))
        except subprocess.TimeoutExpired:
            hit += 1
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)  # for the ranks, which die with their group
    if start(run, ranks=2).wait():
        sys.exit("the run after the kills failed")
    return hit


if __name__ == "__main__":
    main()
