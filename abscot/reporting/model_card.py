"""The model card of final/: the hub's YAML header, results beside the paper's, usage snippets,
citation.
"""

import json
from pathlib import Path

from abscot.common import files
from abscot.common.table import Table
from abscot.evaluation.benchmarks import BENCHMARKS
from abscot.evaluation.modes import answer_tokens, trace_rules
from abscot.evaluation.statistics import Summary
from abscot.generation.decoding import request_temperature
from abscot.method.lineage import answers_per_row, round_model, trainings
from abscot.method.phases import baselines
from abscot.method.schedules import schedule_of
from abscot.method.sequence import z_tokens
from abscot.method.vocab import codebook_tokens
from abscot.model.shape import max_position
from abscot.recipe.load import ROOT, local_path
from abscot.recipe.schema import EvalConfig, Recipe, TraceConfig
from abscot.reporting import published, used
from abscot.reporting.card_text import BODY, CODEBOOK, PEFT
from abscot.reporting.run_data import RunData


def write(data: RunData) -> None:
    """Writes final/README.md when final/ is there. DONE does not list it, so the weights stay
    sealed.
    """
    final = round_model(data.recipe, data.run, data.recipe.rounds).resolve()
    if files.is_done(final):
        local = final.relative_to(ROOT) if final.is_relative_to(ROOT) else final
        context_tokens = min(max_position(final), data.recipe.inference.max_model_len_tokens)
        files.write_text_atomic(final / "README.md", card(data, str(local), context_tokens))


def card(data: RunData, model_id: str, context_tokens: int) -> str:
    """The card's text. model_id: the directory or hub repository that its snippets load."""
    recipe = data.recipe
    final = round_model(recipe, data.run, recipe.rounds).name
    # Behind another's trace, or a shuffled one: no results of the model.
    cells = [s for s in data.scored if s.model == final and s.mode not in used.EDITED]
    question = {"role": "user", "content": "What is 17 + 4 * 3?"}
    system = (
        [{"role": "system", "content": recipe.data.system_prompt}]
        if recipe.data.system_prompt
        else []
    )
    messages = _python_list([*system, question])
    rules, most = trace_rules(recipe, "abstract"), answer_tokens(recipe.eval, "abstract")
    body = BODY.substitute(
        title=recipe.name,
        base=f"`{recipe.model.base}`"
        if recipe.model.base != "world"
        else "a small model made from a seed",
        rounds_text=f"{recipe.rounds} round{'s' * (recipe.rounds > 1)}, schedule "
        f"`{schedule_of(recipe)}`",
        tuning=f"LoRA of rank {recipe.lora.r}" if recipe.lora else "all parameters trained",
        epochs_text=f"each answer up to {answers_per_row(recipe):g} times",
        codebook_size=recipe.codebook_size,
        last_token=codebook_tokens(recipe.codebook_size)[-1],
        results=_results(
            [s for s in data.scored if s.model in ("base", final, *(p.name for p in baselines()))]
        ),
        used="".join(f"{line}\n\n" for line in used.sentences(used.of_run(data), final)),
        codebook=CODEBOOK if data.codebook else "",
        published=_published() if published.any_beside(recipe.eval.benchmarks) else "",
        peft=_peft(data, model_id, messages),
        model_id=json.dumps(model_id),
        context_tokens=context_tokens,
        messages=messages,
        m_min=rules.m_min,
        m_max=rules.m_max,
        max_answer_tokens=most,
        max_tokens=z_tokens(rules.m_max) + most,  # the end of the trace, and a newline
        **_requests(rules, recipe.eval),
        data_source=f"`{recipe.data.source}`"
        if recipe.data.source != "world"
        else "problems made from a seed",
    )
    return data.without_secrets(_header(recipe, cells) + body)


def _requests(rules: TraceConfig, config: EvalConfig) -> dict[str, str]:
    """How the snippets ask, as the evaluation did, in the arguments of each library."""
    trace, answer = rules.temperature, config.answer_temperature
    temperature, stages = request_temperature(trace, answer)
    openai = f"temperature={temperature}"
    if temperature:
        stages = json.dumps({"vllm_xargs": stages})
        openai += f", top_p={config.answer_top_p},\n    extra_body={stages}"
    sampled = f"do_sample=True, {_rule(answer, config.answer_top_p)}, top_k=0"
    return {
        "request_openai": openai,
        "request_transformers": sampled if answer else "do_sample=False",
        "trace_vllm": _rule(trace, rules.top_p),
        "answer_vllm": _rule(answer, config.answer_top_p),
    }


