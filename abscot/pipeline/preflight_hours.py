"""How long the stages of a recipe will take, by their kind of work."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from abscot.method.lineage import Training, listed_baselines, trainings
from abscot.method.phases import PHASES, Phase
from abscot.method.schedules import GROUNDED, SAMPLED
from abscot.pipeline.preflight_lengths import Lengths
from abscot.pipeline.speed import Load, Speed, causal
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

CODEBOOK = "codebook"  # the stage
STEP_TOKENS = 40  # of a step of a CoT, where there are no shards to count them in


@dataclass(frozen=True)
class Work:
    """What the stages of a recipe compute. phases: of preflight, by their names."""

    recipe: Recipe
    run: Run
    lengths: Lengths
    phases: dict[str, dict]

    @functools.cached_property
    def trainings(self) -> list[Training]:
        """In order, the baselines last."""
        return trainings(self.recipe, self.run) + listed_baselines(self.recipe, self.run)

    def hours(self, speed: Speed) -> dict:
        """GPU-hours by kind and by stage, hours on all GPUs, MFU. Random traces count nothing."""
        stages, kinds = {}, dict.fromkeys(("training", "channel", "trace", "grounding"), 0.0)
        for stage, kind, seconds in self._stages(speed):
            stages[stage] = stages.get(stage, 0.0) + seconds / 3600
            kinds[kind] += seconds / 3600
        # One process makes the codebook; all else is spread over the GPUs.
        alone = stages.get(CODEBOOK, 0.0)
        flops = sum(t.epochs * speed.training_flops(self._load(t.phase)) for t in self.trainings)
        return {
            "gpu": speed.gpu.name,
            "mfu": flops / (self.training_s(speed) * speed.gpu.flops),
            "phases": {name: self._of_phase(PHASES[name], speed) for name in self.phases},
            **{f"{kind}_gpu_hours": hours for kind, hours in kinds.items()},
            "stage_gpu_hours": stages,
            "wall_hours": alone + (sum(kinds.values()) - alone) / speed.world_size,
        }

    def training_s(self, speed: Speed) -> float:
        """GPU seconds of all trainings."""
        return sum(t.epochs * sum(self._epoch_s(t.phase, speed).values()) for t in self.trainings)

    def longest_step_s(self, name: str, speed: Speed) -> float:
        """Seconds of a step whose every micro-batch is the most expensive bin of the phase."""
        phase = self.phases[name]
        load = Load(*phase["largest_bin"].values(), calls=phase["attention_calls"])
        bin_s, bins = sum(speed.training_s(load).values()), phase["most_bins_per_rank"]
        return bins * bin_s + speed.communication_s(bins, bin_s)

    def _load(self, phase: Phase) -> Load:
        of = self.phases[phase.name]
        return Load(of["tokens"], of["pairs"], of["supervised_tokens"], of["attention_calls"])

    def _epoch_s(self, phase: Phase, speed: Speed) -> dict[str, float]:
        """GPU seconds by part."""
        of, parts = self.phases[phase.name], speed.training_s(self._load(phase))
        compute_s = sum(parts.values())
        steps = of["steps_per_epoch"] * speed.world_size  # of single ranks
        micro_steps = max(1.0, of["bins"] / steps)
        alone_s = speed.communication_s(micro_steps, compute_s / (steps * micro_steps))
        waiting_s = compute_s * (1 / of["utilisation"] - 1)  # for the rank with the most work
        return {**parts, "communication": steps * alone_s, "waiting": waiting_s}

    def _of_phase(self, phase: Phase, speed: Speed) -> dict:
        """mfu: as the train log counts it. bin_s: seconds of a mean bin, by part."""
        parts, bins = self._epoch_s(phase, speed), self.phases[phase.name]["bins"]
        flops = speed.training_flops(self._load(phase))
        return {
            "mfu": flops / (sum(parts.values()) * speed.gpu.flops),
            "bin_s": {name: seconds / bins for name, seconds in parts.items()},
        }

    def _stages(self, speed: Speed) -> Iterator[tuple[str, str, float]]:
        """(stage, kind of work, GPU seconds), in order."""
        sources = [(training, training.trace_source) for training in self.trainings]
        first = next((t for t, source in sources if source == GROUNDED), None)
        traces_s = {}  # those of a phase from one source cost the same in every round
        for training, source in sources:
            if training is first:
                fitted = not self.recipe.grounding.codebook
                yield CODEBOOK, "grounding", self._codebook_s(speed) if fitted else 0.0
            phase = training.phase
            if source:
                kind = "grounding" if source == GROUNDED else "trace"
                of = (phase.name, source)
                if of not in traces_s:
                    traces_s[of] = self._traces_s(training, speed)
                yield f"traces_{training.tag}", kind, traces_s[of]
            train_s = training.epochs * sum(self._epoch_s(phase, speed).values())
            yield f"train_{training.tag}", "training", train_s
            if phase.hidden and self.recipe.train.channel_rows:
                yield f"train_{training.tag}", "channel", self._channel_s(training, speed)

    def _traces_s(self, training: Training, speed: Speed) -> float:
        lengths, rules, source = self.lengths, self.recipe.traces, training.trace_source
        share = self.phases[training.phase.name]["trace_rows"] / len(lengths.prompt)
        if source == GROUNDED:
            return share * self._grounding_s(speed)
        if source not in SAMPLED:
            return 0.0
        prompts = lengths.prompt + (lengths.cot if training.traces_see_cot else 0)
        vllm = speed.of_vllm()
        sampling_s = vllm.trace_s(prompts, rules.m_max, rules.best_of)
        if rules.best_of > 1:
            texts = lengths.prompt + lengths.answer + rules.m_max + 2
            sampling_s += rules.best_of * vllm.forward_s(causal(texts, scored=True))
        return share * sampling_s

    def _grounding_s(self, speed: Speed) -> float:
        """A state for each step of all rows: the layers below it, over X and C."""
        depth = round(self.recipe.grounding.layer * speed.shape.layers)
        return speed.forward_s(causal(self.lengths.prompt + self.lengths.cot), depth)

    def _codebook_s(self, speed: Speed) -> float:
        """The rows that give grounding.fit_steps states, each at most m_max."""
        lengths, most = self.lengths, self.recipe.traces.m_max
        if lengths.store:
            rows = range(0, len(lengths.cot), max(1, len(lengths.cot) // 1000))
            steps = np.array([len(lengths.store.row(row).cot_steps) for row in rows])
        else:
            steps = lengths.cot // STEP_TOKENS
        states = np.clip(steps, 1, most).mean() * len(lengths.cot)
        return min(1.0, self.recipe.grounding.fit_steps / states) * self._grounding_s(speed)

    def _channel_s(self, training: Training, speed: Speed) -> float:
        """A forward over the rows of the channel every so many steps, and at the end."""
        phase, train = self.phases[training.phase.name], self.recipe.train
        times = phase["steps_per_epoch"] * training.epochs // train.channel_every_steps + 1
        share = train.channel_rows / phase["rows"]
        return times * share * speed.forward_s(self._load(training.phase))
