"""The tokenised shard store: Arrow files behind a memory map, and the manifest that vouches for
them.
"""

import hashlib
import json
import mmap
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from abscot.common import files
from abscot.common.errors import DamagedInput, UserError, shown
from abscot.data.chat import ChatTokenizer
from abscot.data.manifest import SCHEMA_VERSION, Manifest, ShardEntry, hash_of
from abscot.data.rows import Row
from abscot.method.sequence import Marks
from abscot.method.vocab import AbstractVocab

BATCH_ROWS = 256  # rows of every record batch but a shard's last: row i is found by arithmetic
RESIDENT_BYTES = 256 * 2**20  # of tokens read until the mapped pages are given back
TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt_tokens": TOKENS,
        "cot_tokens": TOKENS,
        "cot_step_tokens": TOKENS,
        "answer_tokens": TOKENS,
        "source": pa.string(),
    }
)
LENGTH_COLUMNS = {"prompt": "prompt_tokens", "cot": "cot_tokens", "answer": "answer_tokens"}
REMAKE = "delete {} and make it again with launch/prepare.py"
PERCENTILES = (0, 10, 25, 50, 75, 90, 99, 100)


class ShardWriter:
    """Writes one shard in record batches of BATCH_ROWS rows, so that only one batch is in memory.

    The file appears under its name when it is complete, or not at all.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = 0
        # A killed job's orphan has its own.
        self._temp = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._pending: list[Row] = []
        self._file = open(self._temp, "wb")  # noqa: SIM115  closed by close()
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def add(self, row: Row) -> None:
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        rows, self._pending = self._pending, []
        columns = {
            "id": pa.array(row.id for row in rows),
            "prompt_tokens": _list_array([row.prompt for row in rows]),
            "cot_tokens": _list_array([row.cot for row in rows]),
            "cot_step_tokens": _list_array([row.cot_steps for row in rows]),
            "answer_tokens": _list_array([row.answer for row in rows]),
            "source": pa.array(row.source for row in rows),
        }
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))

    def close(self) -> dict:
        """Completes the file. Returns its entry in the manifest: file, rows, bytes, sha256."""
        if self._pending:
            self._flush()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        size, checksum = self._temp.stat().st_size, files.sha256_file(self._temp)
        self._temp.replace(self.path)
        return {"file": self.path.name, "rows": self.rows, "bytes": size, "sha256": checksum}


def _list_array(parts: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.ListArray.from_arrays(
        offsets, np.concatenate(parts).astype(np.int32, copy=False), type=TOKENS
    )


def tokenizer_fingerprint(tokenizer) -> str:
    """One hash of what decides how text becomes ids: the tokenizer's definition, added tokens
    included.
    """
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree.update(truncation=None, padding=None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def template_hash(tokenizer) -> str:
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()[:16]


def manifest_of(store: Path, entries: list[dict], counts: dict, chat: ChatTokenizer) -> dict:
    """The manifest (see Manifest) of the shards in `store`, as plain values."""
    lengths = lengths_of([_Shard(store / e["file"], ShardEntry(**e)) for e in entries])
    lengths["total"] = sum(lengths.values())
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": tokenizer_fingerprint(chat.tokenizer),
        "chat_template": template_hash(chat.tokenizer),
        "turn_end_token": chat.turn_end_id,
        "no_think_suffix_tokens": chat.no_think_suffix.tolist(),
        "think_open_tokens": chat.think_open.tolist(),
        "think_close_tokens": chat.think_close.tolist(),
        "rows": sum(e["rows"] for e in entries),
        "counts": counts,
        "lengths": {name: _percentiles(values) for name, values in lengths.items()},
        "shards": entries,
    }
    return {**manifest, "hash": hash_of(manifest)}


def _percentiles(values: np.ndarray) -> dict[str, int]:
    """Token counts; p0 and p100 are the shortest and the longest row."""
    at = (
        np.percentile(values, PERCENTILES, method="nearest")
        if len(values)
        else [0] * len(PERCENTILES)
    )
    table = {f"p{p}": int(value) for p, value in zip(PERCENTILES, at, strict=True)}
    return {**table, "sum": int(values.sum(dtype=np.int64))}


class _Shard:
    """One mapped Arrow file. Token pages enter memory when they are read and leave with
    `release`.
    """

    def __init__(self, path: Path, entry: ShardEntry):
        self.path, self.rows = path, entry.rows
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if size != entry.bytes:
                raise ValueError(f"{size} bytes, the manifest says {entry.bytes}")
            self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
            if self._reader.schema != SCHEMA:
                raise ValueError("other columns")
            if self._reader.num_record_batches != -(-self.rows // BATCH_ROWS):
                raise ValueError(f"{self._reader.num_record_batches} record batches")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(error) from None
        self._columns: dict[int, dict] = {}

    def _damaged(self, error: Exception) -> DamagedInput:
        what = f"{self.path}: not the shard that was written ({shown(str(error))})"
        return DamagedInput(self.path.parent, what)

    def batch(self, index: int) -> dict:
        """Columns of a record batch: (values, offsets) of each token list, an Arrow array of each
        text.
        """
        if index not in self._columns:
            rows = min(BATCH_ROWS, self.rows - index * BATCH_ROWS)
            try:
                batch = self._reader.get_batch(index)
                if len(batch) != rows:
                    raise ValueError(f"{len(batch)} rows in batch {index}, expected {rows}")
            except (OSError, ValueError, pa.ArrowException) as error:
                raise self._damaged(error) from None
            tokens = {f.name: batch[f.name] for f in SCHEMA if f.type == TOKENS}
            views = {
                name: (column.values.to_numpy(), column.offsets.to_numpy())
                for name, column in tokens.items()
            }
            self._columns[index] = {"id": batch["id"], "source": batch["source"], **views}
        return self._columns[index]

    def batches(self):
        return (self.batch(i) for i in range(-(-self.rows // BATCH_ROWS)))

    def release(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)


class ShardStore:
    """The published shards of a run: `len(store)`, `store.row(i)`, lengths and ids. Opening reads
    no tokens.

    Raises MissingInput for a store that is unfinished, DamagedInput for one of another version, or
    whose files have another size. Picklable: a worker process opens its own maps.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.manifest = Manifest.of_store(self.directory)
        self.hash: str = self.manifest.hash
        self._shards = [_Shard(self.directory / e.file, e) for e in self.manifest.shards]
        self._starts = np.cumsum([0, *(s.rows for s in self._shards)])
        self._touched_bytes = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self):
        return ShardStore, (self.directory,)

    def row(self, i: int) -> Row:
        """Row i, 0 <= i < len(store)."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        index, at = divmod(i - int(self._starts[shard]), BATCH_ROWS)
        columns = self._shards[shard].batch(index)
        prompt, cot, steps, answer = (
            _slice(columns[name], at)
            for name in ("prompt_tokens", "cot_tokens", "cot_step_tokens", "answer_tokens")
        )
        self._touched_bytes += 4 * (len(prompt) + len(cot) + len(steps) + len(answer))
        if self._touched_bytes > RESIDENT_BYTES:
            self.release()
        return Row(
            columns["id"][at].as_py(), prompt, cot, steps, answer, columns["source"][at].as_py()
        )

    def release(self) -> None:
        """Hands mapped pages back: they stay in the page cache but are this process's memory no
        longer.
        """
        self._touched_bytes = 0
        for shard in self._shards:
            shard.release()

    def ids(self) -> list[str]:
        return [
            i
            for shard in self._shards
            for columns in shard.batches()
            for i in columns["id"].to_pylist()
        ]

    def lengths(self) -> dict[str, np.ndarray]:
        """Tokens of each row, np.int32 [rows]: `prompt`, `cot`, `answer`; from the list offsets
        alone.
        """
        return lengths_of(self._shards)

    def check_tokenizer(self, tokenizer) -> None:
        """Raises UserError when the shards were made with another tokenizer or chat template."""
        here = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "chat_template": template_hash(tokenizer),
        }
        for key, value in here.items():
            made_with = getattr(self.manifest, key)
            if made_with != value:
                raise UserError(
                    f"{self.directory}: made with another {key.replace('_', ' ')} "
                    f"({made_with}) than that of {tokenizer.name_or_path} ({value}); "
                    f"{REMAKE.format(self.directory)}"
                )

    def marks(self, vocab: AbstractVocab) -> Marks:
        """What the template puts around the texts, as it was when the shards were made."""
        names = ("no_think_suffix_tokens", "think_open_tokens", "think_close_tokens")
        return Marks.of(vocab, *(getattr(self.manifest, name) for name in names))

    def verify(self) -> None:
        """Reads every file and raises UserError for the first whose checksum is wrong."""
        files.verify(self.directory)


def _slice(column: tuple[np.ndarray, np.ndarray], at: int) -> np.ndarray:
    values, offsets = column
    return values[offsets[at] : offsets[at + 1]]


def lengths_of(shards: list[_Shard]) -> dict[str, np.ndarray]:
    batches = [columns for shard in shards for columns in shard.batches()]
    return {
        name: np.concatenate(
            [np.zeros(0, np.int32), *(np.diff(columns[column][1]) for columns in batches)]
        )
        for name, column in LENGTH_COLUMNS.items()
    }
