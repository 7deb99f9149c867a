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
import reprlib
from collections.abc import Callable
from dataclasses import dataclass

from abscot.data.decontaminate import Decontaminator
from abscot.data.rejected import Rejected
from abscot.recipe.schema import DataConfig

ROLES = ("system", "user", "assistant")
OPEN, CLOSE = "<think>", "</think>"
NAME_CHARS = 1000  # of an id or a source, at most


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
    try:
        return _example(record, config, decontaminator)
    except UnicodeEncodeError as error:
        raise Rejected("invalid_unicode", f"lone surrogate: {error.reason}") from None


def _example(record: dict, config: DataConfig, decontaminator: Decontaminator) -> Example:
    adapter = ADAPTERS[config.format]
    missing = [name for name in adapter.columns if record.get(name) is None]
    if missing:
        raise Rejected(
            f"missing_column_{missing[0]}", f"columns here: {', '.join(map(str, record))}"
        )
    source = _source(record)
    if _holds(source, config.drop_sources) or (
        config.keep_sources and not _holds(source, config.keep_sources)
    ):
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
    _check_size(example, config.max_row_bytes)
    seen = decontaminator.overlap([m["content"] for m in messages if m["role"] == "user"])
    if seen:
        raise Rejected("in_evaluation", seen)
    return example


def _source(record: dict) -> str:
    given = (record.get(column) for column in ("dataset_source", "source"))
    source = next((value for value in given if value is not None and value != ""), "unnamed")
    return _name(source, "source")


def _holds(source: str, parts: list[str]) -> bool:
    return any(part in source for part in parts)


def _name(value: object, what: str) -> str:
    """`value`, where it can stand in a line of a log. Raises Rejected otherwise."""
    if not isinstance(value, str) or not value:
        raise Rejected(f"{what}_not_a_string", reprlib.repr(value))
    if len(value) > NAME_CHARS:
        raise Rejected(f"{what}_too_long", f"{len(value)} characters, at most {NAME_CHARS}")
    value.encode()  # a lone surrogate
    if not value.isprintable():
        raise Rejected(f"{what}_not_printable", ascii(value[:100]))
    return value


def row_id(record: dict, messages: list[dict[str, str]], cot: str, answer: str) -> str:
    """The row's `id`; a number as its decimal text; a hash of the content where there is no id.

    Raises Rejected for an id of any other type, and for one that is no short printable text.
    """
    given = record.get("id")
    if given is None:
        text = "\x1f".join(
            [*(m["content"] for m in messages if m["role"] != "system"), cot, answer]
        )
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    return _name(given, "id")


def draw_key(seed: int, example_id: str) -> int:
    """63-bit key of a row: the `data.rows` rows with the smallest keys are used, wherever they
    stand.

    Rows of the same id have the same key, which is how duplicates are found.
    """
    digest = hashlib.sha256(f"draw\x1f{seed}\x1f{example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_size(example: Example, max_bytes: int) -> None:
    """Raises Rejected for text that is too large, UnicodeEncodeError for lone surrogates."""
    texts = [*(m["content"] for m in example.messages), example.cot, example.answer]
    size = sum(len(text.encode("utf-8")) for text in texts)
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
            raise Rejected("unknown_role", reprlib.repr(turn.get("role")))
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


def last_boxed(text: str) -> str:
    r"""What stands in the last `\boxed{..}` of `text`, its braces paired (`\{` pairs nothing).

    Raises Rejected where there is none, and where the last one is not closed.
    """
    _, box, rest = text.rpartition(r"\boxed{")
    if not box:
        raise Rejected("no_boxed_answer", r"no \boxed{..} in solution, and no column answer")
    depth = 1
    for mark in re.finditer(r"\\.|[{}]", rest, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return rest[: mark.start()]
    raise Rejected("unclosed_boxed_answer", r"the last \boxed{ of solution has no end")


def _read_problem_solution(record: dict):
    """MATH: the solution is the CoT; the bare answer, or else the solution's last box, becomes a
    sentence.
    """
    prompt, solution = _user(_text(record, "problem")), _text(record, "solution")
    given = record.get("answer") is not None
    answer = (_text(record, "answer") if given else last_boxed(solution)).strip()
    return prompt, solution, boxed(answer) if answer else ""


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
    "problem_solution": Adapter(("problem", "solution"), _read_problem_solution),
    "gsm8k": Adapter(("question", "answer"), _read_gsm8k),
}
