"""What codes tell of states, on examples whose numbers are known; what of a run is looked at."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from abscot.common import files
from abscot.generation.trace_records import SET_SCHEMA
from abscot.reporting import meaning, report, run_data
from abscot.reporting.blocks import to_markdown
from kit.synthetic_run import make_run, write_traces


def test_numbers_of_a_position_that_are_known():
    """Codes 7 and 9 mean A, and 8 means B but once: 3 of 4 states behind it are B's."""
    found = meaning.position([7, 7, 9, 9, 8, 8, 8, 8], list("AAAABBBA"))
    assert found.purity == 7 / 8

    def entropy(*shares):
        return -sum(p * math.log(p) for p in shares)

    of_state, of_code = entropy(5 / 8, 3 / 8), entropy(1 / 4, 1 / 4, 1 / 2)
    mutual = of_state - 0.5 * entropy(1 / 4, 3 / 4)
    assert found.nmi == pytest.approx(2 * mutual / (of_state + of_code))
    assert 0 < found.ami < found.nmi


def test_codes_that_name_the_state_and_codes_that_do_not():
    named = meaning.position([1, 2, 3] * 40, list("ABC") * 40)
    assert (named.purity, named.nmi, named.ami) == pytest.approx((1, 1, 1))
    assert named.chance == pytest.approx(1 / 3, abs=0.12)
    constant = meaning.position([5] * 10, list("AAAAAABBBB"))
    assert (constant.purity, constant.chance, constant.nmi, constant.ami) == pytest.approx(
        (0.6, 0.6, 0, 0)
    )


def test_few_traces_of_many_codes_tell_nothing_though_they_look_pure():
    draw = np.random.default_rng(0)
    found = meaning.position(draw.integers(64, size=300), draw.integers(6, size=300))
    assert found.purity > 2 / 6 and found.nmi > 0.15
    assert found.purity == pytest.approx(found.chance, abs=0.05)
    assert found.ami == pytest.approx(0, abs=0.05)


def test_each_code_of_a_step_stands_beside_the_state_after_it():
    """Two codes a step: the first one names the state, the second one says nothing."""
    states = ["AB", "BA", "AA", "BB"] * 6
    code = {"A": 11, "B": 12}
    traces = [[code[s[0]], 3, code[s[1]], 3] for s in states]
    found = meaning.told(traces, states)
    assert (found.traces, found.used, found.per_step) == (24, 24, 2)
    assert [p.ami for p in found.positions] == pytest.approx([1, 0, 1, 0])
    assert found.mean("purity") == pytest.approx(0.75)


def test_traces_of_other_lengths_are_counted_and_not_looked_at():
    """Of three steps: 3 codes are one a step, 6 are two, 4 and none are no number of codes a
    step.
    """
    states = ["ABA", "BAB", "ABB", "BAA", "ABA", "BBB"]
    traces = [[1, 2, 1], [2, 1, 2], [1, 2, 2], [9, 9, 9, 9], [], [9] * 6]
    found = meaning.told(traces, states)
    assert (found.traces, found.used, found.per_step, len(found.positions)) == (6, 3, 1, 3)
    assert [p.purity for p in found.positions] == [1, 1, 1]
    none = meaning.told([[1, 2]], ["ABC"])
    assert (none.traces, none.used, none.positions) == (1, 0, ())


@pytest.fixture
def run_in_world(tmp_path):
    """A run of one round in a world of three steps. Its sets of traces have one code a step, which
    is the state; all traces of the final model begin with the same codes.
    """
    run = make_run(tmp_path, rounds=1, **{"eval.benchmarks": "[world]"})
    draw = np.random.default_rng(0)
    states = {f"world-{i}": "".join(draw.choice(list("ABC"), 3)) for i in range(60)}
    with files.publish(run.world) as directory:
        rows = [
            {"id": id_, "dataset_source": "world", "messages": [], "states": told}
            for id_, told in states.items()
        ]
        heldout = [
            {"id": f"p{i:03}", "problem": "?", "cot": ".", "answer": "A", "states": told}
            for i, told in enumerate(states.values())
        ]
        for name, lines in (("rows", rows), ("heldout", heldout)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (directory / f"{name}.jsonl").write_text(text)
    for tag in ("pi1_phaseA", "pi1_phaseB"):
        traces = [[ord(letter) for letter in told] for told in states.values()]
        columns = {"row": range(60), "id": list(states), "trace": traces}
        table = pa.table(columns, schema=SET_SCHEMA)
        write_traces(run.traces(tag), table)
    return run


def test_of_a_run_every_set_and_model_is_told(run_in_world):
    found = meaning.of_run(run_data.read(run_in_world))
    assert list(found)[:2] == ["pi1_phaseA", "pi1_phaseB"]
    assert found["pi1_phaseA"].used == 60 and found["pi1_phaseA"].mean("ami") == pytest.approx(1)
    final = found["final, held-out"]
    assert final.traces == 60 and 0 < final.used < 60  # 200 problems; the world knows 60 of them
    assert final.mean("ami") == pytest.approx(0) and final.mean("purity") < 0.9
    text = to_markdown(report.blocks(run_data.read(run_in_world), {}))
    assert "What the codes say of the state" in text
    assert "| pi1_phaseA | 60 of 60 | 1 | 100.0 |" in text.replace("\\_", "_")
    assert "| 100 / 1.00 | 100 / 1.00 | 100 / 1.00 |" in text


def test_a_run_without_the_world_says_nothing_of_states(tmp_path):
    data = run_data.read(make_run(tmp_path, rounds=1))
    assert meaning.of_run(data) == {}
    assert "say of the state" not in to_markdown(report.blocks(data, {}))
