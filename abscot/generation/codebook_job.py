"""Makes the codebook of a run: states at a sample of steps, and centroids fitted to them; or takes
one that was made elsewhere.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import transformers

from abscot.common import files
from abscot.common.draws import keyed_seed
from abscot.common.errors import UserError
from abscot.common.hardware import one_thread
from abscot.common.log import Progress, log
from abscot.data.shards import ShardStore
from abscot.generation.codebook import Codebook, CodebookMeta, fit
from abscot.generation.cot_steps import Reading, Words, read_steps
from abscot.method.lineage import channel_rows
from abscot.method.sequence import Marks
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.model.states import Document, HiddenStates, layer_number
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class Steps:
    """The steps of a store's CoTs, as this recipe codes them. marks: the template's tokens."""

    recipe: Recipe
    store: ShardStore
    words: Words
    marks: Marks

    @classmethod
    def of(cls, recipe: Recipe, run: Run, store: ShardStore) -> "Steps":
        tokenizer = load_tokenizer(run.base, recipe.model.trust_remote_code)
        vocab = AbstractVocab.of(tokenizer, recipe.codebook_size)
        return cls(recipe, store, Words.of(tokenizer), store.marks(vocab))

    def reading(self, row: int) -> Reading:
        found = self.store.row(row)
        return read_steps(found, self.words, self.recipe.traces, self.recipe.grounding)

    def document(self, row: int, reading: Reading) -> Document:
        """The CoT where the base would write it: behind X with thinking off, a base that thinks
        does not hold the first steps in mind.
        """
        found = self.store.row(row)
        prompt = self.marks.cot_prompt(found.prompt)
        return Document(np.concatenate([prompt, found.cot]), len(prompt) + reading.positions)

    def levels_needed(self) -> int:
        """The most codes that a step of any row has."""
        most = 0
        with Progress(len(self.store), "rows", "steps of all CoTs") as progress:
            for row in range(len(self.store)):
                most = max(most, self.reading(row).codes_per_state)
                progress.update()
        return most


def states_of(recipe: Recipe, run: Run) -> HiddenStates:
    """The base, up to the layer of the recipe."""
    return HiddenStates(
        run.base,
        recipe.grounding.layer,
        recipe.train.capacity_tokens,
        recipe.inference.dtype,
        recipe.model.trust_remote_code,
    )


def make_codebook(recipe: Recipe, run: Run) -> Codebook:
    """Publishes run.codebook. Raises MissingInput without base and shards, UserError for a codebook
    from elsewhere that does not fit, and for states too few to tell so many codes apart.
    """
    files.require(run.base, run.shards)
    store = ShardStore(run.shards)
    steps = Steps.of(recipe, run, store)
    levels = steps.levels_needed()
    given = recipe.grounding.codebook
    codebook = (
        taken(recipe, run, Path(given), levels) if given else fitted(recipe, run, steps, levels)
    )
    for level, counts in enumerate(codebook.meta.levels):
        for warning in counts.warnings():
            log(f"WARNING codebook, level {level}: {warning}")
    with files.publish(run.codebook) as temp:
        codebook.write(temp)
    return codebook


def sampled_rows(recipe: Recipe, store: ShardStore) -> np.ndarray:
    """The rows that are trained on, in the order of a hash of (seed, id)."""
    ids, kept = store.ids(), np.setdiff1d(np.arange(len(store)), channel_rows(recipe, len(store)))
    drawn = [(keyed_seed("codebook", recipe.seed, ids[row]), ids[row]) for row in kept]
    return kept[sorted(range(len(kept)), key=drawn.__getitem__)]


@one_thread()
def fitted(recipe: Recipe, run: Run, steps: Steps, levels: int) -> Codebook:
    """Fitted to grounding.fit_steps states: those of whole rows."""
    goal, documents, states = recipe.grounding.fit_steps, [], 0
    for row in sampled_rows(recipe, steps.store):
        if states >= goal:
            break
        documents.append(steps.document(int(row), steps.reading(int(row))))
        states += len(documents[-1].positions)
    if not states:
        raise UserError("train.channel_rows: all rows are held out; none is left to fit codes to")
    model = states_of(recipe, run)
    found, filled = np.empty((states, model.hidden_size), np.float32), 0
    place = np.concatenate([np.arange(len(d.positions)) for d in documents])
    with Progress(_tokens(documents), "tokens", "hidden states") as progress:
        for part in model.of(documents, lambda bin_: progress.update(_tokens(bin_))):
            found[filled : filled + len(part)] = part
            filled += len(part)
    size, places = recipe.codebook_size, recipe.traces.m_max
    with warnings.catch_warnings(action="ignore"):  # of fewer states than centroids: counted
        seed = keyed_seed("centroids", recipe.seed)
        tensors, counts = fit(found, place, places, size, levels, seed)
    log(f"codebook: {size} centroids on {levels} level(s), of {states:,} states")
    meta = CodebookMeta(
        version=CodebookMeta.VERSION,
        base_fingerprint=files.fingerprint(run.base),
        layer=recipe.grounding.layer,
        layer_number=model.layer_number,
        num_layers=model.num_layers,
        position=recipe.grounding.position,
        hidden_size=model.hidden_size,
        codebook_size=size,
        places=places,
        seed=recipe.seed,
        rows=len(documents),
        states=states,
        levels=counts,
    )
    return Codebook(meta, **tensors)


def _tokens(documents: list[Document]) -> int:
    return sum(len(document.tokens) for document in documents)


def taken(recipe: Recipe, run: Run, directory: Path, levels: int) -> Codebook:
    """One that was made elsewhere (grounding.codebook), of the same base and codes."""
    where = f"grounding.codebook: {directory}"
    codebook = Codebook.read(directory, "expected a directory that launch/codebook.py has made")
    config = transformers.AutoConfig.from_pretrained(
        run.base, trust_remote_code=recipe.model.trust_remote_code
    )
    meta, here = (
        codebook.meta,
        {
            "hidden_size": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "layer_number": layer_number(recipe.grounding.layer, config),
            "position": recipe.grounding.position,
            "codebook_size": recipe.codebook_size,
        },
    )
    for name, expected in here.items():
        if (found := getattr(meta, name)) != expected:
            raise UserError(f"{where}: its {name} is {found}, here it is {expected}")
    if codebook.levels < levels:
        raise UserError(
            f"{where}: has {codebook.levels} codes for a state, and a row here needs {levels}; "
            "lower traces.m_min or grounding.tokens_per_step, or use one of more levels"
        )
    if meta.base_fingerprint != files.fingerprint(run.base):
        log(f"WARNING {where}: made with other files of a base than {run.base}")
    return codebook
