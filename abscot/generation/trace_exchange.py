"""Trace sets out of published trace files, and back: what was made elsewhere goes on here."""

import contextlib
import functools
import gzip
import json
import os
import reprlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from abscot.common.errors import MissingInput, UserError, shown
from abscot.common.files import is_done, sha256_file
from abscot.common.log import log
from abscot.common.paths import matching
from abscot.data.chat import ChatTokenizer
from abscot.generation.trace_jobs import TraceJob, statistics_of
from abscot.generation.trace_lines import Codes, Line, read_lines
from abscot.generation.trace_records import IMPORTED, SET_SCHEMA, ImportedFile, reason_of
from abscot.generation.trace_set import TraceSet, publish_set
from abscot.method.vocab import load_tokenizer

HINT = "; where the lines follow the rows of a data file, add --rows FILE"


def import_traces(job: TraceJob, pattern: str, rows_file: str | None = None) -> None:
    """Publishes the traces of the files that `pattern` names as the set of the job's training.

    rows_file: the JSONL file whose rows the lines follow, where they do not say theirs. A line that
    is not used is counted. Raises UserError for files and lines that cannot be read, for a row of
    the training without a usable trace, and where the training has traces already.
    """
    paths = _files(pattern, "--import")
    if is_done(job.final):
        raise UserError(f"{job.final}: there are traces already; delete it to import others")
    found = Found(job)
    files = [ImportedFile(file=str(p), sha256=sha256_file(p), traces=0) for p in paths]
    for line, row in _rows_of(job, paths, rows_file):
        found.take(line, row)
    counts = Counter(str(file) for file in found.used.values())
    log(f"traces {job.tag}: {len(found.used):,} of {found.lines:,} lines are used{found.text()}")
    found.check(pattern)
    columns = [job.rows, found.ids, [found.traces[row] for row in job.rows.tolist()]]
    table = pa.table(columns, schema=SET_SCHEMA)
    origin = ", ".join(path.name for path in paths[:3]) + ", .." * (len(paths) > 3)
    traces = TraceSet(table, len(job.store))
    stats = statistics_of(job, traces, f"imported from {origin!a}", {}, cut_prompts=0)
    files = [file.model_copy(update={"traces": counts[file.file]}) for file in files]
    publish_set(job.final, table, job.meta(IMPORTED, imported=files), stats)
    shutil.rmtree(job.parts, ignore_errors=True)


def _files(pattern: str, option: str) -> list[Path]:
    paths = [path for path in matching(pattern) if path.is_file()]
    if not paths:
        raise UserError(f"{option} {pattern}: no such file; expected JSONL, or a glob of it")
    return paths


def _rows_of(
    job: TraceJob, paths: list[Path], rows_file: str | None
) -> Iterator[tuple[Line, int | None]]:
    """(line of a trace, the row that it is of, None for a row that the training does not have)."""
    rows, lines = Rows(job), (line for path in paths for line in read_lines(path))
    if rows_file is None:
        yield from ((line, rows.of(line, HINT)) for line in lines)
        return
    places = [rows.of(line) for path in _files(rows_file, "--rows") for line in read_lines(path)]
    count = by_place = 0
    for count, line in enumerate(lines, 1):  # noqa: B007
        by_place += line.index is None
        at = count - 1 if line.index is None else line.index
        if at < len(places):
            yield line, places[at]
        elif line.index is not None:
            raise line.refuse("index", f"below {len(places)}, the rows of {shown(rows_file)}", at)
    if by_place and count != len(places):
        raise UserError(
            f"--rows {rows_file!a}: {len(places):,} rows for {count:,} lines of traces; expected "
            "the data file whose rows they follow, line by line"
        )


class Rows:
    """Which row of the training a line is of: by its id, else by its prompt."""

    def __init__(self, job: TraceJob):
        self.job, ids = job, job.store.ids()
        self.of_id = {ids[row]: row for row in job.rows.tolist()}
        self.known_ids = set(ids)

    def of(self, line: Line, hint: str = "") -> int | None:
        """None: of no row of the training. Raises UserError where the line does not say, or means
        several.
        """
        name = line.id
        if name in self.known_ids:
            return self.of_id.get(name)
        if line.prompt is not None:
            rows = self._of_prompt[self._tokens(line)]
            if len(rows) > 1:
                expected = f"the id of one of the {len(rows)} rows with this prompt"
                raise line.refuse("id", expected, name)
            return rows[0] if rows else None
        if name is None:
            raise UserError(
                f"{line.place}: id: expected the id or the prompt of its row, found "
                f"{line.keys()}{hint}"
            )
        return None

    def _tokens(self, line: Line) -> bytes | None:
        system = self.job.recipe.data.system_prompt
        turns = [{"role": "system", "content": system}] if system else []
        (tokens,) = self._chat.prompts([[*turns, {"role": "user", "content": line.prompt}]])
        return None if tokens is None else tokens.tobytes()

    @functools.cached_property
    def _chat(self) -> ChatTokenizer:
        recipe = self.job.recipe
        return ChatTokenizer(
            load_tokenizer(self.job.training.run.base, recipe.model.trust_remote_code)
        )

    @functools.cached_property
    def _of_prompt(self) -> dict[bytes | None, list[int]]:
        rows = defaultdict(list)
        for row in self.of_id.values():
            rows[self.job.store.row(row).prompt.tobytes()].append(row)
        return rows


