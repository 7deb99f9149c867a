"""train_logs/TAG.json: one entry an optimizer step, written atomically and cut back to the step a
run resumes at.
"""

import json
import time
from pathlib import Path

from abscot import dist, paths

FLUSH_S = 10


class StepLog:
    """The steps before `first_step` are kept from the file; later ones belong to a run that was
    killed.
    """

    def __init__(self, path: Path, first_step: int, meta: dict):
        self.path, self.meta = path, meta
        old = json.loads(path.read_text())["steps"] if path.is_file() and first_step else []
        self.steps = [entry for entry in old if entry["step"] < first_step]
        if len(self.steps) != first_step and dist.rank() == 0:
            raise ValueError(
                f"{path}: holds {len(self.steps)} of the {first_step} steps before the checkpoint"
            )
        self.flushed_s = time.monotonic()

    def add(self, entry: dict) -> None:
        self.steps.append(entry)
        if time.monotonic() - self.flushed_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.flushed_s = time.monotonic()
        if dist.rank() == 0:
            paths.write_json_atomic(self.path, {"meta": self.meta, "steps": self.steps})
