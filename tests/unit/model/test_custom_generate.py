"""Trace and answer in one call of `generate`, by the file that lies beside an exported model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, dynamic_module_utils

from abscot.common import files
from abscot.generation.requests import Sampling, answered_request, codebook_tokens_of
from abscot.generation.transformers_engine import TransformersEngine
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.model.chat_model import ChatModel, DecodingRules
from abscot.model.custom_generate import generate
from abscot.recipe.schema import InferenceConfig, TraceConfig
from kit.tiny_run import tiny_model, tiny_tokenizer

TRACES = TraceConfig(m_min=2, m_max=7, temperature=0.0)
ANSWER = 12
QUESTIONS = ["1 + 1?", "What?", "A much longer question, which is padded less.", "", "z" * 30, "7"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A sealed directory as an export makes it; random weights whose traces differ in length."""
    directory, tokenizer = tmp_path_factory.mktemp("exported") / "final", tiny_tokenizer()
    lm = tiny_model(seed=13)
    with torch.no_grad():  # ends of traces and of answers are likelier than 1 in 384
        lm.model.embed_tokens.weight[AbstractVocab.of(tokenizer).end_id] *= 2
        lm.model.embed_tokens.weight[tokenizer.eos_token_id] *= 2
    lm.generation_config.eos_token_id = tokenizer.eos_token_id
    lm.generation_config.pad_token_id = tokenizer.pad_token_id
    rules = DecodingRules.of_tokenizer(tokenizer, 64, TRACES)
    with files.publish(directory) as temp:
        lm.save_pretrained(temp)
        ChatModel(tokenizer, rules).write(temp)
    return directory


@pytest.fixture(scope="module")
def lm(model):
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(model):
    tokenizer = load_tokenizer(model)
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.fixture(scope="module")
def vocab(tokenizer):
    return AbstractVocab.of(tokenizer)


