"""What tests/engines/test_vllm.py looks at: one engine generates everything, in its own process.

python -m kit.vllm_scenarios RUN_ROOT OUT.json [asynchronous] [apart] [on_two], where RUN_ROOT holds
a tiny run (kit.tiny_run.make_tiny_run). With a word behind it the engine runs as it may on GPUs:
with asynchronous scheduling, which vLLM leaves out on CPUs; with its core in another process; with
tensor parallelism 2. The scenarios are then those that do not look into it.
"""

import dataclasses
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from abscot.common import files
from abscot.common.draws import keyed_seed
from abscot.common.errors import UserError
from abscot.evaluation import benchmarks
from abscot.evaluation.evaluate import _generate, evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.evaluation.modes import MODES, Asker, Question
from abscot.generation import vllm_engine
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
from abscot.model import checkpoint_dirs, custom_generate
from abscot.model.chat_model import DecodingRules
from abscot.model.handover import check_handover
from abscot.recipe.run import Run
from kit import tiny_run

PROMPTS = 48
TEXTS = (  # and of how many of its last tokens the probability is asked for
    [[(i * 7 + j * 3) % 250 for j in range(40 + 5 * i)] for i in range(40)],
    [1 + i % 9 for i in range(40)],
)


def main(root: Path, out: Path, *kind: str) -> None:
    recipe = tiny_run.tiny_recipe(root)
    run = Run.of(recipe)
    for copy in (tiny_run.training_of(recipe, run, 1, "A").export, round_model(recipe, run, 1)):
        shutil.copytree(run.base, copy, dirs_exist_ok=True)
    if kind:
        out.write_text(json.dumps(elsewhere(recipe, run, kind)))
        return
    engine = VllmEngine(run.base, recipe.inference, recipe.codebook_size)
    computed = count_scheduled_tokens(engine)
    found = {"kind": kind_of(engine)}
    found["stages"] = two_stages(engine, recipe, run, computed)
    found["one by one"] = one_by_one(engine, run, recipe)
    found["greedy"] = greedy(engine, run, recipe)
    found["surprisals"] = surprisals(engine, run, recipe)
    found["sets"] = trace_sets(engine, recipe, run)
    found["answers"] = answers(engine, recipe, run)
    found["heard"] = heard(engine)
    found["handover"] = handover(engine, recipe, run)
    out.write_text(json.dumps(found))


def elsewhere(recipe, run, kind: tuple[str, ...]) -> dict:
    """The scenarios that do not look into the engine."""
    config = recipe.inference
    if "asynchronous" in kind:
        with_asynchronous_scheduling()
    if "apart" in kind:
        with_its_core_in_another_process()
    if "on_two" in kind:
        config = dataclasses.replace(config, tensor_parallel=2)
    engine = VllmEngine(run.base, config, recipe.codebook_size)
    return {
        "kind": kind_of(engine),
        "stages": two_stages(engine, recipe, run, [0]),
        "one by one": one_by_one(engine, run, recipe),
        "surprisals": engine_surprisals(engine),
        "sets": trace_sets(engine, recipe, run),
        "heard": heard(engine),
    }


def kind_of(engine) -> list[str]:
    """The words that say how an engine runs."""
    vllm, config = engine.llm.llm_engine, engine.llm.llm_engine.vllm_config
    is_so = {
        "asynchronous": config.scheduler_config.async_scheduling,
        "apart": type(vllm.engine_core).__name__ != "InprocClient",
        "on_two": config.parallel_config.tensor_parallel_size == 2,
    }
    return [word for word, so in is_so.items() if so]


def with_asynchronous_scheduling() -> None:
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def checked(cls, vllm_config) -> None:
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(checked)


def with_its_core_in_another_process() -> None:
    in_this_one = vllm_engine._set_environment

    def set_environment(config) -> None:
        in_this_one(config)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"

    vllm_engine._set_environment = set_environment


def heard(engine) -> dict:
    """What an engine tells while it is at work: prompt tokens computed after each step, and None
    for each trace that is there.
    """
    vocab, told = AbstractVocab.of(tiny_run.tiny_tokenizer()), []
    requests = [
        Request([*range(40 + i), vocab.begin_id], Sampling(max_tokens=9, m_min=9, m_max=9))
        for i in range(20)
    ]
    engine.forget()
    for _ in engine.stream(requests, told.append):
        told.append(None)
    return {"told": told, "prompt_tokens": sum(len(r.prompt) for r in requests)}


def handover(engine, recipe, run) -> list[tuple[str | None, bool]]:
    """What the engine says to the probabilities that an export recorded: those of other weights,
    the right ones. And whether the checkpoint that the model was exported from is there behind it.
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
    training = tiny_run.training_of(recipe, run, 1, "A")
    kept = checkpoint_dirs.at_step(training.checkpoints, 9)
    kept.mkdir()
    for wrong in (0.3, 0.0):
        probe = {"tokens": tokens, "surprisals": (right + wrong).tolist()}
        files.seal(training.export, {"tag": training.tag, "step": 9, "probe": probe})
        error = None
        try:
            check_handover(engine, training.export, recipe.inference.handover_kl)
        except UserError as refused:
            error = str(refused)
        said.append((error, kept.exists()))
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
    other = TransformersEngine(run.base, recipe.inference)
    return {**engine_surprisals(engine), "transformers": other.surprisals(*TEXTS)}


def engine_surprisals(engine) -> dict:
    engine.forget()
    return {"vllm": engine.surprisals(*TEXTS), "vllm again": engine.surprisals(*TEXTS)}


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
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
