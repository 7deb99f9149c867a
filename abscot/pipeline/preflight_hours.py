"""How long the stages of a recipe will take, by their kind of work, on GPUs that are well used."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from abscot.common.hardware import GPUS, Gpu
from abscot.method.lineage import Training, listed_baselines, trainings
from abscot.method.phases import PHASES
from abscot.method.schedules import GROUNDED, MODEL_WITH_COT, SAMPLED
from abscot.model.shape import ModelShape
from abscot.pipeline import estimate
from abscot.pipeline.preflight_lengths import Lengths
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

CODEBOOK = "codebook"  # the stage
STEP_TOKENS = 40  # of a step of a CoT, where there are no shards to count them in


@dataclass(frozen=True)
class Work:
    """What the stages of a recipe compute. phases: of preflight, by their names."""

    recipe: Recipe
    run: Run
    shape: ModelShape
    lengths: Lengths
    phases: dict[str, dict]

    def hours(self, world_size: int, mfu: float) -> list[dict]:
        """GPU-hours by kind and by stage, and hours on `world_size` GPUs, for each kind of GPU.
        Random traces count nothing.
        """
        return [self._hours_on(gpu, world_size, mfu) for gpu in GPUS]

    def _hours_on(self, gpu: Gpu, world_size: int, mfu: float) -> dict:
        stages, kinds = {}, dict.fromkeys(("training", "channel", "trace", "grounding"), 0.0)
        for stage, kind, seconds in self._stages(gpu, mfu):
            stages[stage] = stages.get(stage, 0.0) + seconds / 3600
            kinds[kind] += seconds / 3600
        # One process makes the codebook; all else is spread over the GPUs.
        alone = stages.get(CODEBOOK, 0.0)
        return {
            "gpu": gpu.name,
            **{f"{kind}_gpu_hours": hours for kind, hours in kinds.items()},
            "stage_gpu_hours": stages,
            "wall_hours": alone + (sum(kinds.values()) - alone) / world_size,
        }

    def _stages(self, gpu: Gpu, mfu: float) -> Iterator[tuple[str, str, float]]:
        """(stage, kind of work, GPU seconds), in order."""
        planned = trainings(self.recipe, self.run) + listed_baselines(self.recipe, self.run)
        sources = [(training, training.trace_source) for training in planned]
        first = next((t for t, source in sources if source == GROUNDED), None)
        traces_s = functools.cache(lambda name, source: self._traces_s(name, source, gpu, mfu))
        for training, source in sources:
            if training is first:
                fitted = not self.recipe.grounding.codebook
                yield CODEBOOK, "grounding", self._codebook_s(gpu, mfu) if fitted else 0.0
            phase = self.phases[training.phase.name]
            if source:
                kind = "grounding" if source == GROUNDED else "trace"
                yield f"traces_{training.tag}", kind, traces_s(phase["phase"], source)
            train_s = training.epochs * phase["flops"] / phase["utilisation"] / (mfu * gpu.flops)
            yield f"train_{training.tag}", "training", train_s
            if training.phase.hidden and self.recipe.train.channel_rows:
                yield f"train_{training.tag}", "channel", self._channel_s(training, gpu, mfu)

    def _traces_s(self, name: str, source: str, gpu: Gpu, mfu: float) -> float:
        lengths, rules, phase = self.lengths, self.recipe.traces, PHASES[name]
        share = self.phases[name]["trace_rows"] / len(lengths.prompt)
        if source == GROUNDED:
            return share * self._grounding_s(gpu, mfu)
        if source not in SAMPLED:
            return 0.0
        with_cot = phase.sees_cot or source == MODEL_WITH_COT
        prompts = lengths.prompt + (lengths.cot if with_cot else 0)
        sampling_s = estimate.trace_seconds(
            self.shape, gpu, prompts, rules.m_max, mfu=mfu, samples=rules.best_of
        )
        if rules.best_of > 1:
            texts = lengths.prompt + lengths.answer + rules.m_max + 2
            sampling_s += rules.best_of * estimate.scoring_seconds(self.shape, gpu, texts, mfu=mfu)
        return share * sampling_s

    def _grounding_s(self, gpu: Gpu, mfu: float) -> float:
        """A state for each step of all rows: the layers below it, over X and C."""
        depth = round(self.recipe.grounding.layer * self.shape.layers)
        tokens = self.lengths.prompt + self.lengths.cot
        return estimate.states_seconds(self.shape, gpu, tokens, depth, mfu=mfu)

    def _codebook_s(self, gpu: Gpu, mfu: float) -> float:
        """The rows that give grounding.fit_steps states, each at most m_max."""
        lengths, most = self.lengths, self.recipe.traces.m_max
        if lengths.store:
            rows = range(0, len(lengths.cot), max(1, len(lengths.cot) // 1000))
            steps = np.array([len(lengths.store.row(row).cot_steps) for row in rows])
        else:
            steps = lengths.cot // STEP_TOKENS
        states = np.clip(steps, 1, most).mean() * len(lengths.cot)
        return min(1.0, self.recipe.grounding.fit_steps / states) * self._grounding_s(gpu, mfu)

    def _channel_s(self, training: Training, gpu: Gpu, mfu: float) -> float:
        """A forward over the rows of the channel every so many steps, and at the end."""
        phase, train = self.phases[training.phase.name], self.recipe.train
        times = phase["steps_per_epoch"] * training.epochs // train.channel_every_steps + 1
        # Of the three parts of a training step, forward and twice the backward, it is one.
        share = train.channel_rows / phase["rows"] / 3
        return times * share * phase["flops"] / (mfu * gpu.flops)
