"""A real HTTP server with a random model, asked by the openai client."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from abscot.evaluation.results import ResultRow, read_result
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.recipe.load import ROOT
from kit.serving import serve
from kit.small_run import launch
from kit.tiny_run import make_tiny_run

pytestmark = pytest.mark.vllm

M_MIN, M_MAX, ANSWER_TOKENS = 2, 12, 8
RULES = {"m_min": M_MIN, "m_max": M_MAX}
ALL_TOKENS = M_MAX + 2 + ANSWER_TOKENS
TOGETHER = 64
DIRECT = {"chat_template_kwargs": {"abstract": False}}
CODES = re.compile(r"<TOKEN_[A-Z]+>")


@dataclass
class Message:
    """One choice. reasoning, content: "" for none; tokens: of both, with what is between them."""

    reasoning: str
    content: str
    tokens: list[int]
    usage: dict
    finish_reason: str

    @property
    def codes(self) -> list[str]:
        return CODES.findall(self.reasoning)


@dataclass
class Served:
    """A running server, its model's tokenizer, and what `launch/evaluate.py` says of that model."""

    url: str
    model: str
    directory: Path
    rows: list[ResultRow]

    def __post_init__(self):
        import openai

        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)
        self.tokenizer = load_tokenizer(self.directory)
        self.vocab = AbstractVocab.of(self.tokenizer)

    def turns(self, text: str) -> list[dict]:
        return [{"role": "system", "content": "Think."}, {"role": "user", "content": text}]

    def request(self, text: str, **options) -> dict:
        rules = {"vllm_xargs": RULES, "return_token_ids": True} | options.pop("extra_body", {})
        asked = {"temperature": 0, "max_tokens": ALL_TOKENS} | options
        return {"model": self.model, "messages": self.turns(text), "extra_body": rules, **asked}

    def ask(self, text: str, **options) -> Message:
        reply = self.client.chat.completions.create(**self.request(text, **options))
        (choice,) = reply.choices
        said = choice.message
        return Message(
            said.reasoning or "",
            said.content or "",
            choice.token_ids,
            reply.usage.model_dump(),
            choice.finish_reason,
        )

    def stream(self, text: str, **options) -> Message:
        request = self.request(text, **options, stream=True)
        request["stream_options"] = {"include_usage": True}
        message = Message("", "", [], {}, "")
        for chunk in self.client.chat.completions.create(**request):
            for choice in chunk.choices:
                message.reasoning += getattr(choice.delta, "reasoning", None) or ""
                message.content += choice.delta.content or ""
                message.tokens += getattr(choice, "token_ids", None) or []
                message.finish_reason = choice.finish_reason or message.finish_reason
            if chunk.usage:
                message.usage = chunk.usage.model_dump()
        return message


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The server, and beside it the evaluation of the same model."""
    recipe, run, _ = make_tiny_run(tmp_path_factory.mktemp("serve"))
    evaluate = [sys.executable, str(ROOT / "launch/evaluate.py"), "--recipe", str(run.config)]
    log = run.root.with_suffix(".log")
    with log.open("w") as out:
        asking = subprocess.Popen(
            [*evaluate, "--model", "base", "--mode", "abstract"],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    with serve(run.base) as url:
        assert asking.wait(300) == 0, log.read_text()
        rows = read_result(run, "abstract_base_world").rows
        yield Served(url, "tiny/base", run.base, rows)


def test_the_trace_is_reasoning_and_the_answer_content(served):
    lengths = set()
    for i in range(12):
        sampled = {"vllm_xargs": RULES | {"trace_temperature": 5.0}}
        message = served.ask(f"question {i}", temperature=1.0, seed=i, extra_body=sampled)
        assert message.reasoning == "".join(message.codes)
        assert M_MIN <= len(message.codes) <= M_MAX
        lengths.add(len(message.codes))
        behind = len(message.codes) + 2
        trace = served.tokenizer.convert_tokens_to_ids([*message.codes, "<endabstract>"])
        newline = served.tokenizer.encode("\n", add_special_tokens=False)
        assert message.tokens[:behind] == trace + newline
        answer = message.tokens[behind:]
        assert answer and not set(answer) & set(served.vocab.ids)
        if message.finish_reason == "stop":
            answer = answer[:-1]
        # Half a character at the end is never said.
        assert message.content == served.tokenizer.decode(answer).rstrip("\ufffd")
    assert len(lengths) > 1


def test_usage_adds_up(served):
    for message, reasoning in (
        (m := served.ask("question 1"), len(m.codes) + 1),
        (served.ask("question 1", max_tokens=1), 1),
        (served.ask("question 1", extra_body=DIRECT), 0),
    ):
        usage = message.usage
        assert usage["completion_tokens"] == len(message.tokens)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == reasoning


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": ["never said, but held back for"]},
        {"max_tokens": 1},
        {"max_tokens": M_MAX},
        {"extra_body": DIRECT},
        {"temperature": 0.8, "seed": 5},
    ],
    ids=str,
)
def test_a_stream_adds_up_to_the_message(served, options):
    for i in range(4):
        assert served.stream(f"question {i}", **options) == served.ask(f"question {i}", **options)


def test_an_answer_cut_inside_its_trace_is_all_reasoning(served):
    whole = served.ask("question 3")
    for tokens in range(1, len(whole.codes) + 3):
        cut = served.ask("question 3", max_tokens=tokens)
        assert (cut.codes, cut.content) == (whole.codes[:tokens], "")
        assert cut.finish_reason == "length"


def test_a_direct_answer_is_all_content(served):
    for i in range(8):
        message = served.ask(f"question {i}", extra_body=DIRECT)
        assert message.reasoning == "" and message.content
        assert not set(message.tokens) & set(served.vocab.ids)


def test_the_same_request_has_the_same_answer(served):
    for options in ({}, {"temperature": 1.0, "seed": 7}):
        first, again = (served.ask("question 4", **options) for _ in range(2))
        assert first == again
    other = served.ask("question 4", temperature=1.0, seed=8)
    assert other.tokens != first.tokens


def test_without_rules_in_the_request_the_models_hold(served):
    """It brings none along, so launch/serve.py has added the recipe's: a greedy trace."""
    assert served.ask("question 5", extra_body={"vllm_xargs": {}}) == served.ask("question 5")
    options = {"temperature": 1.0, "extra_body": {"vllm_xargs": {}}}
    sampled = [served.ask("question 5", seed=seed, **options) for seed in range(3)]
    assert {m.reasoning for m in sampled} == {served.ask("question 5").reasoning}
    assert len({m.content for m in sampled}) > 1


