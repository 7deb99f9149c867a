"""Where traces come from: random draws where no model has learnt to write any, else a model."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from abscot.common.draws import keyed_seed, rng
from abscot.data.shards import ShardStore
from abscot.generation.requests import Engine, Request, codebook_tokens_of, trace_request
from abscot.generation.trace_records import Choices, GroundedCounts
from abscot.method.sequence import answered_prompt, fit_prompt, trace_prompt, z_tokens
from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TraceConfig

# Told that so many more traces are there, perhaps none, and a note: to show the progress.
Made = Callable[..., object]


def untold(traces: int, note: str = "") -> None:
    """A `Made` that tells nobody."""


@dataclass(frozen=True)
class Item:
    """One trace to make. sample 0 is the training trace; higher ones exist for the probed prompts
    only.
    """

    row: int
    id: str
    sample: int


class Pace:
    """How fast an engine takes in a chunk: told with each of its steps, so that one which is at
    work is heard of while no trace is there yet.
    """

    def __init__(self, made: Made, unit: str):
        self.made, self.unit, self.note, self.began_s = made, unit, "", time.monotonic()

    def stepped(self, tokens: int) -> None:
        per_s = tokens / max(time.monotonic() - self.began_s, 1e-9)
        self.note = f"{tokens:,} {self.unit}, {per_s:,.0f} a second"
        self.made(0, self.note)


class Source(Protocol):
    """cut_prompts: prompts that did not fit the window and lost their middle. choices: what was
    chosen for training traces. Both count up. grounded: of the last call of `traces`.
    """

    cut_prompts: int
    choices: Choices
    grounded: GroundedCounts | None

    def traces(self, items: list[Item], made: Made = untold) -> list[list[int]]: ...


class RandomTraces:
    """Traces that no model made (paper section 3.2). key: (seed, round, phase), of the draws."""

    cut_prompts, choices, grounded = 0, Choices(), None

    def __init__(self, store: ShardStore, vocab: AbstractVocab, config: TraceConfig, key: tuple):
        self.store, self.config, self.key = store, config, key
        self.codebook = np.array(vocab.codebook_ids, np.int32)

    def traces(self, items: list[Item], made: Made = untold) -> list[list[int]]:
        made(len(items))
        return [self._trace(item) for item in items]

    def _trace(self, item: Item) -> np.ndarray:
        draw = rng(*self.key, item.id, item.sample)
        length = self._length(draw, item.row)
        return self.codebook[draw.integers(0, len(self.codebook), length)]

    def _length(self, draw: np.random.Generator, row: int) -> int:
        """`steps`: rand(1, |l| / 2) tokens per CoT step l of |l| tokens, in all at most m_max and
        at least m_min. `uniform`: random_min to random_max tokens.
        """
        config = self.config
        m_min, m_max = config.m_min, config.m_max
        if config.random == "uniform":
            least = m_min if config.random_min is None else config.random_min
            return int(draw.integers(least, (config.random_max or m_max) + 1))
        # A step gives at least one token.
        halves = np.maximum(1, self.store.row(row).cot_steps[:m_max] // 2)
        return int(np.clip(draw.integers(1, halves + 1).sum(), m_min, m_max))


class ModelTraces:
    """Traces z ~ pi_abs(. | x, c) with the CoT in sight, else z ~ pi_abs(. | x). Of best_of
    candidates the one with the highest log p(y | x, z) is kept, the first one of equals.
    key: (seed, round, phase), of the draws.
    """

    grounded = None

    def __init__(
        self,
        store: ShardStore,
        vocab: AbstractVocab,
        config: TraceConfig,
        with_cot: bool,
        key: tuple,
        engine: Engine,
    ):
        self.store, self.vocab, self.config, self.engine = store, vocab, config, engine
        self.with_cot, self.key = with_cot, key
        self.cut_prompts, self.choices = 0, Choices()

    def traces(self, items: list[Item], made: Made = untold) -> list[list[int]]:
        self.engine.forget()
        # The candidates of an item stand together, so that its prompt is computed once.
        requests = list(itertools.chain.from_iterable(map(self._requests, items)))
        candidates, best_of = [[] for _ in requests], self.config.best_of
        pace = Pace(made, "prompt tokens")
        for index, (completion,) in self.engine.stream(requests, pace.stepped):
            candidates[index] = codebook_tokens_of(completion, self.vocab, self.config)
            made(index % best_of == 0, pace.note)  # one candidate of an item stands for it
        if best_of == 1:
            return candidates
        groups = [candidates[i : i + best_of] for i in range(0, len(candidates), best_of)]
        return self._best(items, groups, made)

    def _requests(self, item: Item) -> list[Request]:
        """The first candidate has the seed of an only one."""
        prompt, key = self.prompt(item.row), (*self.key, item.id, item.sample)
        keys = [key, *((*key, candidate) for candidate in range(1, self.config.best_of))]
        return [trace_request(prompt, self.vocab, self.config, keyed_seed(*k)) for k in keys]

    def _best(
        self, items: list[Item], groups: list[list[list[int]]], made: Made
    ) -> list[list[int]]:
        """The best candidate of each group. Equal candidates are scored once."""
        distinct = [list(dict.fromkeys(map(tuple, group))) for group in groups]
        texts, answers = [], []
        for item, traces in zip(items, distinct, strict=True):
            x, y = self._prompt_and_answer(item.row)
            texts += [answered_prompt(self.vocab, x, trace, y) for trace in traces]
            answers += [len(y)] * len(traces)
        pace = Pace(made, "tokens of candidates")
        scores = (-sum(found) for found in self.engine.surprisals(texts, answers, pace.stepped))
        return [
            self._choose(item, traces, list(itertools.islice(scores, len(traces))))
            for item, traces in zip(items, distinct, strict=True)
        ]

    def _choose(self, item: Item, traces: list[tuple], log_p: list[float]) -> list[int]:
        best = max(range(len(traces)), key=log_p.__getitem__)  # the first one of equals
        if item.sample == 0:
            self.choices += Choices(
                rows=1,
                distinct_candidates=len(traces),
                first_log_p=log_p[0],
                best_log_p=log_p[best],
                not_first=best > 0,
            )
        return list(traces[best])

    def prompt(self, row: int) -> list[int]:
        """X, C (if it is in sight) and `<beginabstract>`; a CoT that does not fit the window loses
        its middle, and is counted.
        """
        tokens = self.store.row(row)
        x, c = tokens.prompt.tolist(), tokens.cot.tolist() if self.with_cot else []
        room = self.engine.window_tokens - z_tokens(self.config.m_max) + 1  # the end is not fed
        self.cut_prompts += len(x) + len(c) > room
        return trace_prompt(self.vocab, *fit_prompt(x, c, room))

    def _prompt_and_answer(self, row: int) -> tuple[list[int], list[int]]:
        """X and Y that fit the window with any trace and the one token that an engine adds; X loses
        its middle first, and is counted.
        """
        tokens = self.store.row(row)
        x, y = tokens.prompt.tolist(), tokens.answer.tolist()
        room = self.engine.window_tokens - z_tokens(self.config.m_max) - 1
        self.cut_prompts += len(x) + len(y) > room
        y, x = fit_prompt(y, x, room)
        return x, y
