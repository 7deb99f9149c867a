"""Raw rows -> the shard store: scan, draw, tokenise, publish; by one process or many MPI ranks,
resumable.

    scan       each input unit by one rank: parse and filter every row, note key and size of those
               that pass
    draw       rank 0: duplicates out, the `data.rows` smallest keys in, cut into shards
    tokenise   each shard by one rank
    publish    rank 0: manifest, rejected.jsonl, checksums, rename to shards/

Units and shards depend on the input alone, so every number of ranks writes the same bytes. A
finished unit or shard is kept under shards.work/ and not made again. Rows come in the order of the
input.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np

from abscot.common.errors import UserError
from abscot.common.files import is_done, seal, sha256_file, write_json_atomic
from abscot.common.log import Progress, log
from abscot.data import sources
from abscot.data.chat import ChatTokenizer
from abscot.data.decontaminate import Decontaminator
from abscot.data.formats import ADAPTERS, Example, draw_key, read_example
from abscot.data.mpi import Ranks
from abscot.data.rows import fit, tokenise
from abscot.data.shards import (
    ShardStore,
    ShardWriter,
    manifest_of,
    template_hash,
    tokenizer_fingerprint,
)
from abscot.data.sources import Rejected, Unit
from abscot.method.sequence import limit_tokens
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

BATCH_CHARS = 4_000_000  # of text tokenised together: bounds the memory of a rank


@dataclass(frozen=True)
class Job:
    """What every rank knows. `settings` decide the result; work under other settings is not
    continued.
    """

    recipe: Recipe
    work: Path
    units: list[Unit]
    settings: dict

    @property
    def store(self) -> Path:
        return self.work / "shards"

    def unit_file(self, unit: int, suffix: str) -> Path:
        return self.work / "scan" / f"unit_{unit:05d}.{suffix}"

    def shard_file(self, shard: int, suffix: str) -> Path:
        return (
            self.store if suffix == "arrow" else self.work / "tokenised"
        ) / f"shard_{shard:05d}.{suffix}"


@dataclass(frozen=True)
class Draw:
    """The rows to tokenise, in the order of the input (np.int64); shard s is [starts[s], starts[s +
    1]).
    """

    unit: np.ndarray
    row: np.ndarray  # inside the unit
    chars: np.ndarray
    starts: np.ndarray

    @property
    def shards(self) -> range:
        return range(len(self.starts) - 1)

    def rows_of(self, shard: int) -> int:
        return int(self.starts[shard + 1] - self.starts[shard])

    def chars_of(self, shard: int) -> int:
        return int(self.chars[self.starts[shard] : self.starts[shard + 1]].sum())


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
        _scan(job, Decontaminator(problems, recipe.data.max_overlap), ranks)
        draw = ranks.first(lambda: _draw(job))
        chat = ChatTokenizer(tokenizer)
        _tokenise(job, draw, chat, ranks)
        ranks.first(lambda: _publish(job, draw, run, chat))
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
    if job.work.exists() and (not note.is_file() or json.loads(note.read_text()) != settings):
        log(f"{job.work}: made with other settings or input; starting again")
        shutil.rmtree(job.work)
    with _writing(job.work):
        for folder in (job.store, job.work / "scan", job.work / "tokenised"):
            folder.mkdir(parents=True, exist_ok=True)
        for unfinished in [*job.work.rglob(".*.partial"), *job.work.rglob(".*.tmp")]:
            unfinished.unlink()
        write_json_atomic(note, settings)
    return job


def _stamp(unit: Unit) -> list[int]:
    if unit.kind == "hub":
        return []
    status = os.stat(unit.file)
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def _writing(work: Path):
    """A disk that is full or read-only, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or work}: cannot be written ({error.strerror or error}); what is "
            "finished is"
            " kept: make room and run the same command"
        ) from error


