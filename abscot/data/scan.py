"""Scan: each input unit is read by one rank, every row parsed and filtered; noted are row, key and
size of those that may be used.
"""

import io
from array import array

import numpy as np

from abscot.common.log import Progress
from abscot.data import sources
from abscot.data.decontaminate import Decontaminator
from abscot.data.formats import ADAPTERS, draw_key, read_example
from abscot.data.mpi import Ranks
from abscot.data.prepare_job import (
    Job,
    RejectedRow,
    UnitNote,
    checksums,
    finished,
    new_file,
    writing,
)
from abscot.data.rejected import Rejected


def scan(job: Job, decontaminator: Decontaminator, ranks: Ranks) -> None:
    units = range(len(job.units))
    todo = ranks.everyone(
        [
            unit
            for unit in units[ranks.rank :: ranks.size]
            if not finished(UnitNote, job.file("unit", unit, "json"))
        ]
    )
    todo = sorted(unit for part in todo for unit in part)
    progress = Progress(len(units), "pieces", "scan", len(units) - len(todo))
    with ranks.stage(progress) as report, writing(job.work):
        for unit in todo[ranks.rank :: ranks.size]:
            _scan_unit(job, unit, decontaminator, report)


def _scan_unit(job: Job, number: int, decontaminator: Decontaminator, report) -> None:
    unit, data = job.units[number], job.recipe.data
    found, lines = array("q"), 0
    with new_file(job.file("unit", number, "jsonl"), "w") as rejected:
        for row, record in sources.read(unit, data, ADAPTERS[data.format].columns):
            report(0, rows=1)
            lines = row + 1
            if record is None:
                continue
            try:
                example = read_example(record, data, decontaminator)
                found.extend((row, draw_key(job.recipe.seed, example.id), example.chars))
            except Rejected as error:
                RejectedRow.of(number, row, error).write(rejected)
    with new_file(job.file("unit", number, "npy"), "wb") as file:
        buffer = io.BytesIO()  # into a file numpy would write without saying why it cannot
        np.save(buffer, np.array(found, np.int64).reshape(-1, 3))
        file.write(buffer.getbuffer())
    note = job.file("unit", number, "json")
    UnitNote(sha256=checksums(note, "npy", "jsonl"), lines=lines).write(note)
    report(1)
