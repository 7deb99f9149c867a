"""Where traces come from: random draws where no model has learnt to write any, else a model."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from abscot.common.draws import keyed_seed, rng
from abscot.data.shards import ShardStore
from abscot.generation.requests import codebook_tokens_of, trace_request
from abscot.method.sequence import fit_prompt, trace_prompt, z_tokens
from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TraceConfig


@dataclass(frozen=True)
class Item:
    """One trace to make. sample 0 is the training trace; higher ones exist for the probed prompts
    only.
    """

    row: int
    id: str
    sample: int


class Source(Protocol):
    cut_prompts: int  # prompts that did not fit the window and lost the middle of their CoT

    def traces(self, items: list[Item]) -> list[list[int]]: ...


class RandomTraces:
    """Traces that no model made (paper section 3.2). key: (seed, round, phase), of the draws."""

    cut_prompts = 0

    def __init__(self, store: ShardStore, vocab: AbstractVocab, config: TraceConfig, key: tuple):
        self.store, self.config, self.key = store, config, key
        self.codebook = np.array(vocab.codebook_ids, np.int32)

    def traces(self, items: list[Item]) -> list[list[int]]:
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
    """Traces z ~ pi_abs(. | x, c) with the CoT in sight, else z ~ pi_abs(. | x).
    key: (seed, round, phase), of the draws.
    """

    def __init__(
        self,
        store: ShardStore,
        vocab: AbstractVocab,
        config: TraceConfig,
        with_cot: bool,
        key: tuple,
        engine,
    ):
        self.store, self.vocab, self.config, self.engine = store, vocab, config, engine
        self.with_cot, self.key = with_cot, key
        self.cut_prompts = 0

    def traces(self, items: list[Item]) -> list[list[int]]:
        requests = [
            trace_request(
                self.prompt(item.row),
                self.vocab,
                self.config,
                keyed_seed(*self.key, item.id, item.sample),
            )
            for item in items
        ]
        self.engine.forget()
        traces = [[] for _ in items]
        for index, (completion,) in self.engine.stream(requests):
            traces[index] = codebook_tokens_of(completion, self.vocab, self.config)
        return traces

    def prompt(self, row: int) -> list[int]:
        """X, C (if it is in sight) and `<beginabstract>`; a CoT that does not fit the window loses
        its middle, and is counted.
        """
        tokens = self.store.row(row)
        x, c = tokens.prompt.tolist(), tokens.cot.tolist() if self.with_cot else []
        room = self.engine.window_tokens - z_tokens(self.config.m_max) + 1  # the end is not fed
        self.cut_prompts += len(x) + len(c) > room
        return trace_prompt(self.vocab, *fit_prompt(x, c, room))
