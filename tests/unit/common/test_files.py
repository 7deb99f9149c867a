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


def test_what_is_no_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        refusal = pytest.raises(UserError, match=f"{name}: a link or a file where a directory")
        with refusal, files.publish(tmp_path / name):
            raise AssertionError("work was begun")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_the_parts_of_a_verification_cover_every_file_once(tmp_path):
    for name in ("one", "two"):
        with files.publish(tmp_path / name) as temp:
            for size in range(5):
                (temp / str(size)).write_bytes(bytes(size))
    both = (tmp_path / "one", tmp_path / "two")
    sizes = [files.verify(*both, part=part, parts=3) for part in range(3)]
    assert sum(sizes) == files.verify(*both) == 20 and max(sizes) - min(sizes) <= 4
    (tmp_path / "two" / "3").write_bytes(b"123")
    caught = []
    for part in range(3):
        try:
            files.verify(*both, part=part, parts=3)
        except UserError as error:
            caught.append(str(error))
    assert len(caught) == 1 and "two/3: checksum differs" in caught[0]


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
