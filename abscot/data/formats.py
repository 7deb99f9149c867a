r"""Raw rows -> examples (x, c, y): adapters, filters, the draw key; a reason for every row not
used.

    {"messages": [{"role": "user", "content": "2+2?"},
                  {"role": "assistant", "content": "<think>\n2+2=4\n</think>\n4"}]}
    -> Example(messages=[system, user "2+2?"], cot="2+2=4", answer="4")

The rule for rows of several turns: the last turn must be the assistant's; its think part is C and
the rest Y. All turns before it are the prompt, and the think parts of earlier assistant turns are
taken out, as chat templates do.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from abscot.data.decontaminate import Decontaminator
from abscot.data.sources import Rejected
from abscot.recipe.schema import DataConfig

ROLES = ("system", "user", "assistant")
OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Example:
    """One training row as text. `messages`: the prompt's turns, system first if there is one."""

    id: str
    messages: list[dict[str, str]]
    cot: str
    answer: str
    source: str

    @property
    def chars(self) -> int:
        return sum(len(m["content"]) for m in self.messages) + len(self.cot) + len(self.answer)


@dataclass(frozen=True)
class Adapter:
    """Reads a format's columns: `read(record)` gives (prompt turns, cot, answer) or raises
    Rejected.
    """

    columns: tuple[str, ...]
    read: Callable[[dict], tuple[list[dict[str, str]], str, str]]


def read_example(
    record: dict | Rejected, config: DataConfig, decontaminator: Decontaminator
) -> Example:
    """The example of one raw record. Raises Rejected where the row cannot or shall not be used."""
    if isinstance(record, Rejected):
        raise record
    adapter = ADAPTERS[config.format]
    missing = [name for name in adapter.columns if record.get(name) is None]
    if missing:
        raise Rejected(
            f"missing_column_{missing[0]}", f"columns here: {', '.join(map(str, record))}"
        )
    source = record.get("dataset_source") or record.get("source") or "unnamed"
    if not isinstance(source, str):
        raise Rejected("source_not_a_string", repr(source)[:100])
    if source in config.drop_sources or (config.keep_sources and source not in config.keep_sources):
        raise Rejected("source_left_out", source)
    messages, cot, answer = adapter.read(record)
    if messages[0]["role"] != "system" and config.system_prompt:
        messages = [{"role": "system", "content": config.system_prompt}, *messages]
    cot = cot.strip()
    if not cot:
        raise Rejected("empty_cot")
    if len(cot) < config.min_cot_chars:
        raise Rejected(
            "short_cot", f"{len(cot)} characters, data.min_cot_chars={config.min_cot_chars}"
        )
    if not answer.strip():
        raise Rejected("empty_answer")
    example = Example(row_id(record, messages, cot, answer), messages, cot, answer.strip(), source)
    _check_text(example, config.max_row_bytes)
    seen = decontaminator.overlap([m["content"] for m in messages if m["role"] == "user"])
    if seen:
        raise Rejected("in_evaluation", seen)
    return example


def row_id(record: dict, messages: list[dict[str, str]], cot: str, answer: str) -> str:
    """The row's `id`; a number as its decimal text; a hash of the content where there is no id.

    Raises Rejected for an id of any other type.
    """
    given = record.get("id")
    if given is None:
        text = "\x1f".join(
            [*(m["content"] for m in messages if m["role"] != "system"), cot, answer]
        )
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if not isinstance(given, str) or not given:
        raise Rejected("id_not_a_string", repr(given)[:100])
    return given


