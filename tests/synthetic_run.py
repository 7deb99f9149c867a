"""The files of a finished run, made from a seed: what the report is written from."""

import json
from pathlib import Path

import numpy as np

from abscot.common import files
from abscot.common.draws import rng
from abscot.generation import collapse
from abscot.method.lineage import round_models, trainings
from abscot.method.vocab import codebook_tokens
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run, claim

BENCHMARKS = ("world", "gsm8k")


def make_run(root: Path, rounds: int = 3, name: str = "synthetic", **overrides) -> Run:
    """A finished run's files, made from a seed: verbal CoT 93% right, each round better with fewer
    tokens.
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
    run.shards.mkdir()
    manifest = {"schema_version": 1, "rows": 4000, "counts": {"kept": 4000, "too short": 12}}
    files.write_json_atomic(run.shards / "manifest.json", manifest)
    for model in round_models(recipe, run):
        for benchmark in recipe.eval.benchmarks:
            for mode in model.modes:
                add_results(run, mode, model.name, benchmark, model.round)
    for training in trainings(recipe, run):
        add_phase(run, training.tag, recipe)
    return run


def add_results(
    run: Run,
    mode: str,
    model: str,
    benchmark: str,
    round_: int,
    problems: int = 200,
    samples: int = 1,
    **change,
):
    draw = rng(mode, model, benchmark)
    chance, reasoning = {"verbal": (0.93, 140), "no_cot": (0.22, 0)}.get(
        mode, (0.35 + 0.12 * round_, 18 - 3 * round_)
    )
    rows = []
    for index in range(problems):
        for sample in range(samples):
            n_reasoning = int(draw.poisson(reasoning))
            n_response = int(draw.integers(6, 12))
            gold = int(draw.integers(100))
            correct = bool(draw.random() < chance)
            tokens = [
                codebook_tokens()[i]
                for i in draw.integers(64, size=n_reasoning if mode == "abstract" else 0)
            ]
            answer = gold if correct else gold + 1
            rows.append(
                {
                    "id": f"p{index:03}",
                    "problem": f"Ann has {gold} pens and gets none. How many?",
                    "gold": str(gold),
                    "trace_ids": list(range(len(tokens))),
                    "trace_tokens": tokens,
                    "reasoning": "",
                    "response": f"\\boxed{{{answer}}}",
                    "prediction": str(answer),
                    "correct": correct,
                    "n_abstract_tokens": len(tokens),
                    "n_reasoning_tokens": n_reasoning,
                    "n_response_tokens": n_response,
                    "n_total_tokens": n_reasoning + n_response,
                    "finish_reason": "length" if index % 50 == 7 else "stop",
                    "sample": sample,
                    "scorer": "math-verify",
                    **change,
                }
            )
    run.results.mkdir(exist_ok=True)
    stem = run.results / f"{mode}_{model}_{benchmark}"
    Path(f"{stem}.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    meta = {
        "mode": mode,
        "round": round_ or None if model in ("sft_no_cot", "sft_cot", "pause") else round_,
        "model": model,
        "benchmark": benchmark,
        "seed": 0,
        "temperature": 0.0,
        "wall_s": 12.5,
        "tokens_per_s": 800.0,
        "model_fingerprint": "0123456789abcdef",
    }
    files.write_json_atomic(Path(f"{stem}.meta.json"), meta)


def add_phase(run: Run, tag: str, recipe, steps: int = 120) -> None:
    draw, base = rng(tag), 2.4 / int(tag[2] if tag[2].isdigit() else 1)
    entries = []
    for step in range(steps):
        z, y = (
            base * (0.5 + np.exp(-step / 25)) + draw.normal(0, 0.04),
            base * (0.1 + np.exp(-step / 15)) + draw.normal(0, 0.03),
        )
        lr = 1e-3 * min((step + 1) / 6, 0.5 * (1 + np.cos(np.pi * step / steps)))
        entries.append(
            {
                "step": step,
                "epoch": 0,
                "loss": 0.6 * z + 0.4 * y,
                "loss_z": z,
                "loss_y": abs(y),
                "lr": lr,
                "grad_norm": 1.0,
                "supervised_tokens": 900,
                "examples": 16,
                "tokens": 5000,
                "tokens_per_s": 10_000.0,
                "wall_s": 0.5,
            }
        )
    meta = {"device": "cpu", "world_size": 2, "num_steps": steps, "torch": "2.13.0"}
    files.write_json_atomic(run.train_log(tag), {"meta": meta, "steps": entries})
    if tag.startswith("pi"):
        add_traces(run, tag, recipe)


def add_traces(run: Run, tag: str, recipe, constant: int | None = None) -> None:
    draw, m_max = rng(tag, "traces"), recipe.traces.m_max
    lengths = (
        np.full(2000, constant)
        if constant
        else np.clip(draw.poisson(9, 2000), recipe.traces.m_min, m_max)
    )
    weights = 1 / np.arange(1, 65) ** (0.2 if tag == "pi1_phaseA" else 1.1)
    values = draw.choice(64, lengths.sum(), p=weights / weights.sum())
    offsets = np.concatenate([[0], lengths.cumsum()])
    stats = collapse.statistics(values, offsets, range(64), m_max, {}, 0)
    stats["warnings"] = collapse.warnings(stats, recipe.traces.m_min, m_max)
    with files.publish(run.traces(tag)) as directory:
        files.write_json_atomic(directory / "stats.json", stats)