def test_many_at_the_same_time_are_answered_as_alone(served):
    questions = [f"question {i}" for i in range(TOGETHER)]
    with ThreadPoolExecutor(TOGETHER) as threads:
        together = list(threads.map(served.ask, questions))
    assert together == [served.ask(question) for question in questions]
    assert len({tuple(message.tokens) for message in together}) > TOGETHER / 2


def test_greedy_answers_are_those_of_our_own_evaluation(served):
    assert len(served.rows) == 5
    for row in served.rows:
        message = served.ask(row.problem)
        assert [served.tokenizer.convert_tokens_to_ids(c) for c in message.codes] == row.trace_ids
        # The limit of the server is one for trace and answer.
        ours = message.tokens[len(row.trace_ids) + 2 :][:ANSWER_TOKENS]
        if ours[-1] == served.tokenizer.eos_token_id:
            assert row.finish_reason == "stop"
            ours = ours[:-1]
        assert served.tokenizer.decode(ours).strip() == row.response


@pytest.mark.parametrize(
    "rules, said",
    [
        ({"m_max": 0}, "m_max: expected a whole number of at least 1, found 0"),
        ({"m_max": "x"}, "m_max: expected a whole number of at least 1, found 'x'"),
        ({"m_min": 9, "m_max": 8}, "m_min: expected at most m_max (8), found 9"),
        ({"m_mx": 8}, "m_mx: no such argument; did you mean m_max?"),
        ({"trace_temperature": 1}, "trace_temperature: 1 cannot be had of a request with temp"),
    ],
    ids=str,
)
def test_rules_that_cannot_be_are_refused(served, rules, said):
    assert refused(served, extra_body={"vllm_xargs": rules}).startswith(said)


def test_what_would_end_an_answer_before_it_begins_is_refused(served):
    for stop in ("\n", ["TOKEN"]):
        assert "where the answer has not begun" in refused(served, stop=stop)
    direct = served.ask("question 1", stop="\n", extra_body=DIRECT)
    assert "\n" not in direct.content
    hidden = {"include_reasoning": False}
    format_ = {"type": "json_object"}
    assert "include_reasoning" in refused(served, extra_body=hidden, response_format=format_)


def refused(served, **options) -> str:
    import openai

    with pytest.raises(openai.BadRequestError) as error:
        served.ask("question 1", **options)
    message = error.value.body["message"]
    assert "\n" not in message
    return message


def test_a_format_holds_for_the_answer_behind_the_trace(served):
    schema = {
        "type": "object",
        "properties": {"cup": {"enum": ["A", "B"]}},
        "required": ["cup"],
        "additionalProperties": False,
    }
    json_schema = {"type": "json_schema", "json_schema": {"name": "cup", "schema": schema}}
    for ask in (served.ask, served.stream):
        choice = ask("question 1", extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
        assert choice.codes and choice.content in ("yes", "no")
        message = ask("question 2", response_format=json_schema, max_tokens=150)
        assert message.codes and json.loads(message.content)["cup"] in ("A", "B")


def test_a_completion_goes_on_from_token_ids(served):
    prompt = served.tokenizer.apply_chat_template(
        served.turns("question 6"), add_generation_prompt=True, return_dict=False
    )
    reply = served.client.completions.create(
        model=served.model,
        prompt=[*prompt, served.vocab.begin_id],
        temperature=0,
        max_tokens=ALL_TOKENS,
        extra_body={"vllm_xargs": RULES, "return_token_ids": True},
    )
    assert reply.choices[0].token_ids == served.ask("question 6").tokens


def test_the_responses_api_tells_them_apart_too(served):
    message = served.ask("question 7")
    reply = served.client.responses.create(
        model=served.model,
        input=served.turns("question 7"),
        temperature=0,
        max_output_tokens=ALL_TOKENS,
        extra_body={"vllm_xargs": RULES},
    )
    assert reply.output[0].content[0].text == message.reasoning
    assert reply.output_text == message.content
    usage = reply.usage
    assert usage.output_tokens_details.reasoning_tokens == len(message.codes) + 1


def test_a_second_server_on_the_port_is_refused(served):
    port = re.search(r":(\d+)/", served.url)[1]
    second = launch("serve.py", "--model", str(served.directory), "--port", port)
    assert second.returncode == 2
    (line,) = second.stdout.splitlines()
    assert line.startswith(f"error: --port {port}: taken") and "--port" in line[20:]
