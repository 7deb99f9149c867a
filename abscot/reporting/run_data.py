"""What the files of a run say: recipe, results, train logs, trace statistics, data."""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from abscot.common import files
from abscot.common.errors import UserError
from abscot.common.secrets import redacted, secrets_in
from abscot.data import toy_world
from abscot.data.manifest import Manifest
from abscot.evaluation.results import META_SUFFIX, ResultMeta, ResultRow, read_result
from abscot.evaluation.statistics import Summary, summarise
from abscot.generation.codebook import META, CodebookMeta, made_again
from abscot.generation.trace_set import stats_of
from abscot.method.lineage import Training, baseline_trainings, run_models, step_of, trainings
from abscot.recipe import yaml_text
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run, open_run
from abscot.recipe.schema import Recipe
from abscot.training.record import TrainLog

# The order of modes in tables.
MODE_ORDER = (
    "verbal",
    "thinking",
    "no_cot",
    "pause",
    "abstract",
    "abstract_swapped",
    "abstract_permuted",
    "abstract_truncated",
    "channel",
)

# How the base reasons in words, the published way first.
BASELINE_MODES = ("verbal", "thinking")


@dataclass
class RunData:
    """What the files of a run say. What is not there yet is absent here and `missing` names it."""

    run: Run
    recipe: Recipe
    summaries: list[Summary] = field(default_factory=list)
    metas: dict[tuple, ResultMeta] = field(default_factory=dict)  # by (mode, model, benchmark)
    rows: dict[tuple, list[ResultRow]] = field(default_factory=dict)  # the same keys -> result rows
    # mode, model, benchmark, round
    missing: list[tuple[str, str, str, int]] = field(default_factory=list)
    # phase tag -> train log, in the order of training
    logs: dict[str, TrainLog] = field(default_factory=dict)
    # phase tag -> stats.json of its finished trace set
    traces: dict[str, dict] = field(default_factory=dict)
    codebook: CodebookMeta | None = None  # of grounded traces
    manifest: Manifest | None = None

    def without_secrets(self, text: str) -> str:
        """`text` as others may read it: without the credentials and tokens of config.yaml."""
        return redacted(text, self.secrets)

    @property
    def secrets(self) -> dict[str, str]:
        return secrets_in(_config_tree(self.run))

    @functools.cached_property
    def states(self) -> dict[str, str]:
        """id -> the cup after each step, a letter a step, of every problem of the embedded world;
        empty without one. Raises UserError for a damaged world.
        """
        return toy_world.states_of(self.run.world) if files.is_done(self.run.world) else {}

    @property
    def config_text(self) -> str:
        """config.yaml as others may read it."""
        if not self.secrets:
            return self.run.config.read_text()
        return yaml_text.dump(redacted(_config_tree(self.run)))

    @property
    def scored(self) -> list[Summary]:
        """Of models that a training ended with: those on its way stand in the table alone."""
        return [s for s in self.summaries if s.accuracy and step_of(s.model) is None]

    @property
    def trainings(self) -> list[Training]:
        """Every training of the rounds, in order."""
        return trainings(self.recipe, self.run)

    @property
    def trainings_and_baselines(self) -> list[Training]:
        """Those of the rounds, then the baselines, whether they were trained or not."""
        return [*self.trainings, *baseline_trainings(self.recipe, self.run)]

    @property
    def tags(self) -> list[str]:
        return [training.tag for training in self.trainings]

    def codes_entropy(self, tag: str) -> float | None:
        """Of the codes of a training's trace set, in nats; None where there is no finished set."""
        bits = self.traces.get(tag, {}).get("unigram_entropy_bits")
        return None if bits is None else bits * math.log(2)

    @property
    def uniform_entropy(self) -> float:
        """Of codes that are all alike, in nats."""
        return math.log(self.recipe.codebook_size)

    def of(self, mode: str, model: str, benchmark: str) -> Summary | None:
        return next(
            (
                s
                for s in self.summaries
                if (s.mode, s.model, s.benchmark) == (mode, model, benchmark)
            ),
            None,
        )

    def baseline(self, benchmark: str) -> Summary | None:
        """The base with its reasoning in words: `verbal` where it was asked so, else `thinking`."""
        found = (self.of(mode, "base", benchmark) for mode in BASELINE_MODES)
        return next((s for s in found if s and s.accuracy), None)


def _config_tree(run: Run) -> dict:
    return dataclasses.asdict(load_recipe(run.config))


def read(run: Run) -> RunData:
    """Raises UserError for a directory that is no run, and for a damaged file, with its line."""
    data = RunData(*open_run(run.root))
    data.manifest = Manifest.of_store(run.shards) if files.is_done(run.shards) else None
    for path in sorted(run.results.glob(f"*{META_SUFFIX}")):
        _read_results(data, path)
    data.missing = _missing_cells(data)
    data.summaries.sort(key=lambda s: order(data.recipe, s.mode, s.model, s.benchmark, s.round))
    data.logs = {
        training.tag: TrainLog.read(training.train_log)
        for training in data.trainings_and_baselines
        if training.train_log.exists()
    }
    data.traces = {
        tag: stats_of(run.traces(tag)).model_dump(exclude_none=True)
        for tag in data.tags
        if files.is_done(run.traces(tag))
    }
    if files.is_done(run.codebook):
        data.codebook = CodebookMeta.read(run.codebook / META, made_again(run))
    return data


def _json(path: Path):
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); delete it and run its stage again"
        ) from None


def _read_results(data: RunData, meta_path: Path) -> None:
    """One cell. The meta file is written last, so a cell that has one is whole, or damaged."""
    meta, rows = read_result(data.run, meta_path.name.removesuffix(META_SUFFIX))
    mode, model, benchmark = key = meta.mode, meta.model, meta.benchmark
    data.metas[key], data.rows[key] = meta, rows
    of = {"mode": mode, "model": model, "benchmark": benchmark, "round": meta.round or 0}
    data.summaries.append(summarise(rows, **of))


def _missing_cells(data: RunData) -> list[tuple[str, str, str, int]]:
    return [
        (mode, model.name, benchmark, model.round or 0)
        for benchmark in data.recipe.eval.benchmarks
        for model in run_models(data.recipe, data.run)
        for mode in model.modes
        if not data.of(mode, model.name, benchmark)
    ]


def order(recipe: Recipe, mode: str, model: str, benchmark: str, round_: int) -> tuple:
    """Sort key of a cell: benchmarks as in the recipe, then rounds, then modes."""
    names = recipe.eval.benchmarks
    place = names.index(benchmark) if benchmark in names else len(names)
    family = next(
        (i for i in reversed(range(len(MODE_ORDER))) if mode.startswith(MODE_ORDER[i])),
        len(MODE_ORDER),
    )
    return place, benchmark, round_, model.partition("_step")[0], step_of(model) or 0, family, mode
