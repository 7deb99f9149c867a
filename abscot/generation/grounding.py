"""Grounded traces: what the base holds in mind at each step of a CoT, as codes of the codebook."""

import functools

import numpy as np

from abscot.common.hardware import one_thread
from abscot.data.shards import ShardStore
from abscot.generation.codebook import Codebook
from abscot.generation.codebook_job import Steps, states_of
from abscot.generation.trace_records import GroundedCounts
from abscot.generation.trace_sources import Item
from abscot.method.vocab import AbstractVocab
from abscot.model.states import Document, HiddenStates
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


class GroundedTraces:
    """The codes of the steps of each row. The base is loaded when the first trace is made."""

    cut_prompts = 0

    def __init__(self, recipe: Recipe, run: Run, store: ShardStore, vocab: AbstractVocab):
        self.recipe, self.run, self.store = recipe, run, store
        self.ids = np.array(vocab.codebook_ids, np.int32)
        self.codebook = Codebook.of_run(run)
        self.grounded: GroundedCounts | None = None

    @functools.cached_property
    def steps(self) -> Steps:
        return Steps.of(self.recipe, self.run, self.store)

    @functools.cached_property
    def model(self) -> HiddenStates:
        return states_of(self.recipe, self.run)

    @one_thread()
    def traces(self, items: list[Item]) -> list[np.ndarray]:
        """int32 tokens of each; the items are what is batched together."""
        if not items:
            self.grounded = None
            return []
        readings = [self.steps.reading(item.row) for item in items]
        documents = [
            Document(self.steps.tokens(item.row), reading.positions)
            for item, reading in zip(items, readings, strict=True)
        ]
        counts = np.zeros((self.codebook.levels, len(self.ids)), np.int64)
        traces = []
        for states, reading in zip(self.model.of(documents), readings, strict=True):
            codes = self.codebook.codes(states, reading.codes_per_state)
            for level, of_level in enumerate(codes.T):
                np.add.at(counts[level], of_level, 1)
            traces.append(self.ids[codes.ravel()[: self.recipe.traces.m_max]])
        usual = min(self.recipe.grounding.tokens_per_step, self.recipe.traces.m_max)
        self.grounded = GroundedCounts(
            steps=sum(r.steps for r in readings),
            blank_steps=sum(r.blank_steps for r in readings),
            cut_rows=sum(r.cut for r in readings),
            filled_rows=sum(r.codes_per_state > usual for r in readings),
            rows_without_steps=sum(r.steps == 0 for r in readings),
            code_counts=counts.tolist(),
        )
        return traces
