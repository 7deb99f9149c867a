"""The model card of final/: the hub's YAML header, results beside the paper's, usage snippets,
citation.
"""

import json
from string import Template

from abscot.common import files
from abscot.common.table import Table
from abscot.evaluation.benchmarks import BENCHMARKS
from abscot.evaluation.modes import answer_tokens, trace_rules
from abscot.evaluation.statistics import Summary
from abscot.method.lineage import answers_per_row, round_model
from abscot.method.phases import baselines
from abscot.method.schedules import schedule_of
from abscot.method.vocab import codebook_tokens
from abscot.model.shape import max_position
from abscot.recipe.load import ROOT, local_path
from abscot.recipe.schema import Recipe
from abscot.reporting import published, used
from abscot.reporting.run_data import RunData

BODY = Template(r"""
# $title

This model thinks in a short sequence of reserved *abstract* tokens before it answers, in place of a verbal
chain of thought. Its vocabulary holds $codebook_size of them, `<TOKEN_A>` to `$last_token`, and the
delimiters `<beginabstract>` and `<endabstract>`.

It was trained from $base with the warm-up of Abstract Chain-of-Thought
([arXiv 2604.22709](https://arxiv.org/abs/2604.22709)): $rounds_text, $tuning, $epochs_text.

## Results

$results

Accuracy with its 95% interval (bootstrap over problems), of answers in a closed `\boxed{}` where mathematics
or a choice is asked; any: with answers that stand in no box. Tokens are means over answers, counted from ids.

${used}${published}## Usage

The abstract trace and the answer are decoded in two stages. Both work on token ids: a round trip through text
would lose the abstract tokens.

### vLLM

On a machine without a GPU, give the KV cache its size in GiB: `VLLM_CPU_KVCACHE_SPACE=2 python snippet.py`.

```python
from vllm import LLM, SamplingParams

MODEL = $model_id  # a directory, or this repository's id
MESSAGES = $messages


def main():
    llm = LLM(MODEL, max_model_len=$context_tokens, enforce_eager=True)  # eager: starts fast, serves slower
    tokenizer = llm.get_tokenizer()
    begin, end = tokenizer.convert_tokens_to_ids(["<beginabstract>", "<endabstract>"])
    codebook = [i for token, i in tokenizer.get_added_vocab().items() if token.startswith("<TOKEN_")]
    newline = tokenizer.encode("\n", add_special_tokens=False)

    template = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False, "abstract": False}
    chat = tokenizer.apply_chat_template(MESSAGES, **template)
    prefix = tokenizer.encode(chat, add_special_tokens=False) + [begin]

    # Stage 1, the trace: abstract tokens only, then the end.
    think = SamplingParams(
        $trace_vllm,
        min_tokens=$m_min,
        max_tokens=$m_max,
        allowed_token_ids=[*codebook, end],
        stop_token_ids=[end],
    )
    output = llm.generate({"prompt_token_ids": prefix}, think)[0].outputs[0]
    trace = [token for token in output.token_ids if token != end]

    # Stage 2, the answer: decoded freely after the trace.
    answer = SamplingParams($answer_vllm, max_tokens=$max_answer_tokens)
    output = llm.generate({"prompt_token_ids": [*prefix, *trace, end, *newline]}, answer)[0].outputs[0]
    print("trace:", " ".join(tokenizer.convert_ids_to_tokens(trace)))
    print("answer:", output.text)


if __name__ == "__main__":
    main()
```

### transformers

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = $model_id  # a directory, or this repository's id
MESSAGES = $messages

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
begin, end = tokenizer.convert_tokens_to_ids(["<beginabstract>", "<endabstract>"])
codebook = [i for token, i in tokenizer.get_added_vocab().items() if token.startswith("<TOKEN_")]
newline = tokenizer.encode("\n", add_special_tokens=False)

template = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False, "abstract": False}
chat = tokenizer.apply_chat_template(MESSAGES, **template)
prefix = tokenizer.encode(chat, add_special_tokens=False) + [begin]


def generate(ids, **options):
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
    return output[0, len(ids) :].tolist()


# Stage 1, the trace: abstract tokens only, then the end.
trace = generate(
    prefix,
    $trace_transformers,
    min_new_tokens=$m_min,
    max_new_tokens=$m_max,
    eos_token_id=end,
    prefix_allowed_tokens_fn=lambda batch, ids: [*codebook, end],
)
trace = [token for token in trace if token != end]

# Stage 2, the answer: decoded freely after the trace.
answer = generate([*prefix, *trace, end, *newline], $answer_transformers, max_new_tokens=$max_answer_tokens)
print("trace:", " ".join(tokenizer.convert_ids_to_tokens(trace)))
print("answer:", tokenizer.decode(answer, skip_special_tokens=True))
```

${codebook}## Limits

An abstract trace cannot be read by people: it explains nothing about the answer. The model was trained on
$data_source and measured on what the table above lists, nothing else.

## Citation

```bibtex
@article{ramji2026thinking,
  title   = {Thinking Without Words: Efficient Latent Reasoning with Abstract Chain-of-Thought},
  author  = {Ramji, Keshav and Naseem, Tahira and Fernandez Astudillo, Ram{\'o}n},
  journal = {arXiv preprint arXiv:2604.22709},
  year    = {2026}
}
```
""")

CODEBOOK = """\
## The codebook

`codebook/`, beside the weights, holds what gave the training traces their codes: centroids of the base's hidden
states at the steps of a CoT (safetensors; `codebook.json` says of which layer and token). Other CoTs are coded with it.

"""


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
    config, rules = recipe.eval, trace_rules(recipe, "abstract")
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
        model_id=json.dumps(model_id),
        context_tokens=context_tokens,
        messages=_python_list([*system, question]),
        m_min=rules.m_min,
        m_max=rules.m_max,
        max_answer_tokens=answer_tokens(config, "abstract"),
        **_sampling("trace", rules.temperature, rules.top_p),
        **_sampling("answer", config.answer_temperature, config.answer_top_p),
        data_source=f"`{recipe.data.source}`"
        if recipe.data.source != "world"
        else "problems made from a seed",
    )
    return data.without_secrets(_header(recipe, cells) + body)


def _sampling(stage: str, temperature: float, top_p: float) -> dict[str, str]:
    """How a stage of the snippets is decoded, as arguments of either library."""
    rule = f"temperature={temperature}, top_p={top_p}" if temperature else "temperature=0.0"
    sampled = f"do_sample=True, {rule}, top_k=0" if temperature else "do_sample=False"
    return {f"{stage}_vllm": rule, f"{stage}_transformers": sampled}


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
    about = "Published numbers, MATH-500 with Qwen3-4B; they compare only with that benchmark, base and mode"
    return f"{about}:\n\n{published.PUBLISHED.markdown()}\n\n"


def _python_list(messages: list[dict]) -> str:
    """Source text of `messages`, as it stands inside the snippets."""
    lines = [
        f'{{"role": {json.dumps(m["role"])}, "content": {json.dumps(m["content"])}}}'
        for m in messages
    ]
    return "[\n" + "".join(f"    {line},\n" for line in lines) + "]"
