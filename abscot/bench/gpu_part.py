"""A part of `bench.py gpu` as it runs: its cases one after the other, each result kept at once, and
none begun that would not end in time.
"""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from abscot.bench.gpu_scorecard import Scorecard
from abscot.bench.tools import Document
from abscot.common.errors import UserError
from abscot.model.shape import QWEN3, ModelShape

TINY = "tiny"
TINY_SHAPE = ModelShape(64, 128, 2, 4, 2, 32, 1024, True)
BINS = {8192: [4096, 4096], 32_768: [16_384, 8192, 4096, 4096]}  # documents, in tokens
TINY_BINS = {256: [128, 128]}
LINE_CHARS = 400


class LeftOut(Exception):
    """A case that cannot be measured here, and why."""


@dataclass
class Part:
    """ends_at: Unix time. machine: what `gpu_machine` says. known: cases that stand in the
    scorecard, measured before on such a machine.
    """

    name: str
    card: Scorecard
    ends_at: float
    machine: dict
    tiny: bool = False
    known: set[str] = field(default_factory=set)

    @property
    def left_s(self) -> float:
        return self.ends_at - time.time()

    @property
    def on_gpu(self) -> bool:
        return self.machine["gpus"] > 0

    @property
    def bins(self) -> dict[int, list[int]]:
        return TINY_BINS if self.tiny else BINS

    @property
    def work(self) -> Path:
        """A directory for the part's runs, gone behind it."""
        return self.card.work(self.name)

    def log(self, case: str) -> Path:
        """Where the output of a case's command goes."""
        return self.card.logs / f"{self.name}-{file_name(case)}.log"

    def case(self, name: str, needs_s: float, measure: Callable[[], dict]) -> dict | None:
        """Measures a case that takes about `needs_s`, and keeps what is found. None where it is
        known, left out or has failed; each of that is said, and costs no other case.
        """
        if name in self.known:
            self._say(name, "measured before; --again measures it anew")
            return None
        left_s, began_s = self.left_s, time.monotonic()
        if left_s < needs_s:
            why = f"takes about {needs_s:.0f} s, {max(left_s, 0):.0f} s were left"
            return self._leave_out(name, f"{why}; the same command goes on with it")
        try:
            found = measure()
            self.card.put_in(self.name, "cases", name, found)
        except LeftOut as why:
            return self._leave_out(name, str(why))
        except subprocess.TimeoutExpired:
            why = f"cut off after {time.monotonic() - began_s:.0f} s, where the part's time ended"
            return self._leave_out(name, f"{why}; the same command tries it again")
        except Exception as error:
            line = one_line(error)
            self.card.put_in(self.name, "cases", name, {"error": line})
            self._say(name, f"FAILED: {line}")
            return None
        self._say(name, f"{time.monotonic() - began_s:.0f} s")
        return found

    def _leave_out(self, name: str, why: str) -> None:
        self.card.put_in(self.name, "left_out", name, why)
        self._say(name, f"left out: {why}")

    def _say(self, name: str, what: str) -> None:
        print(f"  {name}: {what}", flush=True)


def file_name(case: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", case).lower()


def one_line(error: Exception) -> str:
    kind = "" if isinstance(error, UserError | RuntimeError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:LINE_CHARS]


def size_of(bin_tokens: int) -> str:
    """32k for 32,768."""
    return f"{bin_tokens // 1024}k" if bin_tokens >= 1024 else str(bin_tokens)


def shape_of(name: str) -> ModelShape:
    return TINY_SHAPE if name == TINY else QWEN3[name]


def documents_of(bin_tokens: int) -> list[Document]:
    """The documents of a bin as a phase with the CoT in sight has them: X, C, Z, Y tokens."""
    from abscot.bench.attention import document

    return [document(tokens) for tokens in (BINS | TINY_BINS)[bin_tokens]]
