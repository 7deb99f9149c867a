"""Atomic publish: all or nothing, checksums that catch damage."""

import pytest

from abscot.common import files
from abscot.common.errors import UserError


def test_publish_is_all_or_nothing(tmp_path):
    final = tmp_path / "model"
    with pytest.raises(RuntimeError), files.publish(final) as temp:
        (temp / "half").write_text("x")
        raise RuntimeError
    assert not final.exists()
    with files.publish(final, {"round": 1}) as temp:
        assert not any(temp.iterdir()), "the remains of a killed attempt must not be published"
        (temp / "whole").write_text("x")
    assert files.read_done(final) == {"round": 1} and (final / "whole").read_text() == "x"


def test_verify_names_the_damaged_file(tmp_path):
    with files.publish(tmp_path / "m") as temp:
        (temp / "a").write_text("1")
        (temp / "sub").mkdir()
        (temp / "sub" / "b").write_text("2")
    files.verify(tmp_path / "m")
    (tmp_path / "m" / "sub" / "b").write_text("3")
    with pytest.raises(UserError, match="sub/b: checksum"):
        files.verify(tmp_path / "m")
    (tmp_path / "m" / "a").unlink()
    with pytest.raises(UserError, match="a: missing"):
        files.verify(tmp_path / "m")


def test_fingerprint_follows_content(tmp_path):
    for name, text in (("one", "x"), ("same", "x"), ("other", "y")):
        with files.publish(tmp_path / name, {"time": name}) as temp:
            (temp / "f").write_text(text)
    prints = [files.fingerprint(tmp_path / name) for name in ("one", "same", "other")]
    assert prints[0] == prints[1] != prints[2]
