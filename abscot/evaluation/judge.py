"""Open-ended answers: written out as AlpacaEval reads them, and compared with the reference by a
judge model.
"""

import http.client
import json
import os
import re
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from abscot.common import json_text
from abscot.common.draws import rng
from abscot.common.errors import UserError, shown
from abscot.common.files import write_json_atomic
from abscot.evaluation.results import ResultRow
from abscot.evaluation.scoring import Verdict
from abscot.recipe.schema import Recipe

KEY_VARIABLE = "OPENAI_API_KEY"
TIMEOUT_S = 120
PARALLEL_REQUESTS = 8
MOST_REPLY_BYTES = 2**20
QUESTION = """Two assistants answered the same instruction. Which answer is better? \
Reply with one letter, A or B.

# Instruction
{instruction}

# Answer A
{a}

# Answer B
{b}
"""


def write_answers(path: Path, rows: list[ResultRow], generator: str) -> None:
    """The first sample of each problem in AlpacaEval's format: `alpaca_eval --model_outputs FILE`
    judges it.
    """
    first = [row for row in rows if row.sample == 0]
    write_json_atomic(
        path,
        [{"instruction": r.problem, "output": r.response, "generator": generator} for r in first],
    )


def score_all(recipe: Recipe, rows: list[ResultRow]) -> list[Verdict]:
    """1 where the judge prefers the answer to the reference, 0 where it does not, None where nobody
    judged.

    Asks eval.judge_url, any OpenAI-compatible endpoint, for eval.judge_model; without a url nothing
    is asked. Raises UserError where the endpoint cannot be reached or refuses.
    """
    config = recipe.eval
    if config.judge_url is None:
        return [Verdict(None, None, None, "not-judged")] * len(rows)

    def ask(row: ResultRow) -> Verdict:
        # Judges favour a place, so it is drawn.
        answer_first = bool(rng(recipe.seed, "judge", row.id, row.sample).integers(2))
        pair = (row.response, row.gold) if answer_first else (row.gold, row.response)
        reply = _chat(
            config.judge_url,
            config.judge_model,
            QUESTION.format(instruction=row.problem, a=pair[0], b=pair[1]),
        )
        letter = reply.strip()[:1].upper()
        if letter not in ("A", "B"):
            return Verdict(None, None, None, f"judge:{config.judge_model}:unreadable")
        right = float((letter == "A") == answer_first)
        return Verdict(None, right, right, f"judge:{config.judge_model}")

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as threads:
        return list(threads.map(ask, rows))


def _chat(url: str, model: str, text: str) -> str:
    body = {
        "model": model,
        "temperature": 0,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": text}],
    }
    key = os.environ.get(KEY_VARIABLE, "").strip()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        if not (key.isascii() and key.isprintable()):  # http.client's message would show it
            raise ValueError("the key has characters that no header may have")
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("expected http:// or https://")
        request = urllib.request.Request(
            f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return _said(response.read(MOST_REPLY_BYTES))
    except (OSError, http.client.HTTPException, ValueError) as error:
        where, why = shown(_without_password(url)), shown(str(error))
        raise UserError(
            f"eval.judge_url: {where} did not answer ({why}); check the url, and the key in "
            f"{KEY_VARIABLE}"
        ) from None


def _said(reply: bytes) -> str:
    """The text of a chat completion; "" for null. Raises ValueError for what is none."""
    value = json_text.parse(reply.decode("utf-8"))
    try:
        text = value["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("its reply is no chat completion") from None
    if not isinstance(text, str | None):
        raise ValueError(f"its reply says {json_text.kind(text)}, no text")
    return text or ""


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
