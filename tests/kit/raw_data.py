"""Raw rows on disk, and the store that prepare makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from abscot.common.draws import rng
from abscot.data.mpi import Ranks
from abscot.data.prepare import prepare
from abscot.data.rows import Row
from abscot.data.shards import ShardStore
from abscot.recipe.run import Run
from abscot.recipe.schema import (
    DataConfig,
    ModelConfig,
    Recipe,
    TraceConfig,
    TrainConfig,
    WorldConfig,
)
from kit.tiny_run import tiny_tokenizer


def row(prompt: int, steps: list[int], answer: int) -> Row:
    cot = np.arange(sum(steps), dtype=np.int32)
    return Row(
        "r",
        np.zeros(prompt, np.int32),
        cot,
        np.array(steps, np.int32),
        np.zeros(answer, np.int32),
        "s",
    )


def raw_rows(count: int) -> list[dict]:
    rows = []
    for i in range(count):
        draw = rng("raw", i)
        cot = "\n".join("step " * int(n) for n in draw.integers(1, 12, draw.integers(2, 9)))
        rows.append(
            {
                "id": f"r{i}",
                "prompt": f"question {i}?",
                "cot": cot,
                "answer": f"{i}",
                "source": f"s{i % 3}",
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(
    root: Path, source: Path | str, name: str = "run", capacity_tokens: int = 400, **data
) -> Recipe:
    keys = {"min_cot_chars": 5, "shard_rows": 50, "system_prompt": "Think."} | data
    return Recipe(
        name=name,
        run_root=str(root),
        model=ModelConfig(base=str(root)),
        train=TrainConfig(capacity_tokens=capacity_tokens),
        traces=TraceConfig(m_max=30),
        world=WorldConfig(),
        data=DataConfig(source=str(source), format="prompt_cot_answer", **keys),
    )


def make(recipe: Recipe, tokenizer=None, problems=()) -> ShardStore:
    return prepare(recipe, Run.of(recipe), tokenizer or tiny_tokenizer(), problems, Ranks())


@pytest.fixture
def source(tmp_path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", raw_rows(600))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