@dataclass
class Found:
    """What the files hold for the rows of a training."""

    job: TraceJob
    lines: int = 0
    used: dict[int, Path] = field(default_factory=dict)  # row -> the file of its trace
    traces: dict[int, list[int]] = field(default_factory=dict)  # row -> codebook ids
    faults: Counter = field(default_factory=Counter)  # reason -> lines
    first: dict[str, str] = field(default_factory=dict)  # reason -> the first such line
    lengths: set[int] = field(default_factory=set)  # of all traces in codebook tokens
    seen: set[int] = field(default_factory=set)  # rows

    def __post_init__(self):
        self.codes, ids = Codes(self.job.vocab), self.job.store.ids()
        self.ids = [ids[row] for row in self.job.rows]

    def take(self, line: Line, row: int | None) -> None:
        """Counts the line, and keeps its trace if it is the only one of its row, and usable."""
        self.lines += 1
        trace = self.codes.codebook_ids(line)
        reason = "of other rows" if row is None else self._fault(trace)
        if row in self.seen:
            reason = "of a row that another line has"
            self.used.pop(row, None)  # which one is right is not for us to guess
        if row is not None:
            self.seen.add(row)
        if reason:
            self.faults[reason] += 1
            self.first.setdefault(reason, line.place)
        else:
            self.used[row], self.traces[row] = line.file, trace

    def _fault(self, trace: list[int] | None) -> str | None:
        rules = self.job.recipe.traces
        if trace is None:
            return "with tokens outside the codebook"
        self.lengths.add(len(trace))
        if not trace and not rules.allow_empty:
            return "with an empty trace"
        if len(trace) > rules.m_max:
            return f"longer than traces.m_max={rules.m_max}"
        return f"shorter than traces.m_min={rules.m_min}" if len(trace) < rules.m_min else None

    def text(self) -> str:
        return "".join(
            f", {n:,} {why} (first: {self.first[why]})" for why, n in self.faults.items()
        )

    def check(self, pattern: str) -> None:
        """Raises UserError where a row has no usable trace: a training reads one for each."""
        rows = self.job.rows.tolist()
        without = [i for row, i in zip(rows, self.ids, strict=True) if row not in self.used]
        if without:
            mend = f"expected one for each row{self.text()}"
            if any("traces.m_" in reason for reason in self.faults):
                rules = self.job.recipe.traces
                least, most = min(rules.m_min, *self.lengths), max(rules.m_max, *self.lengths)
                mend += f"; a run with traces.m_min={least} and traces.m_max={most} takes them"
            raise UserError(
                f"--import {pattern!a}: {len(without):,} of the {len(rows):,} rows of "
                f"{self.job.tag} have no usable trace, first {reprlib.repr(without[0])}: {mend}"
            )


def export_traces(job: TraceJob, target: Path) -> None:
    """Writes the training's traces to `target` (.jsonl, .gz, .zst), a line for each row in the
    order of the shards: id, trace (ids), tokens, length. It is there whole or not at all.

    Raises MissingInput without traces, UserError where the file exists or cannot be written.
    """
    training = job.training
    if not is_done(job.final):
        raise MissingInput(job.final)
    traces = TraceSet.load(job.final, job.store, training.round, training.phase.name, job.vocab)
    ids, codes = job.store.ids(), Codes(job.vocab)
    with _appears(target) as file:
        for row in traces.rows.tolist():
            trace = traces.trace(row).tolist()
            line = {
                "id": ids[row],
                "trace": trace,
                "tokens": codes.spelt(trace),
                "length": len(trace),
            }
            file.write(json.dumps(line).encode() + b"\n")


def _compressed(path: Path):
    if path.suffix == ".gz":  # pyarrow takes 18 times as long
        return gzip.open(path, "wb", compresslevel=4)
    return pa.output_stream(str(path), compression="detect")


@contextlib.contextmanager
def _appears(target: Path) -> Iterator[pa.NativeFile | gzip.GzipFile]:
    """A file to write to, compressed as its name says, that has its name when it is whole."""
    temp = target.parent / f".{os.getpid()}.partial.{target.name}"
    try:
        if target.exists():
            raise UserError(f"--export {target}: there already; give another name")
        with _compressed(temp) as file:
            yield file
        with open(temp, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temp, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({reason_of(error)})") from None
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
