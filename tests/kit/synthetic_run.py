"""The files of a finished run, made from a seed: what the report is written from."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from abscot.common import files
from abscot.common.draws import rng
from abscot.data.manifest import SCHEMA_VERSION, hash_of
from abscot.evaluation.results import (
    Environment,
    ResultMeta,
    ResultRow,
    Totals,
    meta_file,
    result_name,
    rows_file,
    write_rows,
)
from abscot.generation import collapse
from abscot.generation.codebook import META, CodebookMeta, LevelCounts
from abscot.generation.trace_records import SET_SCHEMA, STATS, TRACES, TraceStats
from abscot.method.lineage import round_models, trainings
from abscot.method.phases import baselines
from abscot.method.vocab import codebook_tokens
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run, claim
from abscot.training.record import ChannelEntry, StepEntry, TrainLog, TrainLogMeta

BENCHMARKS = ("world", "gsm8k")


def make_run(root: Path, rounds: int = 3, name: str = "synthetic", **overrides) -> Run:
    """A finished run's files, made from a seed: the base's reasoning in words 93% right, each round
    better with fewer tokens.
    """
    settings = {
        "name": name,
        "run_root": root,
        "rounds": rounds,
        "eval.benchmarks": json.dumps(list(BENCHMARKS)),
        **overrides,
    }
    recipe = load_recipe(None, [f"{key}={value}" for key, value in settings.items()])
    run = claim(recipe)
    with files.publish(run.shards) as directory:
        write_manifest(directory, rows=4000, counts={"kept": 4000, "rejected": {"too_short": 12}})
    for model in round_models(recipe, run):
        for benchmark in recipe.eval.benchmarks:
            for mode in model.modes:
                add_results(run, mode, model.name, benchmark, model.round)
    for training in trainings(recipe, run):
        add_phase(run, training.tag, recipe)
    return run


def write_manifest(directory: Path, **change) -> None:
    """The manifest of shards that are not there."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": "0123456789abcdef",
        "chat_template": "0123456789abcdef",
        "turn_end_token": 4,
        "no_think_suffix_tokens": [],
        "think_open_tokens": [],
        "think_close_tokens": [],
        "rows": 0,
        "counts": {},
        "lengths": {},
        "shards": [],
        **change,
    }
    files.write_json_atomic(directory / "manifest.json", {**manifest, "hash": hash_of(manifest)})


def write_world(run: Run) -> None:
    """A world without problems."""
    with files.publish(run.world) as directory:
        for name in ("rows", "heldout"):
            (directory / f"{name}.jsonl").write_text("")


def add_results(
    run: Run,
    mode: str,
    model: str,
    benchmark: str,
    round_: int,
    problems: int = 200,
    samples: int = 1,
    chance: float | None = None,
    **change,
):
    """chance: of a right answer; None: the mode's."""
    draw = rng(mode, model, benchmark)
    of_mode, reasoning = {
        "verbal": (0.93, 140),
        "thinking": (0.93, 140),
        "no_cot": (0.22, 0),
        "abstract_swapped": (0.2, 18 - 3 * round_),
    }.get(mode, (0.35 + 0.12 * round_, 18 - 3 * round_))
    traced = mode.startswith("abstract")
    chance, rows = of_mode if chance is None else chance, []
    if "correct" in change:
        change.setdefault("correct_any", change["correct"])
    for index in range(problems):
        for sample in range(samples):
            n_reasoning = int(draw.poisson(reasoning))
            n_response = int(draw.integers(6, 12))
            gold = int(draw.integers(100))
            correct = bool(draw.random() < chance)
            trace = draw.integers(64, size=n_reasoning if traced else 0)
            tokens = [codebook_tokens()[i] for i in trace]
            answer = gold if correct else gold + 1
            row = result_row(
                id=f"p{index:03}",
                sample=sample,
                problem=f"Ann has {gold} pens and gets none. How many?",
                gold=str(gold),
                trace_of=f"p{(index + 1) % problems:03}" if mode == "abstract_swapped" else None,
                trace_ids=list(range(len(tokens))),
                trace_tokens=tokens,
                response=f"\\boxed{{{answer}}}",
                finish_reason="length" if index % 50 == 7 else "stop",
                n_abstract_tokens=len(tokens),
                n_reasoning_tokens=n_reasoning,
                n_response_tokens=n_response,
                n_total_tokens=n_reasoning + n_response,
                prediction=str(answer),
                correct=float(correct),
                correct_any=float(correct),
                scorer="math-verify",
            )
            rows.append(row.model_copy(update=change))
    name = result_name(mode, model, benchmark)
    write_rows(rows_file(run, name), rows)
    sealed = {"rows_sha256": files.sha256_file(rows_file(run, name)), "samples": samples}
    meta = result_meta(mode, model, benchmark, round_, rows, **sealed)
    meta.write(meta_file(run, name))