def _rule(temperature: float, top_p: float) -> str:
    return f"temperature={temperature}, top_p={top_p}" if temperature else "temperature=0.0"


def _peft(data: RunData, model_id: str, messages: str) -> str:
    """The snippet for adapters; nothing where none was trained."""
    if not data.recipe.lora:
        return ""
    run = Path(model_id).parent
    trained = trainings(data.recipe, data.run)
    names = [t.adapter.name for t in trained if files.is_done(t.adapter)]
    if len(names) < len(trained):
        return ""
    adapters = run / trained[0].adapter.parent.name
    return PEFT.substitute(
        base_id=json.dumps(str(run / data.run.base.name)),
        adapters_id=json.dumps(str(adapters)),
        adapter_names=json.dumps(names),
        messages=messages,
    )


def _header(recipe: Recipe, cells: list[Summary]) -> str:
    """The YAML block that the hub reads (its specification: huggingface/hub-docs, modelcard.md)."""
    import yaml

    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["abstract-chain-of-thought", "latent-reasoning", "arxiv:2604.22709"],
        **_license(recipe.model.base),
        "metrics": ["accuracy"],
    }
    if recipe.model.base != "world" and local_path(recipe.model.base) is None:
        header["base_model"] = recipe.model.base
    if recipe.data.source != "world" and local_path(recipe.data.source) is None:
        header["datasets"] = [recipe.data.source]
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": _dataset(s.benchmark),
            "metrics": [
                {
                    "name": f"accuracy, {s.mode}",
                    "type": "accuracy",
                    "value": round(100 * s.accuracy.value, 2),
                },
                {
                    "name": f"mean generated tokens, {s.mode}",
                    "type": "tokens",
                    "value": round(s.total_tokens.value, 1),
                },
            ],
        }
        for s in cells
    ]
    if results:
        header["model-index"] = [{"name": recipe.name, "results": results}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _dataset(benchmark: str) -> dict[str, str]:
    """The hub's name of a benchmark: data set, configuration, split."""
    known = BENCHMARKS.get(benchmark)
    if known is None or known.hub is None:
        return {"name": benchmark, "type": benchmark}
    keys = zip(("type", "config", "split"), known.hub, strict=True)
    return {"name": benchmark, **{key: value for key, value in keys if value}}


def _license(base: str) -> dict[str, str]:
    """A trained model keeps its base's licence; only where that is known is it stated."""
    if base == "world" or base.startswith("Qwen/Qwen3-"):
        return {"license": "apache-2.0"}
    return {"license": "other", "license_name": "license-of-the-base-model"}


def _results(cells: list[Summary]) -> str:
    if not cells:
        return "Not evaluated yet."
    shown = published.any_beside(s.benchmark for s in cells)
    rows = [
        (
            s.mode,
            s.model,
            s.benchmark,
            str(s.problems),
            f"{100 * s.accuracy.value:.1f} [{100 * s.accuracy.low:.1f}, "
            f"{100 * s.accuracy.high:.1f}]",
            f"{100 * s.accuracy_any:.1f}",
            f"{s.reasoning_tokens:.1f}",
            f"{s.total_tokens.value:.1f}",
            *[published.beside(s.mode, s.model, s.benchmark)] * shown,
        )
        for s in cells
    ]
    columns = ("mode", "model", "benchmark", "problems", "accuracy, %", "any, %")
    columns += ("reasoning tokens", "all tokens", *["published, % @ tokens"] * shown)
    return Table(columns, tuple(rows), 3).markdown()


def _published() -> str:
    about = "Published numbers, MATH-500 with Qwen3-4B"
    only = "they compare only with that benchmark, base and mode"
    return f"{about}; {only}:\n\n{published.PUBLISHED.markdown()}\n\n"


def _python_list(messages: list[dict]) -> str:
    """Source text of `messages`, as it stands inside the snippets."""
    lines = [
        f'{{"role": {json.dumps(m["role"])}, "content": {json.dumps(m["content"])}}}'
        for m in messages
    ]
    return "[\n" + "".join(f"    {line},\n" for line in lines) + "]"
