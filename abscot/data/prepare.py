"""Raw rows -> the shard store: scan, draw, tokenise, publish; by one process or many MPI ranks;
what a kill leaves is gone on with.

    scan       each input unit by one rank: parse and filter every row, note key and size of those
               that pass
    draw       rank 0: duplicates out, the smallest keys in, cut into shards
    tokenise   each shard by one rank; draw and tokenise again until `data.rows` rows fit
    publish    rank 0: the drawn rows, manifest, rejected.jsonl, checksums, rename to shards/

Units and shards depend on the input alone, so every number of ranks writes the same bytes. A
finished unit or shard is kept under shards.work/ and not made again. The rows of a pass of draw and
tokenise come in the order of the input.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, astuple, replace
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.files import is_done, seal, write_json_atomic
from abscot.common.log import log
from abscot.data import sources
from abscot.data.chat import ChatTokenizer
from abscot.data.decontaminate import Decontaminator
from abscot.data.draw import Drawing
from abscot.data.mpi import Ranks
from abscot.data.prepare_job import Job, new_file, place, rejected_lines, writing
from abscot.data.scan import scan
from abscot.data.shards import (
    ShardStore,
    manifest_of,
    template_hash,
    tokenizer_fingerprint,
)
from abscot.data.sources import Unit
from abscot.data.tokenise_shards import changed, collect, tokenise_shards
from abscot.method.sequence import limit_tokens
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


def prepare(
    recipe: Recipe, run: Run, tokenizer, problems: Iterable[str], ranks: Ranks
) -> ShardStore:
    """Makes run.shards of the recipe's data with the (extended) tokenizer and returns it, on every
    rank.

    problems: texts of the evaluation problems to keep out. Raises UserError, on every rank, for a
    mistake in the input or a disk that is full; what is finished stays and the same call goes on
    from there.
    """
    if recipe.data.source == "world":
        recipe = replace(recipe, data=replace(recipe.data, source=str(run.world / "rows.jsonl")))
    ranks.first(
        lambda: log(f"prepare: {ranks.size} ranks" if ranks.size > 1 else "prepare: one process")
    )
    if not ranks.first(lambda: is_done(run.shards)):
        job = ranks.first(lambda: _begin(recipe, run, tokenizer, sorted(set(problems))))
        scan(job, Decontaminator(problems, recipe.data.max_overlap), ranks)
        chat, drawing = ChatTokenizer(tokenizer), Drawing(job)
        while made := ranks.first(drawing.next_pass):
            tokenise_shards(job, made, chat, ranks)
        ranks.first(lambda: _publish(job, drawing, run, chat))
    store = ShardStore(run.shards)
    ranks.first(lambda: store.check_tokenizer(tokenizer))
    return store


def _begin(recipe: Recipe, run: Run, tokenizer, problems: list[str]) -> Job:
    """Goes on with the work that is there, or starts anew where it was made with other settings or
    input.
    """
    units = sources.find(recipe.data)
    settings = {
        "data": asdict(recipe.data),
        "seed": recipe.seed,
        "limit_tokens": limit_tokens(recipe),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template": template_hash(tokenizer),
        "problems": hashlib.sha256("\x1f".join(problems).encode()).hexdigest()[:16],
        "units": [[*astuple(unit), *_stamp(unit)] for unit in units],
    }
    job = Job(recipe, run.shards.with_name("shards.work"), units, settings)
    note = job.work / "job.json"
    with writing(job.work):
        if job.work.exists() and _settings(note) != settings:
            log(f"{job.work}: made with other settings or input; starting again")
            shutil.rmtree(job.work)
        for kind in ("unit", "shard"):
            job.file(kind, 0, "json").parent.mkdir(parents=True, exist_ok=True)
        for unfinished in [*job.work.rglob(".*.partial"), *job.work.rglob(".*.tmp")]:
            unfinished.unlink()
        write_json_atomic(note, settings)
    return job


def _settings(note: Path):
    """None where they cannot be told."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _stamp(unit: Unit) -> list[int]:
    if unit.kind == "hub":
        return []
    status = os.stat(unit.file)
    return [status.st_size, status.st_mtime_ns]


def _publish(job: Job, drawing: Drawing, run: Run, chat: ChatTokenizer) -> None:
    for unit, before in zip(job.units, job.settings["units"], strict=True):
        if [*astuple(unit), *_stamp(unit)] != before:
            raise UserError(changed(place(unit)))
    reasons = Counter()
    with writing(job.work):
        entries, by_source, truncated = collect(job, drawing)
        with new_file(job.store / "rejected.jsonl", "w") as file:
            for line in rejected_lines(job, drawing.rejected()):
                reasons[line.reason] += 1
                file.write(line.model_dump_json(exclude_none=True) + "\n")
        counts = {
            "read": by_source.total() + reasons.total(),
            "kept": by_source.total(),
            "truncated": truncated,
            "rejected": dict(sorted(reasons.items())),
            "sources": dict(sorted(by_source.items())),
        }
        manifest = manifest_of(job.store, entries, counts, chat)
        write_json_atomic(job.store / "manifest.json", manifest)
        seal(job.store, {"hash": manifest["hash"], "settings": job.settings})
        if run.shards.exists():
            shutil.rmtree(run.shards)
        job.store.replace(run.shards)
        shutil.rmtree(job.work)
