"""manifest.json of a shard store: what vouches for the shards."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import pydantic

from abscot.common import files
from abscot.common.errors import DamagedInput, UserError
from abscot.common.record import Record, read_json

SCHEMA_VERSION = 1
Count = Annotated[int, pydantic.Field(ge=0)]


class ShardEntry(Record):
    """A shard file as the manifest knows it."""

    file: files.FileName
    rows: Count
    bytes: Count
    sha256: files.Checksum


class Manifest(Record):
    """manifest.json of a store. counts: read, kept, truncated, rejected {reason: rows}, sources
    {source: kept rows}. lengths: tokens, percentiles and sum of each part. hash: of all the rest;
    nothing in it knows ranks or time.
    """

    schema_version: int
    tokenizer: str
    chat_template: str
    turn_end_token: int
    no_think_suffix_tokens: list[int]
    think_open_tokens: list[int]
    think_close_tokens: list[int]
    rows: Count
    counts: dict[str, Count | dict[str, Count]]
    lengths: dict[str, dict[str, Count]]
    shards: list[ShardEntry]
    hash: str

    @classmethod
    def of_store(cls, store: Path) -> "Manifest":
        """The manifest of the published shards in `store`. Raises MissingInput, DamagedInput, and
        UserError for shards of another version.
        """
        files.read_done(store)
        path = store / "manifest.json"
        try:
            tree = read_json(path)
            version = tree.get("schema_version") if isinstance(tree, dict) else None
            if isinstance(version, int) and version != SCHEMA_VERSION:
                raise UserError(f"{path}: version {version}, expected {SCHEMA_VERSION}")
            manifest = cls.of(tree, str(path), mend="")
            if hash_of(tree) != manifest.hash:
                raise UserError(f"{path}: hash: not that of this manifest")
        except UserError as error:
            raise DamagedInput(store, str(error)) from None
        return manifest


def hash_of(manifest: dict) -> str:
    """One hash of all that a manifest says."""
    said = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
