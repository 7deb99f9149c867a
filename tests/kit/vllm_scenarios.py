"""What tests/engines/test_vllm.py looks at: one engine generates everything, in its own process.

python -m kit.vllm_scenarios RUN_ROOT OUT.json, where RUN_ROOT holds a tiny run
(kit.tiny_run.make_tiny_run).
"""

import dataclasses
import itertools
import json
import shutil
import sys
from pathlib import Path

from abscot.common import files
from abscot.common.draws import keyed_seed
from abscot.evaluation import benchmarks
from abscot.evaluation.evaluate import _generate, evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.evaluation.modes import MODES, Asker, Question
from abscot.generation.requests import (
    Request,
    Sampling,
    answered_request,
    codebook_tokens_of,
    trace_request,
)
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_set import TraceSet, stats_of
from abscot.generation.transformers_engine import TransformersEngine
from abscot.generation.vllm_engine import VllmEngine
from abscot.method.lineage import round_model
from abscot.method.vocab import AbstractVocab
from abscot.model import custom_generate
from abscot.model.chat_model import DecodingRules
from abscot.model.handover import check_handover
from abscot.recipe.run import Run
from kit import tiny_run

PROMPTS = 48


def main(root: Path, out: Path) -> None:
    recipe = tiny_run.tiny_recipe(root)
    run = Run.of(recipe)
    for copy in (tiny_run.training_of(recipe, run, 1, "A").export, round_model(recipe, run, 1)):
        shutil.copytree(run.base, copy)
    engine = VllmEngine(run.base, recipe.inference, recipe.codebook_size)
    computed = count_scheduled_tokens(engine)
    found = {"base": str(run.base), "window_tokens": engine.window_tokens}
    found["stages"] = two_stages(engine, recipe, run, computed)
    found["one by one"] = one_by_one(engine, run, recipe)
    found["greedy"] = greedy(engine, run, recipe)
    found["surprisals"] = surprisals(engine, run, recipe)
    found["sets"] = trace_sets(engine, recipe, run)
    found["answers"] = answers(engine, recipe, run)
    found["handover"] = handover(engine, run)
    out.write_text(json.dumps(found))


def handover(engine, run) -> list[str | None]:
    """What the engine says to the probabilities that an export recorded: the right ones, and those
    of other weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokens, said = [7 * i % 250 for i in range(40)], []
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.float32)(
            torch.tensor([tokens])
        ).logits[0]
    right = torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor(tokens[1:]), reduction="none"
    )[-16:]
    for wrong in (0.0, 0.3):
        files.seal(run.base, {"probe": {"tokens": tokens, "surprisals": (right + wrong).tolist()}})
        try:
            check_handover(engine, run.base)
            said.append(None)
        except RuntimeError as error:
            said.append(str(error))
    return said


def count_scheduled_tokens(engine) -> list[int]:
    """[tokens that vLLM's scheduler had computed so far]"""
    scheduler, total = engine.llm.llm_engine.engine_core.engine_core.scheduler, [0]
    schedule = scheduler.schedule

    def counted(*arguments, **options):
        output = schedule(*arguments, **options)
        total[0] += output.total_num_scheduled_tokens
        return output

    scheduler.schedule = counted
    return total


def two_stages(engine, recipe, run, computed) -> dict:
    """Traces and answers: in one decode, after an edited trace, as separate requests, and all of it
    again.
    """
    vocab, newline = AbstractVocab.of(tiny_run.tiny_tokenizer()), newline_tokens()
    prompts = [
        [*((i * 7 + j * 3) % 250 for j in range(60 + i % 9)), vocab.begin_id]
        for i in range(PROMPTS)
    ]
    free = Sampling(max_tokens=8, stop_ids=(3,))

    def answered(i):
        seeded = dataclasses.replace(free, seed=keyed_seed("t", i))
        return answered_request(prompts[i], vocab, recipe.traces, newline, seeded)

    def edited(i):
        def answer(completion):
            trace = codebook_tokens_of(completion, vocab, recipe.traces)[::-1]
            return Request([*prompts[i], *trace, vocab.end_id, *newline], free)

        first = trace_request(prompts[i], vocab, recipe.traces, keyed_seed("t", i))
        return dataclasses.replace(first, then=answer)

    def run_all(requests) -> dict:
        engine.forget()
        before = computed[0]
        out = dict(engine.stream(list(requests)))
        stages = [[dataclasses.asdict(c) for c in out[i]] for i in range(len(out))]
        return {"stages": stages, "scheduled_tokens": computed[0] - before}

    first = run_all(map(answered, range(PROMPTS)))
    alone = [
        Request([*p, *s[0]["tokens"], *newline], free)
        for p, s in zip(prompts, first["stages"], strict=True)
    ]
    return {
        "one decode": first,
        "again": run_all(map(answered, range(PROMPTS))),
        "edited": run_all(map(edited, range(PROMPTS))),
        "alone": run_all(alone),
        "long": run_all([trace_request(prompts[0] * 3, vocab, recipe.traces, 0)]),
    }


def one_by_one(engine, run, recipe) -> dict:
    """Requests of one and of two decodes: their completions, and (steps that the engine had done,
    stage, token) of their tokens as they come. Of each the tokens are first left after the second.
    """
    steps, step = [0], engine.llm.llm_engine.step

    def counted():
        steps[0] += 1
        return step()

    engine.llm.llm_engine.step = counted
    asker, found = Asker(run.base, recipe, ["abstract", "abstract_permuted"], engine), {}
    (problem, *_) = benchmarks.load("world", recipe, run)
    for mode in ("abstract", "abstract_permuted", "verbal"):
        request = asker.request(Question(problem, mode, 0))
        ((_, stages),) = engine.stream([request])
        left = list(itertools.islice(engine.tokens(request), 2))
        begun = steps[0]
        tokens = [(steps[0] - begun, *token) for token in engine.tokens(request)]
        made = [completion.tokens for completion in stages]
        found[mode] = {"stages": made, "left": left, "tokens": tokens}
    engine.llm.llm_engine.step = step
    return found


def newline_tokens() -> list[int]:
    return tiny_run.tiny_tokenizer().encode("\n", add_special_tokens=False)


def greedy(engine, run, recipe) -> dict:
    """The same greedy requests by vLLM, by transformers, and by the code that exports carry."""
    vocab = AbstractVocab.of(tiny_run.tiny_tokenizer())
    rules = dataclasses.replace(recipe.traces, temperature=0.0)
    requests = [trace_request([*range(5 + i), vocab.begin_id], vocab, rules, 0) for i in range(12)]
    newline, free = newline_tokens(), Sampling(max_tokens=8, stop_ids=(3,))
    asked = [answered_request(r.prompt, vocab, rules, newline, free) for r in requests]
    other = TransformersEngine(run.base, recipe.inference)
    sampled = [trace_request([5, vocab.begin_id], vocab, recipe.traces, i) for i in range(40)]
    return {
        "vllm": {i: c[0].tokens for i, c in engine.stream(requests)},
        "transformers": {i: c[0].tokens for i, c in other.stream(requests)},
        "transformers_sampled": {i: c[0].tokens for i, c in other.stream(sampled)},
        "answered": [c[0].tokens + newline + c[1].tokens for _, c in sorted(engine.stream(asked))],
        "custom_generate": [by_custom_generate(other.lm, request, rules) for request in asked],
    }


def by_custom_generate(lm, request: Request, rules) -> list[int]:
    """All that stands behind the prompt of a request for trace and answer."""
    import torch

    of_model = DecodingRules.of_tokenizer(tiny_run.tiny_tokenizer(), 64, rules)
    lm.generation_config.abstract = of_model.model_dump()
    ids = torch.tensor([list(request.prompt)])
    out = custom_generate.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        model=lm,
        max_new_tokens=request.answer.max_tokens,
        eos_token_id=list(request.answer.stop_ids),
        pad_token_id=0,
        do_sample=False,
    )
    return out[0, len(request.prompt) :].tolist()