@contextlib.contextmanager
def _file(path: Path, mode: str):
    """A file that appears under its name when it is complete, or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# Scan


def _scan(job: Job, decontaminator: Decontaminator, ranks: Ranks) -> None:
    todo = ranks.first(
        lambda: [u for u in range(len(job.units)) if not job.unit_file(u, "npz").is_file()]
    )
    done = len(job.units) - len(todo)
    with (
        ranks.stage(Progress(len(job.units), "pieces", "scan", done)) as report,
        _writing(job.work),
    ):
        for unit in todo[ranks.rank :: ranks.size]:
            _scan_unit(job, unit, decontaminator, report)


def _scan_unit(job: Job, number: int, decontaminator: Decontaminator, report) -> None:
    """unit_N.npz: row, key, characters of each row that may be used, lines read; unit_N.jsonl: the
    others.
    """
    unit, data = job.units[number], job.recipe.data
    found, lines = [], 0
    with _file(job.unit_file(number, "jsonl"), "w") as rejected:
        for row, record in sources.read(unit, data, ADAPTERS[data.format].columns):
            report(0, rows=1)
            lines = row + 1
            if record is None:
                continue
            try:
                example = read_example(record, data, decontaminator)
                found.append((row, draw_key(job.recipe.seed, example.id), example.chars))
            except Rejected as error:
                _write_rejected(rejected, number, row, error.reason, error.detail)
    with _file(job.unit_file(number, "npz"), "wb") as file:
        np.savez(file, found=np.array(found, np.int64).reshape(-1, 3), lines=np.int64(lines))
    report(1)


def _write_rejected(file, unit: int, row: int, reason: str, detail: str = "") -> None:
    file.write(json.dumps({"unit": unit, "row": row, "reason": reason, "detail": detail}) + "\n")


# Draw


def _draw(job: Job) -> Draw:
    """The first row of each id, of these the data.rows smallest keys; drawn.jsonl: the others."""
    found = [_scanned(job, u)["found"] for u in range(len(job.units))]
    unit = np.repeat(np.arange(len(found)), [len(f) for f in found])
    row, keys, chars = np.concatenate(found).T
    _, first = np.unique(keys, return_index=True)  # by increasing key
    drawn = first[: job.recipe.data.rows]
    with _writing(job.work), _file(job.work / "drawn.jsonl", "w") as rejected:
        unused = np.full(len(keys), "duplicate_id", object)
        unused[first], unused[drawn] = "not_drawn", ""
        for i in np.flatnonzero(unused):
            _write_rejected(rejected, int(unit[i]), int(row[i]), unused[i])
    if not len(drawn):
        raise UserError(_nothing_left(job))
    drawn = np.sort(drawn)
    log(f"draw: {len(drawn):,} of {len(keys):,} rows that may be used")
    starts = _cut(chars[drawn], job.recipe.data.shard_rows, job.recipe.data.shard_chars)
    return Draw(unit[drawn], row[drawn], chars[drawn], starts)


def _scanned(job: Job, unit: int) -> dict[str, np.ndarray]:
    with np.load(job.unit_file(unit, "npz")) as file:
        return dict(file)


def _cut(chars: np.ndarray, max_rows: int, max_chars: int) -> np.ndarray:
    """Where shards start, and the end: closed at max_rows rows, or when one more would pass
    max_chars.
    """
    starts, size = [0], 0
    for i, n in enumerate(chars.tolist()):
        if i > starts[-1] and (i - starts[-1] == max_rows or size + n > max_chars):
            starts.append(i)
            size = 0
        size += n
    return np.array([*starts, len(chars)])


def _nothing_left(job: Job) -> str:
    reasons, first = Counter(), None
    for line in _rejected_lines(job, shards=0):
        reasons[line["reason"]] += 1
        first = first or line
    counts = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    where = (
        f"; first: {first['file']}:{first['line']}: {first['reason']} {first['detail']}"
        if first
        else ""
    )
    return (
        f"data.source: {job.recipe.data.source}: no row is left with "
        f"data.format={job.recipe.data.format}"
        f" ({counts or 'no rows'}){where}"
    )


# Tokenise


def _tokenise(job: Job, draw: Draw, chat: ChatTokenizer, ranks: Ranks) -> None:
    checked = ranks.everyone(
        [s for s in draw.shards[ranks.rank :: ranks.size] if not _is_whole(job, s)]
    )
    todo = sorted(s for part in checked for s in part)
    done = len(draw.row) - sum(map(draw.rows_of, todo))
    mine = _share(todo, [draw.chars_of(s) for s in todo], ranks)
    with (
        ranks.stage(Progress(len(draw.row), "rows", "tokenise", done)) as report,
        _writing(job.work),
    ):
        stream = _examples(job, draw, mine)
        for shard in mine:
            _tokenise_shard(job, shard, itertools.islice(stream, draw.rows_of(shard)), chat, report)


def _is_whole(job: Job, shard: int) -> bool:
    """Is the shard there from an earlier run, with the checksum it was written with?"""
    note, file = job.shard_file(shard, "json"), job.shard_file(shard, "arrow")
    if not note.is_file() or not file.is_file():
        return False
    if sha256_file(file) == json.loads(note.read_text())["entry"]["sha256"]:
        return True
    print(f"{file}: checksum is wrong; making it again", flush=True)
    return False


def _share(todo: list[int], chars: list[int], ranks: Ranks) -> list[int]:
    """This rank's neighbouring shards, about as many characters as the others': it never reads
    back.
    """
    middle = np.cumsum(chars) - np.array(chars) / 2
    owner = (middle * ranks.size / max(sum(chars), 1)).astype(int)
    return [s for s, rank in zip(todo, owner, strict=True) if rank == ranks.rank]


def _examples(job: Job, draw: Draw, shards: list[int]) -> Iterator[tuple[int, int, Example]]:
    """(unit, row, example) of the shards' drawn rows, in order; each unit is read once."""
    data = job.recipe.data
    picked = np.concatenate(
        [np.arange(draw.starts[s], draw.starts[s + 1]) for s in shards] or [np.zeros(0, int)]
    )
    nothing = Decontaminator([], data.max_overlap)  # these rows have passed
    for number in np.unique(draw.unit[picked]).tolist():
        unit, wanted = job.units[number], draw.row[picked[draw.unit[picked] == number]]
        count = 0
        try:
            for row, record in sources.read(unit, data, ADAPTERS[data.format].columns, wanted):
                yield number, row, read_example(record, data, nothing)
                count += 1
        except Rejected:
            count = -1
        if count != len(wanted):
            raise UserError(
                f"{place(unit)}: changed while it was being read; run the same command again"
            )