def turns(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def prompts(tokenizer, questions=QUESTIONS, **template):
    return tokenizer.apply_chat_template(
        [turns(q) for q in questions],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
        **template,
    )


def generated(tokenizer, inputs, out) -> list[list[int]]:
    """What stands behind the prompt of each row, without padding."""
    assert torch.equal(out[:, : inputs.input_ids.shape[1]], inputs.input_ids)
    rows = out[:, inputs.input_ids.shape[1] :].tolist()
    ends = [
        row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else -1 for row in rows
    ]
    padding = {tokenizer.pad_token_id}
    for row, end in zip(rows, ends, strict=True):
        assert end < 0 or set(row[end + 1 :]) <= padding
    return [[t for t in row if t not in padding] for row in rows]


def ask(tokenizer, lm, questions=QUESTIONS, **arguments) -> list[list[int]]:
    inputs = prompts(tokenizer, questions)
    out = generate(model=lm, **inputs, **{"max_new_tokens": ANSWER} | arguments)
    return generated(tokenizer, inputs, out)


def split(vocab, row: list[int]) -> tuple[list[int], list[int]]:
    """(trace, answer), once everything between them is seen to be right."""
    end = row.index(vocab.end_id)
    trace, opening, answer = row[:end], row[end + 1], row[end + 2 :]
    assert set(trace) <= set(vocab.codebook_ids) and not set(answer) & set(vocab.ids)
    assert opening == tiny_tokenizer().encode("\n")[0] and 1 <= len(answer) <= ANSWER
    return trace, answer


def of_the_engine(model, tokenizer, vocab) -> list[list[int]]:
    """The same by two stages."""
    engine = TransformersEngine(model, InferenceConfig(dtype="fp32", max_model_len_tokens=256))
    newline = tokenizer.encode("\n")
    free = Sampling(max_tokens=ANSWER, stop_ids=(tokenizer.eos_token_id,))

    def request(question):
        template = {"add_generation_prompt": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(turns(question), **template)
        return answered_request(prompt, vocab, TRACES, newline, free)

    found = dict(engine.stream([request(question) for question in QUESTIONS]))
    traces = [codebook_tokens_of(found[i][0], vocab, TRACES) for i in range(len(QUESTIONS))]
    return [[*t, vocab.end_id, *newline, *found[i][1].tokens] for i, t in enumerate(traces)]


def test_greedily_it_writes_what_two_stages_write(model, lm, tokenizer, vocab):
    rows = ask(tokenizer, lm)
    assert rows == of_the_engine(model, tokenizer, vocab)
    traces, answers = zip(*(split(vocab, row) for row in rows), strict=True)
    # The model is one that can tell: lengths at both bounds and between, answers cut and ended.
    assert {2, 7} < {len(trace) for trace in traces}
    assert {a[-1] == tokenizer.eos_token_id for a in answers} == {False, True}
    assert {len(a) for a in answers if a[-1] != tokenizer.eos_token_id} == {ANSWER}


def test_a_batch_is_its_rows_one_by_one(lm, tokenizer):
    assert ask(tokenizer, lm) == [ask(tokenizer, lm, [question])[0] for question in QUESTIONS]


def test_transformers_finds_it_and_asks_before_it_runs_it(
    model, lm, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    inputs, path = prompts(tokenizer), str(model)
    with pytest.raises(ValueError, match="trust_remote_code"):
        lm.generate(**inputs, custom_generate=path, trust_remote_code=False)
    arguments = {"max_new_tokens": ANSWER, "m_max": 5}
    out = lm.generate(**inputs, custom_generate=path, trust_remote_code=True, **arguments)
    assert generated(tokenizer, inputs, out) == ask(tokenizer, lm, m_max=5)
    # Trusted when it is loaded, the model has it in place of its own `generate`.
    own = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=True)
    mask = inputs.attention_mask
    assert torch.equal(own.generate(inputs.input_ids, attention_mask=mask, **arguments), out)
    again = {"custom_generate": path, "trust_remote_code": True}
    assert torch.equal(own.generate(**inputs, **arguments, **again), out)


def test_sampled_traces_keep_the_bounds_and_repeat_with_the_seed(lm, tokenizer, vocab):
    def sampled(seed, **bounds):
        torch.manual_seed(seed)
        # top_k is the answer's: a trace that it cut would be the greedy one.
        sampling = {"trace_temperature": 1.3, "answer_temperature": 1.0, "top_k": 1} | bounds
        return ask(tokenizer, lm, 4 * QUESTIONS, **sampling)

    first = sampled(1)
    assert first == sampled(1) != sampled(2)
    lengths = {len(split(vocab, row)[0]) for row in first}
    assert min(lengths) >= 2 and max(lengths) <= 7 and len(lengths) > 3
    assert {len(split(vocab, row)[0]) for row in sampled(1, m_min=3, m_max=3)} == {3}
    assert {len(split(vocab, row)[0]) for row in sampled(1, m_min=0, m_max=1)} == {0, 1}
    greedy = ask(tokenizer, lm, 4 * QUESTIONS)
    assert sum(a != b for a, b in zip(first, greedy, strict=True)) > len(greedy) / 2
    # top_k=1: each answer is the greedy one behind its own trace.
    trace, answer = split(vocab, first[0])
    inputs = prompts(tokenizer, QUESTIONS[:1])
    behind = torch.tensor([[*trace, vocab.end_id, *tokenizer.encode("\n")]])
    ids = torch.cat([inputs.input_ids, behind], 1)
    arguments = {"max_new_tokens": ANSWER, "suppress_tokens": vocab.ids}
    assert lm.generate(ids, attention_mask=torch.ones_like(ids), **arguments)[0].tolist() == [
        *ids[0].tolist(),
        *answer,
    ]


def test_a_sampled_answer_leaves_a_greedy_trace_alone(lm, tokenizer, vocab):
    torch.manual_seed(0)
    sampled = [split(vocab, row) for row in ask(tokenizer, lm, answer_temperature=1.5)]
    greedy = [split(vocab, row) for row in ask(tokenizer, lm, answer_temperature=0.0)]
    assert [trace for trace, _ in sampled] == [trace for trace, _ in greedy]
    assert [answer for _, answer in sampled] != [answer for _, answer in greedy]


def test_a_row_without_an_open_trace_is_decoded_freely(lm, tokenizer, vocab):
    direct = prompts(tokenizer, QUESTIONS[:2], abstract=False)
    plain = lm.generate(**direct, max_new_tokens=ANSWER)
    assert torch.equal(generate(model=lm, **direct, max_new_tokens=ANSWER), plain)
    texts = [
        tokenizer.apply_chat_template(
            turns(question), add_generation_prompt=True, tokenize=False, abstract=abstract
        )
        for question, abstract in zip(QUESTIONS, [False, True] * 3, strict=True)
    ]
    mixed = tokenizer(texts, padding=True, return_tensors="pt")
    out = generated(tokenizer, mixed, generate(model=lm, **mixed, max_new_tokens=ANSWER))
    assert out[1::2] == ask(tokenizer, lm)[1::2]
    for question, row in list(zip(QUESTIONS, out, strict=True))[::2]:
        alone = prompts(tokenizer, [question], abstract=False)
        expected = lm.generate(**alone, max_new_tokens=ANSWER)
        assert row == generated(tokenizer, alone, expected)[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"m_min": 8}, "m_min <= m_max and m_max >= 1, found 8 and 7"),
        ({"m_min": -1}, "m_min"),
        ({"m_min": 0, "m_max": 0}, "m_max"),
        ({"m_max": 3.0}, "m_max"),
        ({"m_max": "3"}, "m_max"),
        ({"trace_temperature": -1.0}, "trace_temperature"),
        ({"trace_temperature": float("nan")}, "trace_temperature"),
        ({"num_beams": 2}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"input_ids": None}, "input_ids"),
    ],
)
def test_what_cannot_be_is_one_line(lm, tokenizer, arguments, words):
    with pytest.raises(ValueError) as caught:
        generate(model=lm, **dict(prompts(tokenizer)) | arguments)
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_a_model_without_rules_is_named():
    with pytest.raises(ValueError, match="no key `abstract`"):
        generate(torch.tensor([[1, 2]]), model=tiny_model(0))
