import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from abscot.common.errors import UserError
from abscot.evaluation import judge
from kit.synthetic_run import result_row
from kit.tiny_run import tiny_recipe

ROWS = [
    result_row(
        id=f"alpaca_eval/{i}",
        problem=f"do {i}",
        gold="poor",
        response="good" if i % 2 else "bad",
    )
    for i in range(12)
]


class Endpoint(BaseHTTPRequestHandler):
    """Prefers `good` to `poor` to `bad`, wherever they stand."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, a, b = body["messages"][0]["content"].split("# Answer")[0:3]
        rank = [("bad", "poor", "good").index(text.split("\n")[1]) for text in (a, b)]
        reply = {"choices": [{"message": {"content": "A" if rank[0] > rank[1] else "B"}}]}
        self.send_response(200 if self.path == "/v1/chat/completions" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def url():
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def asked(tmp_path, url):
    recipe = tiny_recipe(tmp_path)
    return dataclasses.replace(
        recipe, eval=dataclasses.replace(recipe.eval, judge_url=url, judge_model="m")
    )


def test_the_judge_prefers_the_better_answer_in_either_place(tmp_path, url):
    verdicts = judge.score_all(asked(tmp_path, url + "/v1"), ROWS)
    assert [v.score for v in verdicts] == [float(i % 2) for i in range(12)]
    assert {v.scorer for v in verdicts} == {"judge:m"}


def test_without_a_url_nobody_judges(tmp_path):
    assert {(v.score, v.scorer) for v in judge.score_all(asked(tmp_path, None), ROWS)} == {
        (None, "not-judged")
    }


def test_an_endpoint_that_refuses_is_named(tmp_path, url):
    with pytest.raises(
        UserError, match="eval.judge_url: .*/wrong did not answer .*404.*OPENAI_API_KEY"
    ):
        judge.score_all(asked(tmp_path, url + "/wrong"), ROWS)


def test_answers_are_written_as_alpaca_eval_reads_them(tmp_path):
    judge.write_answers(
        tmp_path / "a.json", [*ROWS, ROWS[0].model_copy(update={"sample": 1})], "abstract_final"
    )
    written = json.loads((tmp_path / "a.json").read_text())
    assert len(written) == 12 and written[1] == {
        "instruction": "do 1",
        "output": "good",
        "generator": "abstract_final",
    }
