"""The stages of grounded traces, by their commands, killed at work."""

import pytest

from drills.grounding_drill import drill, finish, make

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run makes."""
    return finish(make(tmp_path_factory.mktemp("whole"))[1], 1)


def test_killed_at_several_moments_three_shards_make_the_traces_of_one(whole, tmp_path):
    result = drill(tmp_path / "run", 3, kills=5, seed=0, expected=whole)
    assert result["the same"] and result["kills"] == 5, result