def draw_key(seed: int, example_id: str) -> int:
    """63-bit key of a row: the `data.rows` rows with the smallest keys are used, wherever they
    stand.

    Rows of the same id have the same key, which is how duplicates are found.
    """
    digest = hashlib.sha256(f"draw\x1f{seed}\x1f{example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_text(example: Example, max_bytes: int) -> None:
    """Raises Rejected for text that is no Unicode (lone surrogates) or too large."""
    try:
        texts = [
            example.id,
            example.source,
            *(m["content"] for m in example.messages),
            example.cot,
            example.answer,
        ]
        size = sum(len(text.encode("utf-8")) for text in texts)
    except UnicodeEncodeError as error:
        raise Rejected("invalid_unicode", f"lone surrogate: {error.reason}") from None
    if size > max_bytes:
        raise Rejected("row_too_big", f"{size} bytes, data.max_row_bytes={max_bytes}")


def _text(record: dict, column: str) -> str:
    if not isinstance(record[column], str):
        raise Rejected(f"not_text_{column}", f"found {type(record[column]).__name__}")
    return record[column]


def _user(text: str) -> list[dict[str, str]]:
    if not text.strip():
        raise Rejected("empty_prompt")
    return [{"role": "user", "content": text}]


# The adapters


def _read_messages(record: dict):
    turns = record["messages"]
    if not isinstance(turns, list) or not turns:
        raise Rejected("no_messages")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise Rejected("message_without_text")
        if turn.get("role") not in ROLES:
            raise Rejected("unknown_role", repr(turn.get("role"))[:100])
    if turns[-1]["role"] != "assistant":
        raise Rejected("last_turn_not_assistant", turns[-1]["role"])
    if len(turns) < 2 or turns[-2]["role"] != "user":
        raise Rejected("no_user_turn")
    if not turns[-2]["content"].strip():
        raise Rejected("empty_prompt")
    cot, answer = split_think(turns[-1]["content"])
    return [_prompt_turn(turn) for turn in turns[:-1]], cot, answer


def _prompt_turn(turn: dict) -> dict[str, str]:
    content = turn["content"]
    if turn["role"] == "assistant" and CLOSE in content:
        content = content.rpartition(CLOSE)[2].lstrip("\n")
    return {"role": turn["role"], "content": content}


def split_think(content: str) -> tuple[str, str]:
    """'<think>C</think>Y' -> (C, Y). Raises Rejected for one missing, unclosed, nested or not
    first.
    """
    if OPEN not in content and CLOSE not in content:
        raise Rejected("no_think")
    if OPEN not in content:
        raise Rejected("unopened_think")
    if CLOSE not in content:
        raise Rejected("unclosed_think")
    if content.count(OPEN) > 1 or content.count(CLOSE) > 1:
        raise Rejected(
            "nested_think", f"{content.count(OPEN)} {OPEN}, {content.count(CLOSE)} {CLOSE}"
        )
    before, _, rest = content.partition(OPEN)
    if before.strip() or CLOSE in before:
        raise Rejected("text_before_think")
    cot, _, answer = rest.partition(CLOSE)
    if not cot.strip():
        raise Rejected("empty_think")
    return cot, answer


def _read_prompt_cot_answer(record: dict):
    return _user(_text(record, "prompt")), _text(record, "cot"), _text(record, "answer")


def boxed(value: str) -> str:
    """A bare result as the sentence the evaluation reads."""
    return f"The answer is \\boxed{{{value}}}."


def _read_problem_solution(record: dict):
    """MATH: the solution is the CoT, the bare answer becomes a sentence."""
    answer = _text(record, "answer").strip()
    return (
        _user(_text(record, "problem")),
        _text(record, "solution"),
        boxed(answer) if answer else "",
    )


def _read_gsm8k(record: dict):
    """'steps .. <<48/2=24>> .. #### 1,024' -> steps without the calculator's notes, and 1024 in a
    box.
    """
    steps, mark, result = _text(record, "answer").rpartition("####")
    if not mark:
        raise Rejected("gsm8k_without_result", "no line `#### N` in answer")
    result = result.strip().replace(",", "")
    return (
        _user(_text(record, "question")),
        re.sub(r"<<[^<>]*>>", "", steps),
        boxed(result) if result else "",
    )


ADAPTERS = {
    "messages": Adapter(("messages",), _read_messages),
    "prompt_cot_answer": Adapter(("prompt", "cot", "answer"), _read_prompt_cot_answer),
    "problem_solution": Adapter(("problem", "solution", "answer"), _read_problem_solution),
    "gsm8k": Adapter(("question", "answer"), _read_gsm8k),
}
