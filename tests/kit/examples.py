"""Raw records and what becomes of them."""

from dataclasses import replace

import pytest

from abscot.data.decontaminate import Decontaminator
from abscot.data.formats import read_example
from abscot.data.rejected import Rejected
from abscot.recipe.schema import DataConfig

CONFIG = DataConfig(
    format="prompt_cot_answer", min_cot_chars=5, system_prompt="Think.", max_row_bytes=10_000
)


def example(record, format="messages", problems=(), **changes):
    return read_example(
        record, replace(CONFIG, format=format, **changes), Decontaminator(problems, 0.5)
    )


def chat(*turns, **columns) -> dict:
    """Turns as 'u:text', 's:text', 'a:text'."""
    roles = {"u": "user", "s": "system", "a": "assistant", "t": "tool"}
    return {"messages": [{"role": roles[t[0]], "content": t[2:]} for t in turns], **columns}


def reason(record, format="messages", **changes) -> str:
    with pytest.raises(Rejected) as caught:
        example(record, format, **changes)
    return caught.value.reason
