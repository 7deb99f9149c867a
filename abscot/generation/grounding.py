"""Grounded traces: what the base holds in mind at each step of a CoT, as codes of the codebook."""

import functools
from collections.abc import Iterator

import numpy as np

from abscot.common.files import is_done
from abscot.common.hardware import one_thread
from abscot.common.log import log
from abscot.data.shards import ShardStore
from abscot.generation.codebook import Codebook
from abscot.generation.codebook_job import Steps, states_of
from abscot.generation.cot_steps import Reading
from abscot.generation.trace_records import GroundedCounts, SetMeta
from abscot.generation.trace_set import TraceSet
from abscot.generation.trace_sources import Item, Made, untold
from abscot.method.lineage import Training, trainings
from abscot.method.schedules import GROUNDED
from abscot.method.vocab import AbstractVocab
from abscot.model.states import HiddenStates
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


class GroundedTraces:
    """The codes of the steps of each row. known: the same traces, where another training has them
    already. The base is loaded when the first trace is made.
    """

    cut_prompts = 0

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        store: ShardStore,
        vocab: AbstractVocab,
        known: TraceSet | None = None,
    ):
        self.recipe, self.run, self.store, self.known = recipe, run, store, known
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
    def traces(self, items: list[Item], made: Made = untold) -> list[np.ndarray]:
        """int32 tokens of each; the items are what is batched together."""
        if not items:
            self.grounded = None
            return []
        readings = [self.steps.reading(item.row) for item in items]
        coded = self._known(items, made) if self.known else self._coded(items, readings, made)
        traces = list(coded)
        counts = np.zeros((self.codebook.levels, len(self.ids)), np.int64)
        for trace, reading in zip(traces, readings, strict=True):
            level = np.arange(len(trace)) % reading.codes_per_state
            np.add.at(counts, (level, self._code_of(trace)), 1)
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

    def _code_of(self, trace: np.ndarray) -> np.ndarray:
        order = np.argsort(self.ids)
        return order[np.searchsorted(self.ids, trace, sorter=order)]

    def _known(self, items: list[Item], made: Made) -> Iterator[np.ndarray]:
        made(len(items))
        return (self.known.trace(item.row) for item in items)

    def _coded(
        self, items: list[Item], readings: list[Reading], made: Made
    ) -> Iterator[np.ndarray]:
        documents = [
            self.steps.document(item.row, reading)
            for item, reading in zip(items, readings, strict=True)
        ]
        found = self.model.of(documents, lambda bin_: made(len(bin_)))
        for states, reading in zip(found, readings, strict=True):
            codes = self.codebook.codes(states, reading.codes_per_state)
            yield self.ids[codes.ravel()[: self.recipe.traces.m_max]]


def made_before(
    training: Training, store: ShardStore, rows: np.ndarray, identity: SetMeta
) -> TraceSet | None:
    """The published traces of another training that are those of this one: same codebook, same
    rules, all its rows.
    """
    for other in trainings(training.recipe, training.run):
        if other == training or other.trace_source != GROUNDED or not is_done(other.traces):
            continue
        traces = TraceSet.load(other.traces, store, other.round, other.phase.name)
        differ = set(identity.differences(traces.meta)) - {"round", "phase", "rows", "rows_sha256"}
        if not differ and np.isin(rows, traces.rows).all():
            log(f"traces {training.tag}: those of {other.tag}")
            return traces
    return None
