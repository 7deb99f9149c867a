"""Records: what is read back is what was written, or one line says what is wrong."""

import pytest

from abscot.common.errors import UserError
from abscot.common.record import Record


class Step(Record):
    step: int
    loss: float
    mfu: float | None = None


def test_a_record_is_read_as_it_was_written(tmp_path):
    step = Step(step=3, loss=0.1 + 0.2)
    step.write(tmp_path / "step.json")
    assert Step.read(tmp_path / "step.json") == step


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"step": 3, "loss": 0.5, "color": 1}', r"step.json: color: .*not permitted; mend it so"),
        ('{"step": 3}', "step.json: loss: .*required; mend it so"),
        ('{"step": "3", "loss": 0.5}', "step.json: step: .*integer; mend it so"),
        ('{"step": 3, "loss": true}', "step.json: loss: .*number; mend it so"),
        ('{"step": 3,\n "loss"', r"step.json:2: not JSON \(.*\); mend it so"),
        ("[]", "step.json: Step: .*; mend it so"),
        (b"\xff", r"step.json: not text \(byte 0\); mend it so"),
        (None, "step.json: No such file or directory; mend it so"),
    ],
)
def test_anything_else_is_one_line_with_file_and_key(tmp_path, text, says):
    path = tmp_path / "step.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says) as caught:
        Step.read(path, "mend it so")
    assert "\n" not in str(caught.value)