def result_meta(
    mode: str, model: str, benchmark: str, round_: int, rows: list[ResultRow], **change
) -> ResultMeta:
    baseline = model in [phase.name for phase in baselines()]
    traced = mode.startswith("abstract")
    meta = ResultMeta(
        mode=mode,
        round=None if baseline else round_,
        model=model,
        benchmark=benchmark,
        model_fingerprint="0123456789abcdef",
        seed=0,
        samples=1,
        limit=None,
        max_reasoning_tokens=0,
        max_answer_tokens=1024,
        answer_temperature=0.0,
        answer_top_p=1.0,
        trace_temperature=0.0 if traced else None,
        trace_top_p=1.0 if traced else None,
        m_min=4 if traced else None,
        m_max=128 if traced else None,
        **dict(Totals.counted(rows)),
        rows_sha256="",
        wall_s=12.5,
        tokens_per_s=800.0,
        environment=Environment(engine="VllmEngine", dtype="bfloat16", device="a CPU"),
        prompt_tokens_computed=[1000],
    )
    return meta.model_copy(update=change)


def result_row(**change) -> ResultRow:
    row = ResultRow(
        id="p0",
        sample=0,
        problem="1+1?",
        gold="2",
        trace_ids=[],
        trace_tokens=[],
        reasoning="",
        response="2",
        finish_reason="stop",
        n_abstract_tokens=0,
        n_reasoning_tokens=0,
        n_response_tokens=0,
        n_total_tokens=0,
        n_abstract_in_response=0,
        prompt_cut=False,
    )
    return row.model_copy(update=change)


def add_phase(run: Run, tag: str, recipe, steps: int = 120) -> None:
    draw, base = rng(tag), 2.4 / int(tag[2] if tag[2].isdigit() else 1)
    entries = []
    for step in range(steps):
        z, y = (
            base * (0.5 + np.exp(-step / 25)) + draw.normal(0, 0.04),
            base * (0.1 + np.exp(-step / 15)) + draw.normal(0, 0.03),
        )
        lr = 1e-3 * min((step + 1) / 6, 0.5 * (1 + np.cos(np.pi * step / steps)))
        entries.append(step_entry(step, loss=0.6 * z + 0.4 * y, loss_z=z, loss_y=abs(y), lr=lr))
    TrainLog(meta=train_log_meta(tag=tag, num_steps=steps), steps=entries).write(run.train_log(tag))
    if tag.startswith("pi"):
        add_traces(run, tag, recipe)


def step_entry(step: int, **change) -> StepEntry:
    entry = StepEntry(
        step=step,
        epoch=0,
        loss=1.0,
        loss_z=1.0,
        loss_y=1.0,
        lr=1e-3,
        grad_norm=1.0,
        supervised_tokens=900,
        tokens=5000,
        tokens_per_s=10_000.0,
        mfu=None,
        peak_bytes=10**9,
        wall_s=0.5,
        examples=16,
        rows_digest=0,
    )
    return entry.model_copy(update=change)


def channel_entry(step: int, channel: float, **change) -> ChannelEntry:
    entry = ChannelEntry(step=step, rows=200, channel=channel, channel_tokens=0.5 + channel / 2)
    return entry.model_copy(update=change)


def train_log_meta(**change) -> TrainLogMeta:
    meta = TrainLogMeta(
        tag="pi1_phaseA",
        round=1,
        phase="A",
        world_size=2,
        plan_hash="0123456789abcdef",
        num_steps=1,
        rows=4000,
        epochs=1,
        seed=0,
        peak_lr=1e-3,
    )
    return meta.model_copy(update=change)


def add_traces(run: Run, tag: str, recipe, constant: int | None = None) -> None:
    draw, m_max, size = rng(tag, "traces"), recipe.traces.m_max, recipe.codebook_size
    lengths = (
        np.full(2000, constant)
        if constant
        else np.clip(draw.poisson(9, 2000), recipe.traces.m_min, m_max)
    )
    weights = 1 / np.arange(1, size + 1) ** (0.2 if tag == "pi1_phaseA" else 1.1)
    values = draw.choice(size, lengths.sum(), p=weights / weights.sum())
    offsets = np.concatenate([[0], lengths.cumsum()])
    found = collapse.statistics(values, offsets, range(size), m_max, {}, 0)
    warned = collapse.warnings(found, recipe.traces.m_min, m_max)
    stats = TraceStats(source="sampled", cut_prompts=0, empty_traces=0, warnings=warned, **found)
    codes = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
    columns = [range(len(lengths)), [f"row/{i}" for i in range(len(lengths))], codes]
    with files.publish(run.traces(tag)) as directory:
        write_traces(directory, pa.table(columns, schema=SET_SCHEMA))
        files.write_json_atomic(directory / STATS, stats.model_dump(exclude_none=True))


def write_traces(directory: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(directory / TRACES), SET_SCHEMA) as writer:
        writer.write_table(table)


def add_codebook(run: Run, *levels: list[int]) -> None:
    """codebook/, without centroids. levels: how often each code was used."""
    meta = CodebookMeta(
        version=CodebookMeta.VERSION,
        base_fingerprint="0123456789abcdef",
        layer=0.34,
        layer_number=10,
        num_layers=28,
        position="before_result",
        hidden_size=64,
        codebook_size=len(levels[0]),
        places=128,
        seed=0,
        rows=7,
        states=sum(levels[0]),
        levels=[LevelCounts(counts=counts) for counts in levels],
    )
    with files.publish(run.codebook) as directory:
        meta.write(directory / META)
