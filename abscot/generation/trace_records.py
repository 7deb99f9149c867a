"""The files of a trace set, typed: what is read back is what was written, or is refused by name."""

import hashlib
import itertools
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import NonNegativeFloat, NonNegativeInt

from abscot.common.errors import UserError
from abscot.common.record import Record
from abscot.method.phases import round_and_phase

VERSION = 2  # of the files below: a set that is begun with another version is made again
OLDEST = 1  # that is read all the same once it is published: its chunks were cut by rows
TRACES, STATS, JOB = "traces.arrow", "stats.json", "job.json"
IMPORTED = "imported"  # model_fingerprint of traces that were made elsewhere
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("sample", pa.int16()),
        ("trace", pa.list_(pa.int32())),
    ]
)
SET_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("sample"))
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


def mend(directory: Path, damaged: Path | None = None) -> str:
    """What makes the trace set at `directory`, or its chunks at `damaged`, anew."""
    round_, phase = round_and_phase(directory.name)
    config = directory.parent.parent / "config.yaml"
    return (
        f"delete {damaged or directory} and run: python launch/traces.py --recipe {config} "
        f"--round {round_} --phase {phase}"
    )


class Sampling(Record):
    """How the traces of a set were drawn. chunk_rows: of version 1, which has no chunk_tokens."""

    seed: int
    chunk_tokens: int | None = None
    chunk_rows: int | None = None
    source: str
    best_of: int
    random: str
    temperature: float
    top_p: float
    probe_prompts: int
    probe_samples: int


class ImportedFile(Record):
    """A file of traces that were made elsewhere."""

    file: str
    sha256: str
    traces: NonNegativeInt


class SetMeta(Record):
    """What a set of traces must agree on to be one set: job.json beside its chunks, then DONE.

    sampled: None for imported traces, which have `imported`. rows: how many; rows_sha256: which.
    """

    version: Annotated[int, pydantic.Field(ge=OLDEST, le=VERSION)]
    round: int
    phase: str
    model_fingerprint: str
    store: str
    rows: NonNegativeInt
    rows_sha256: str
    codebook_size: int
    m_min: NonNegativeInt
    m_max: NonNegativeInt
    sampled: Sampling | None = None
    imported: list[ImportedFile] | None = None

    def differences(self, other: "SetMeta") -> list[str]:
        """The keys in which the two differ; those of `sampled` by their own names."""
        mine, theirs = self._flat(), other._flat()
        return [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]

    def _flat(self) -> dict:
        return {**self.model_dump(exclude={"sampled"}), **dict(self.sampled or {})}