def _tokenise_shard(job: Job, shard: int, examples, chat: ChatTokenizer, report) -> None:
    """shard_N.arrow, then its note: manifest entry and counts; shard_N.jsonl: rows that are too
    long.
    """
    limit, policy = job.settings["limit_tokens"], job.recipe.data.long_rows
    by_source, truncated = Counter(), 0
    writer = ShardWriter(job.shard_file(shard, "arrow"))
    with _file(job.shard_file(shard, "jsonl"), "w") as rejected:
        for batch in _batches(examples):
            tokenised = tokenise([example for _, _, example in batch], chat)
            for (unit, row, example), whole in zip(batch, tokenised, strict=True):
                try:
                    fitted = fit(whole, limit, policy)
                except Rejected as error:
                    _write_rejected(rejected, unit, row, error.reason, error.detail)
                    continue
                writer.add(fitted)
                by_source[example.source] += 1
                truncated += len(fitted.cot) < len(whole.cot)
            report(len(batch))
    note = {"entry": writer.close(), "sources": by_source, "truncated": truncated}
    write_json_atomic(job.shard_file(shard, "json"), note)


def _batches(examples) -> Iterator[list]:
    batch, chars = [], 0
    for item in examples:
        batch.append(item)
        chars += item[2].chars
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


# Publish


def _publish(job: Job, draw: Draw, run: Run, chat: ChatTokenizer) -> None:
    notes = [json.loads(job.shard_file(s, "json").read_text()) for s in draw.shards]
    reasons = Counter()
    with _writing(job.work):
        with _file(job.store / "rejected.jsonl", "w") as file:
            for line in _rejected_lines(job, len(draw.shards)):
                reasons[line["reason"]] += 1
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        by_source = sum((Counter(note["sources"]) for note in notes), Counter())
        counts = {
            "read": by_source.total() + reasons.total(),
            "kept": by_source.total(),
            "truncated": sum(note["truncated"] for note in notes),
            "rejected": dict(sorted(reasons.items())),
            "sources": dict(sorted(by_source.items())),
        }
        manifest = manifest_of(job.store, [note["entry"] for note in notes], counts, chat)
        write_json_atomic(job.store / "manifest.json", manifest)
        seal(job.store, {"hash": manifest["hash"], "settings": job.settings})
        if run.shards.exists():
            shutil.rmtree(run.shards)
        job.store.replace(run.shards)
        shutil.rmtree(job.work)


def _rejected_lines(job: Job, shards: int) -> Iterator[dict]:
    """Every row that is not used: file, line (from 1; rows of a table likewise), reason, detail."""
    first_line, seen = [], Counter()
    for number, unit in enumerate(job.units):
        first_line.append(1 + seen[place(unit)])
        seen[place(unit)] += int(_scanned(job, number)["lines"])
    files = [job.unit_file(u, "jsonl") for u in range(len(job.units))]
    for path in [
        *files,
        job.work / "drawn.jsonl",
        *(job.shard_file(s, "jsonl") for s in range(shards)),
    ]:
        with open(path) as file:
            for line in map(json.loads, file):
                unit = line.pop("unit")
                yield {
                    "file": place(job.units[unit]),
                    "line": first_line[unit] + line.pop("row"),
                    **line,
                }


def place(unit: Unit) -> str:
    return f"{unit.file} part {unit.start}" if unit.kind == "hub" else unit.file
