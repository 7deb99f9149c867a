"""Part traces of `bench.py gpu`: one chunk of a round's traces as launch/traces.py makes it, by
vLLM, at prompts of 20k tokens, of a model that launch/train.py has exported.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from abscot.bench.gpu_part import BINS, TINY, TINY_BINS, Part
from abscot.bench.gpu_run import Workshop
from abscot.bench.gpu_trainer import Case, begun, ranks_of, started
from abscot.generation.requests import Completion, Request, Stepped, untold
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_set import stats_of
from abscot.method.lineage import Training, round_model
from abscot.method.phases import loop
from abscot.model.handover import Probe, divergence

ROWS, PROMPT_TOKENS = 64, 20_000
TINY_ROWS, TINY_PROMPT_TOKENS = 8, 200
PROBED = 4  # rows that get further samples
EXPORT_S, CHUNK_S = 150, 180


def measure(part: Part) -> None:
    """Both in one case: the traces are of that very export."""
    part.case("chunk", 10 if part.tiny else EXPORT_S + CHUNK_S, lambda: _measured(part))


def _measured(part: Part) -> dict:
    shape, kind, zero = (TINY, "full", "cpu") if part.tiny else ("4B", "lora", "zero3")
    case = Case(shape, kind, zero, min(TINY_BINS if part.tiny else BINS))
    ranks = 1 if part.tiny else ranks_of(part)
    workshop = Workshop(part.work)
    with begun(workshop, case, ranks, 1, case.keys()) as training:
        began_s = time.monotonic()
        with started(part, "export", training) as command:
            if command.wait(part.left_s):
                raise RuntimeError(command.why())
        trained_s = time.monotonic() - began_s
        return {"training_s": trained_s, **_chunk(part, workshop, shape, training.export)}


def _chunk(part: Part, workshop: Workshop, shape: str, model: Path) -> dict:
    """The traces of a second round whose first round's model is `model`."""
    from abscot.generation.vllm_engine import VllmEngine

    job = open_job(_second_round(part, workshop, shape, model))
    recipe, began_s = job.recipe, time.monotonic()
    engine = VllmEngine(job.maker, recipe.inference, recipe.codebook_size)
    start_s = time.monotonic() - began_s
    counted = Counted(engine)
    generate(job, engine=counted)
    rows = Asked.sum(each for each in counted.asked if not each.repeated_tokens)
    sessions = Asked.sum(each for each in counted.asked if each.repeated_tokens)
    return {
        "engine_start_s": start_s,
        "handover_kl": _handover_kl(engine, job.maker),
        "traces": rows.requests,
        "traces_s": rows.seconds,
        "traces_per_s": rows.requests / rows.seconds,
        "prompt_tokens_mean": rows.prompt_tokens / rows.requests,
        "trace_tokens_mean": stats_of(job.final).length_mean,
        "prefill_tokens_per_s": (rows.prompt_tokens - rows.cached_tokens) / rows.seconds,
        "sessions_repeated_share": sessions.repeated_tokens / sessions.prompt_tokens,
        "sessions_cached_share": sessions.cached_tokens / sessions.prompt_tokens,
    }


def _handover_kl(engine, model: Path) -> float:
    """Between the weights that were trained and the engine that has read the export."""
    probe = Probe.left_in(model)
    (served,) = engine.surprisals([probe.tokens], [len(probe.surprisals)])
    return divergence(probe.surprisals, served)


def _second_round(part: Part, workshop: Workshop, shape: str, model: Path) -> Training:
    """Its traces are sampled with the CoT in sight."""
    first, *others = loop()
    rows, prompt = (TINY_ROWS, TINY_PROMPT_TOKENS) if part.tiny else (ROWS, PROMPT_TOKENS)
    x, y = min(200, prompt // 4), min(600, prompt // 4)
    keys = {
        "rounds": 2,
        "train__phase_epochs": "{" + ", ".join(f"{phase.name}: 0" for phase in others) + "}",
        "train__capacity_tokens": 2 * prompt,
        "traces__m_min": 8,
        "traces__m_max": 32 if part.tiny else 128,
        "traces__probe_prompts": PROBED,
        "inference__max_model_len_tokens": 512 if part.tiny else 2 * prompt,
    }
    if part.tiny:
        keys["inference__cpu_kv_cache_gib"] = 1
    recipe, run = workshop.run(shape, "traces", [(x, prompt - x, 10, y)] * rows, **keys)
    round_one = round_model(recipe, run, 1)
    os.symlink(model, round_one)
    return Training(recipe, run, first, 2)


@dataclass
class Asked:
    """What an engine was asked at a time. repeated_tokens: of prompts that were asked before;
    cached_tokens: those that it did not compute again.
    """

    requests: int = 0
    prompt_tokens: int = 0
    repeated_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def sum(cls, several: Iterable["Asked"]) -> "Asked":
        columns = zip(*(astuple(each) for each in several), strict=True)
        return cls(*map(sum, columns))


class Counted:
    """An engine, and what it was asked."""

    def __init__(self, engine):
        self.engine, self.window_tokens = engine, engine.window_tokens
        self.asked: list[Asked] = []

    def stream(
        self, requests: Sequence[Request], stepped: Stepped = untold
    ) -> Iterator[tuple[int, list[Completion]]]:
        prompts = [tuple(request.prompt) for request in requests]
        tokens, began_s = sum(map(len, prompts)), time.monotonic()
        asked = Asked(len(prompts), tokens, tokens - sum(map(len, set(prompts))))
        for index, stages in self.engine.stream(requests, stepped):
            asked.cached_tokens += sum(stage.cached_tokens for stage in stages)
            yield index, stages
        asked.seconds = time.monotonic() - began_s
        self.asked.append(asked)

    def surprisals(self, texts, positions, stepped: Stepped = untold):
        return self.engine.surprisals(texts, positions, stepped)

    def forget(self) -> None:
        self.engine.forget()