def rows_sha256(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


class Choices(Record):
    """Rows whose trace is the best of several candidates by log p(answer | prompt, trace) in nats,
    in sums over the rows. not_first: rows whose best candidate is another one than the first.
    """

    rows: NonNegativeInt = 0
    distinct_candidates: NonNegativeInt = 0
    first_log_p: float = 0.0
    best_log_p: float = 0.0
    not_first: NonNegativeInt = 0

    def __add__(self, other: "Choices") -> "Choices":
        return Choices(**{key: value + getattr(other, key) for key, value in self})

    def statistics(self) -> dict:
        """Of TraceStats; {} where nothing was chosen."""
        if not self.rows:
            return {}
        return {
            "distinct_candidates_mean": self.distinct_candidates / self.rows,
            "first_log_p_mean": self.first_log_p / self.rows,
            "best_log_p_mean": self.best_log_p / self.rows,
            "best_not_first_share": self.not_first / self.rows,
        }


class GroundedCounts(Record):
    """Of grounded traces: the steps of their CoTs, and how often each code is used.

    cut_rows: rows of more steps than states, whose steps are coded in runs; filled_rows: of so few
    steps that each has more codes than asked for; rows_without_steps: have one code or more all the
    same; blank_steps: lines without a letter or digit, not counted as steps. code_counts: [levels]
    [codes].
    """

    steps: NonNegativeInt
    blank_steps: NonNegativeInt
    cut_rows: NonNegativeInt
    filled_rows: NonNegativeInt
    rows_without_steps: NonNegativeInt
    code_counts: list[list[NonNegativeInt]]

    def __add__(self, other: "GroundedCounts") -> "GroundedCounts":
        mine, theirs = self.model_dump(), other.model_dump()
        levels = itertools.zip_longest(
            mine.pop("code_counts"), theirs.pop("code_counts"), fillvalue=[]
        )
        counts = [
            [a + b for a, b in itertools.zip_longest(*level, fillvalue=0)] for level in levels
        ]
        return GroundedCounts(code_counts=counts, **{k: v + theirs[k] for k, v in mine.items()})

    @property
    def dead_codes(self) -> list[int]:
        """On each level, the codes that no state has."""
        return [counts.count(0) for counts in self.code_counts]

    @property
    def top_code_shares(self) -> list[float]:
        """On each level, the share of the code that most states have."""
        return [max(counts) / max(sum(counts), 1) for counts in self.code_counts]


class ChunkMeta(Record):
    """Of one chunk file: how long it took, prompts that were cut to fit the window, what was chosen
    where the best of several candidates is kept, and what grounded traces count.
    """

    seconds: NonNegativeFloat
    cut_prompts: NonNegativeInt
    choices: Choices = Choices()
    grounded: GroundedCounts | None = None


class TraceStats(Record):
    """stats.json: where the traces are from, how long they took, and whether they collapse
    (collapse.py). None: does not apply.
    """

    source: str
    generation_s: NonNegativeFloat | None = None
    traces_per_s: NonNegativeFloat | None = None
    cut_prompts: NonNegativeInt
    best_of: NonNegativeInt | None = None
    distinct_candidates_mean: NonNegativeFloat | None = None
    first_log_p_mean: float | None = None
    best_log_p_mean: float | None = None
    best_not_first_share: Share | None = None
    empty_traces: NonNegativeInt
    traces: NonNegativeInt
    length_mean: NonNegativeFloat | None = None
    length_std: NonNegativeFloat | None = None
    length_min: NonNegativeInt | None = None
    length_p10: NonNegativeFloat | None = None
    length_p50: NonNegativeFloat | None = None
    length_p90: NonNegativeFloat | None = None
    length_max: NonNegativeInt | None = None
    most_common_length: NonNegativeInt | None = None
    most_common_length_share: Share | None = None
    forced_end_share: Share | None = None
    length_histogram: list[NonNegativeInt] | None = None
    tokens: NonNegativeInt
    tokens_used: NonNegativeInt | None = None
    top_token_share: Share | None = None
    unigram_entropy_bits: float | None = None
    entropy_given_position_bits: float | None = None
    zipf_exponent: float | None = None
    zipf_r2: float | None = None
    token_counts: list[NonNegativeInt] | None = None
    unique_share: Share
    edit_distance_mean: Share
    probed_prompts: NonNegativeInt
    same_prompt_similarity: float | None = None
    other_prompt_similarity: float | None = None
    prompt_similarity_gain: float | None = None
    prompt_similarity_gain_se: float | None = None
    grounded: GroundedCounts | None = None
    warnings: list[str]

    @pydantic.model_validator(mode="after")
    def _adds_up(self):
        for histogram, total in (
            (self.length_histogram, self.traces),
            (self.token_counts, self.tokens),
        ):
            if sum(histogram or []) != total:
                raise ValueError("a histogram does not add up to its total")
        return self


def reason_of(error: Exception) -> str:
    """Why a file cannot be read or written, in one line; pyarrow repeats the file's name."""
    if number := getattr(error, "errno", None):
        return os.strerror(number)
    return ascii(" ".join(str(error).split()))[1:-1][:200]


def read_table(path: Path, schema: pa.Schema, mend: str) -> pa.Table:
    """The Arrow table at `path`, memory-mapped. Raises UserError where it is not one of `schema`,
    is cut, or has missing values.
    """
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            if not reader.schema.equals(schema):
                columns = ", ".join(f"{f.name} {f.type}" for f in reader.schema)
                expected = ", ".join(f"{f.name} {f.type}" for f in schema)
                raise UserError(f"{path}: columns {columns!a}, expected {expected}; {mend}")
            table = reader.read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        reason = f"not the Arrow file that was written ({reason_of(error)})"
        raise UserError(f"{path}: {reason}; {mend}") from None
    for column in table.columns:
        values = pa.chunked_array([c.flatten() for c in column.chunks]) if _nested(column) else None
        if column.null_count or (values is not None and values.null_count):
            raise UserError(f"{path}: missing values; {mend}")
    return table


def _nested(column: pa.ChunkedArray) -> bool:
    return bool(column.num_chunks) and pa.types.is_list(column.type)
