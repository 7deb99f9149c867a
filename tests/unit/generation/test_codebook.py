"""The codebook: states that differ get different codes; the same bits again; damage is refused."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from abscot.common import files
from abscot.common.errors import UserError
from abscot.common.hardware import one_thread
from abscot.generation.codebook import META, TENSORS, Codebook, CodebookMeta, LevelCounts, fit

SIZE, WIDTH, PLACES = 4, 16, 5


def states_of(seed: int = 0, count: int = 1200):
    """(states, place, kind): four kinds of states around centres of their own, moved by their
    place; one dimension is far wider than all others, and says nothing.
    """
    draw = np.random.default_rng(seed)
    kind, place = draw.integers(0, SIZE, count), np.arange(count) % PLACES
    centres, moves = draw.normal(0, 1, (SIZE, WIDTH)), draw.normal(0, 5, (PLACES, WIDTH))
    states = centres[kind] + moves[place] + draw.normal(0, 0.1, (count, WIDTH))
    states[:, 0] = draw.normal(0, 1000, count)
    return states.astype(np.float32), place, kind


def fitted(levels: int = 2, **more) -> Codebook:
    states, place, _ = states_of(**more)
    tensors, counts = fit(states, place, PLACES, SIZE, levels, seed=1)
    meta = CodebookMeta(
        version=CodebookMeta.VERSION,
        base_fingerprint="0" * 16,
        layer=0.5,
        layer_number=1,
        num_layers=2,
        position="end",
        hidden_size=WIDTH,
        codebook_size=SIZE,
        places=PLACES,
        seed=0,
        rows=240,
        states=len(states),
        levels=counts,
    )
    return Codebook(meta, **tensors)


@pytest.fixture(scope="module")
def codebook():
    return fitted()


@pytest.fixture
def written(codebook, tmp_path):
    with files.publish(tmp_path / "codebook") as directory:
        codebook.write(directory)
    return tmp_path / "codebook"


def test_a_code_tells_the_kind_of_state_whatever_its_place(codebook):
    states, _, kind = states_of()
    rows = states.reshape(-1, PLACES, WIDTH)
    codes = np.concatenate([codebook.codes(row, 1)[:, 0] for row in rows])
    table = np.zeros((SIZE, SIZE))
    np.add.at(table, (codes, kind), 1)
    assert table.max(1).sum() / len(kind) > 0.99  # purity
    assert codebook.meta.levels[0].counts == np.bincount(codes).tolist()


def test_a_place_that_no_row_had_takes_the_mean_of_all(codebook):
    states = states_of()[0][: PLACES + 3]
    assert len(codebook.codes(states, 2)) == PLACES + 3
    seen = np.append(np.arange(PLACES), [PLACES] * 3)
    left = (states - codebook.means[seen]) / codebook.spread
    assert np.isfinite(left).all() and not np.array_equal(codebook.means[0], codebook.means[-1])


def test_further_codes_say_more():
    book, errors = fitted(levels=4), np.zeros(5)
    for row in states_of()[0].reshape(-1, PLACES, WIDTH):
        left, codes = (row - book.means[:PLACES]) / book.spread, book.codes(row, 4)
        assert np.array_equal(codes[:, :2], book.codes(row, 2))
        errors[0] += (left**2).sum()
        for level, centroids in enumerate(book.centroids):
            left = left - centroids[codes[:, level]]
            errors[level + 1] += (left**2).sum()
    assert (np.diff(errors) < 0).all() and errors[1] < 0.5 * errors[0]


def test_the_same_states_make_the_same_codebook(codebook):
    with one_thread():
        again = [fitted() for _ in range(2)]
    for name in codebook.meta.shapes():
        assert getattr(again[0], name).tobytes() == getattr(again[1], name).tobytes()


def test_few_states_are_refused():
    states = np.repeat(np.eye(3, 8, dtype=np.float32), 50, axis=0)
    with pytest.raises(UserError, match="take only 3 different values, fewer than codebook_size"):
        fit(states, np.zeros(150, int), PLACES, SIZE, 1, seed=0)


def test_dead_and_dominating_codes_are_told():
    assert LevelCounts(counts=[5, 0, 0, 4]).warnings() == [
        "2 of 4 codes are never used",
        "code 0 has 56%",
    ]
    assert LevelCounts(counts=[5, 5]).warnings() == []


def test_it_is_read_as_it_was_written(codebook, written):
    again = Codebook.read(written, "mend")
    assert again.meta == codebook.meta
    for name in codebook.meta.shapes():
        assert np.array_equal(getattr(again, name), getattr(codebook, name))


def with_tensors(change):
    def damage(directory):
        tensors = {k: v.copy() for k, v in load_file(directory / TENSORS).items()}
        change(tensors)
        save_file(tensors, directory / TENSORS)

    return damage


def with_meta(**changes):
    def damage(directory):
        value = json.loads((directory / META).read_text()) | changes
        (directory / META).write_text(json.dumps(value))

    return damage


def of(name, index, value):
    return with_tensors(lambda tensors: tensors[name].__setitem__(index, value))


DAMAGES = {
    "empty centroid": (of("centroids", (0, 2), 0), "centroid 2 of level 0 is empty"),
    "NaN centroid": (of("centroids", (1, 3, 5), np.nan), "centroid 3 of level 1 holds NaN"),
    "infinite mean": (of("means", (0, 0), np.inf), "means hold NaN or infinity"),
    "no spread": (of("spread", 0, 0), "spread: expected numbers above 0"),
    "tensor missing": (with_tensors(lambda t: t.pop("means")), "codebook.json says"),
    "other width": (with_meta(hidden_size=8), "codebook.json says"),
    "other kind": (
        with_tensors(lambda t: t.update(means=t["means"].astype(np.float16))),
        "means is F16, expected F32",
    ),
    "unknown key": (with_meta(more=1), "more"),
    "layer outside": (with_meta(layer=1.5), "layer"),
    "another version": (with_meta(version=1), "version"),
    "counts do not add up": (with_meta(states=7), "do not add up"),
    "cut file": (lambda d: (d / TENSORS).write_bytes(b"x" * 9), "not a whole safetensors file"),
    "no tensors": (lambda d: (d / TENSORS).unlink(), TENSORS),
    "no meta": (lambda d: (d / META).unlink(), META),
    "not a directory": (lambda d: shutil.rmtree(d), "not a directory"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_codebook_is_refused_in_one_line(written, name):
    damage, words = DAMAGES[name]
    (written / files.DONE).unlink()
    damage(written)
    with pytest.raises(UserError) as refused:
        Codebook.read(written, "mend")
    line = str(refused.value)
    assert words in line and str(written) in line and "\n" not in line and len(line) < 500


def test_a_file_that_is_not_what_done_says_is_refused(written):
    of("spread", 0, 2)(written)
    with pytest.raises(UserError, match="checksum differs"):
        Codebook.read(written, "mend")
