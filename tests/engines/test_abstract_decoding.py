"""The logits processor by the interfaces of vLLM's two runners: V1 has lists, V2 the device."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from abscot.common.draws import rng
from abscot.generation.decoding import CODEBOOK_SIZE, TraceTokens
from abscot.recipe.schema import TraceConfig
from kit.tiny_run import make_model, tiny_tokenizer

pytestmark = pytest.mark.vllm

WIDTH, STEPS, SLOTS = 384, 26, 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processor") / "model"
    make_model(directory, tiny_tokenizer(), seed=0)
    return directory


def config(model, named=(), asynchronous=False, speculative=None, codebook_size=None):
    from vllm.config import ModelConfig

    of_model = ModelConfig(model=str(model), logits_processors=list(named) or None)
    scheduler = SimpleNamespace(async_scheduling=asynchronous)
    return SimpleNamespace(
        model_config=of_model,
        scheduler_config=scheduler,
        speculative_config=speculative,
        additional_config={CODEBOOK_SIZE: codebook_size},
    )


def asked_of(tokens: TraceTokens):
    """name -> (prompt, SamplingParams)."""
    from vllm import SamplingParams

    begin, end, code = tokens.vocab.begin_id, tokens.vocab.end_id, tokens.vocab.codebook_ids

    def rules(**arguments):
        return SamplingParams(temperature=0.5, extra_args=arguments)

    return {
        "short": ([1, 2, begin], rules(m_min=2, m_max=4)),
        "long": ([1, begin], rules(m_min=9, m_max=15)),
        "free": ([4, 5, 6], rules()),
        "exact": ([7, begin], rules(m_min=3, m_max=3, trace_temperature=0, answer_temperature=1)),
        "gone on with": ([7, begin, *code[:3]], rules(m_min=5, m_max=6)),
        "an answer": ([7, begin, code[0], end, *tokens.newline], rules(m_min=1, m_max=2)),
    }


def logits_of(name: str, length: int) -> torch.Tensor:
    return torch.from_numpy(rng("logits", name, length).standard_normal(WIDTH)).float()


def by_v1(model, tokens) -> dict[str, list[int]]:
    """Requests come and go and change places in the batch."""
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from abscot.generation.abstract_decoding import AbstractDecoding

    processor = AbstractDecoding(config(model), torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    requests = asked_of(tokens)
    outputs, batch = {name: [] for name in requests}, []
    for step in range(STEPS + 2 * len(requests)):
        added, moved, removed = [], [], []
        if step % 2 == 0 and step // 2 < len(requests):
            name = list(requests)[step // 2]
            batch.append(name)
            added.append((len(batch) - 1, requests[name][1], requests[name][0], outputs[name]))
        elif len(batch) > 1 and step % 3 == 0:
            batch[0], batch[-1] = batch[-1], batch[0]
            moved.append((0, len(batch) - 1, MoveDirectionality.SWAP))
        if batch and len(outputs[batch[-1]]) >= STEPS:
            removed.append(len(batch) - 1)
            batch.pop()
            added, moved = [], []
        update = (
            BatchUpdate(len(batch), removed, added, moved) if added or moved or removed else None
        )
        processor.update_state(update)
        if not batch:
            continue
        logits = torch.stack([logits_of(n, len(outputs[n])) for n in batch])
        for name, token in zip(batch, processor.apply(logits).argmax(-1).tolist(), strict=True):
            outputs[name].append(token)
    return {name: output[: STEPS // 2] for name, output in outputs.items()}


def by_v2(model, tokens) -> dict[str, list[int]]:
    """Slots of a device; rows in another order at every step; one request is preempted and comes
    back with its output.
    """
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

    from abscot.generation.abstract_decoding import AbstractDecoding

    known = torch.zeros(SLOTS, 64, dtype=torch.int32)
    prompt_len = SimpleNamespace(np=np.zeros(SLOTS, np.int32))
    state = LogitsProcRequestState(
        torch.device("cpu"), SLOTS, WIDTH, SimpleNamespace(gpu=known), prompt_len, None, None
    )
    processor = AbstractDecoding(config(model), state)
    requests = asked_of(tokens)
    slots = {name: 11 - 2 * i for i, name in enumerate(requests)}
    outputs = {name: [] for name in requests}

    def fill(name, slot):
        prompt, params = requests[name]
        text = [*prompt, *outputs[name]]
        known[slot] = 9999
        known[slot, : len(text)] = torch.tensor(text, dtype=torch.int32)
        prompt_len.np[slot] = len(prompt)
        assert processor.add_request(slot, params)

    for name, slot in slots.items():
        fill(name, slot)
    for step in range(STEPS // 2):
        if step in (2, 6):
            slots["long"] = step
            fill("long", step)
        processor.apply_staged_writes()
        order = rng("order", step).permutation(list(slots)).tolist()
        here = np.array([slots[name] for name in order])
        lengths = [len(requests[name][0]) + len(outputs[name]) for name in order]
        mapping = torch.tensor(here, dtype=torch.int32)
        context = LogitsContext(mapping, mapping, here, None, None, torch.tensor(lengths) - 1, None)
        logits = torch.stack([logits_of(name, len(outputs[name])) for name in order])
        for name, token in zip(
            order, processor.apply(logits, context).argmax(-1).tolist(), strict=True
        ):
            known[slots[name], len(requests[name][0]) + len(outputs[name])] = token
            outputs[name].append(token)
    return outputs


@pytest.fixture(scope="module")
def tokens() -> TraceTokens:
    return TraceTokens.of(tiny_tokenizer())


@pytest.fixture(scope="module")
def outputs(model, tokens):
    return {"V1": by_v1(model, tokens), "V2": by_v2(model, tokens)}


def test_both_runners_decode_the_same(outputs):
    assert outputs["V1"] == outputs["V2"]


def test_a_trace_then_its_end_and_a_newline_then_an_answer(outputs, tokens):
    vocab, opening = tokens.vocab, [tokens.vocab.end_id, *tokens.newline]
    asked = {"short": (2, 4, 0), "long": (9, 15, 0), "exact": (3, 3, 0), "gone on with": (5, 6, 3)}
    for name, (m_min, m_max, before) in asked.items():
        output = outputs["V1"][name]
        trace = [t for t in output if t in vocab.codebook_ids]
        assert (
            output[: len(trace)] == trace
            and m_min <= before + len(trace) <= m_max
            or name == "long"
        )
        assert output[len(trace) :][: len(opening)] == opening[: len(output) - len(trace)]
        assert not set(output[len(trace) + len(opening) :]) & set(vocab.ids)
    answer = outputs["V1"]["an answer"]
    assert len(answer) == STEPS // 2 and not set(answer) & set(vocab.ids)


def test_a_request_without_a_begin_token_is_left_alone(outputs):
    expected = [int(logits_of("free", i).argmax()) for i in range(STEPS // 2)]
    assert outputs["V1"]["free"] == outputs["V2"]["free"] == expected


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"m_max": 0}, "m_max: expected a whole number of at least 1, found 0"),
        ({"m_max": "8"}, "m_max: expected a whole number of at least 1, found '8'"),
        ({"m_min": True}, "m_min: expected a whole number of at least 0, found True"),
        ({"m_min": 9, "m_max": 8}, r"m_min: expected at most m_max \(8\), found 9"),
        ({"trace_temperature": -1}, "trace_temperature: expected a number from 0 to 100, found -1"),
        ({"answer_temperature": "hot"}, "answer_temperature: expected a number"),
        ({"trace_temprature": 1}, "no such argument; did you mean trace_temperature"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(arguments, said):
    from vllm import SamplingParams

    from abscot.generation.abstract_decoding import AbstractDecoding

    with pytest.raises(ValueError, match=said):
        AbstractDecoding.validate_params(SamplingParams(temperature=1.0, extra_args=arguments))


def test_a_greedy_request_has_no_stage_that_samples():
    from vllm import SamplingParams

    from abscot.generation.abstract_decoding import AbstractDecoding

    with pytest.raises(ValueError, match="0.7 cannot be had of a request with temperature 0"):
        AbstractDecoding.validate_params(
            SamplingParams(temperature=0, extra_args={"trace_temperature": 0.7})
        )
    AbstractDecoding.validate_params(
        SamplingParams(temperature=0, extra_args={"others": "are not ours"})
    )
    AbstractDecoding.validate_params(SamplingParams(temperature=0))


def test_where_the_rules_cannot_be_kept_the_engine_does_not_start(model):
    from abscot.generation.abstract_decoding import InstalledAbstractDecoding
    from abscot.generation.decoding import ABSTRACT_DECODING

    device = torch.device("cpu")
    with pytest.raises(ValueError, match=f"--logits-processors {ABSTRACT_DECODING}"):
        InstalledAbstractDecoding(config(model, asynchronous=True), device, False)
    with pytest.raises(ValueError, match="speculative decoding"):
        InstalledAbstractDecoding(config(model, speculative=object()), device, False)
    # Named as well: it stands back, and the named one does the work once.
    named = config(model, [ABSTRACT_DECODING], asynchronous=True)
    assert InstalledAbstractDecoding(named, device, False).tokens is None
    assert InstalledAbstractDecoding(config(model), device, False).tokens is not None


def test_a_model_brings_its_own_bounds_and_a_request_has_the_last_word(model, tmp_path):
    import shutil

    from vllm import SamplingParams

    from abscot.generation.abstract_decoding import AbstractDecoding
    from abscot.generation.decoding import RequestRules
    from abscot.model.chat_model import DecodingRules

    own = tmp_path / "own"
    shutil.copytree(model, own)
    tokenizer = tiny_tokenizer()
    size = len(TraceTokens.of(tokenizer).vocab.codebook_ids)
    (own / "generation_config.json").write_text("{}")
    traces = TraceConfig(m_min=3, m_max=7, temperature=0.7)
    DecodingRules.of_tokenizer(tokenizer, size, traces).write(own / "generation_config.json")
    processor = AbstractDecoding(config(own), torch.device("cpu"), False)

    def rules(**arguments):
        return processor.rules_of(SamplingParams(temperature=1.0, extra_args=arguments))

    assert rules() == RequestRules(3, 7, 0.7, None)
    assert processor.tokens == TraceTokens.of(tokenizer)
    of_recipe = config(own, codebook_size=5)
    few = AbstractDecoding(of_recipe, torch.device("cpu"), False).tokens
    assert few.vocab.codebook_ids == processor.tokens.vocab.codebook_ids[:5]
    assert rules(m_max=2) == RequestRules(2, 2, 0.7, None)
    assert rules(m_min=9, trace_temperature=0) == RequestRules(9, 9, 0, None)
    assert rules(m_min=1, m_max=30, answer_temperature=0.1) == RequestRules(1, 30, 0.7, 0.1)