def surprisals(engine, run, recipe) -> dict:
    """More texts than the engine holds at a time, by vLLM and by transformers; the second time
    behind a prefix cache that holds them all.
    """
    texts = [[(i * 7 + j * 3) % 250 for j in range(40 + 5 * i)] for i in range(40)]
    positions = [1 + i % 9 for i in range(40)]
    other = TransformersEngine(run.base, recipe.inference)
    engine.forget()
    return {
        "vllm": engine.surprisals(texts, positions),
        "vllm again": engine.surprisals(texts, positions),
        "transformers": other.surprisals(texts, positions),
    }


def trace_sets(engine, recipe, run) -> dict:
    """The traces of one phase by 1, 2 and 3 shards, the best of several ones by 1 and 2, and those
    of another phase with a window too small for its CoTs.
    """
    sets = {}
    several = dataclasses.replace(recipe, traces=dataclasses.replace(recipe.traces, best_of=3))
    jobs = [(of, of, recipe) for of in (1, 2, 3)] + [(f"best {of}", of, several) for of in (1, 2)]
    for name, of, rules in jobs:
        job = open_job(tiny_run.training_of(rules, run, 1, "B"))
        published = [generate(job, shard, of, engine) for shard in reversed(range(of))]
        loaded = TraceSet.load(job.final, job.store, 1, "B")
        sets[name] = {
            "published": published,
            "traces": [loaded.trace(i).tolist() for i in range(len(loaded))],
            "stats": stats_of(job.final).model_dump(exclude_none=True),
        }
        shutil.rmtree(job.final)
    engine.window_tokens, window = 64, engine.window_tokens
    job = open_job(tiny_run.training_of(recipe, run, 2, "A"))
    generate(job, engine=engine)
    sets["narrow"] = stats_of(job.final).model_dump(exclude_none=True)
    engine.window_tokens = window
    return sets


def answers(engine, recipe, run) -> dict:
    """All modes; one job is interrupted: its partial file is cut in the middle of a line."""
    every = [name for name, mode in MODES.items() if not mode.cot]
    jobs = jobs_of(recipe, run, "round1", every, None)
    evaluate(jobs, engine)
    rows = {
        job.mode: [json.loads(line) for line in job.result.read_text().splitlines()] for job in jobs
    }
    metas = {job.mode: json.loads(job.meta.read_text()) for job in jobs}

    job = jobs[every.index("abstract")]
    asker = Asker(round_model(recipe, run, 1), recipe, every, engine)
    problems = benchmarks.load("world", recipe, run)
    questions = job.questions(problems)
    _generate(job, questions, list(range(len(questions))), {}, asker)
    partial = job.partial(0)
    kept = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(kept[:2]) + kept[2][:20])
    job.meta.unlink()
    evaluate([job], engine)
    resumed = [json.loads(line) for line in job.result.read_text().splitlines()]
    return {
        "rows": rows,
        "metas": metas,
        "resumed": resumed,
        "left_over": [p.name for p in run.results.glob(".*")],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
