"""The stages of grounded traces, by their commands, killed at work."""

import pytest

from drills.grounding_drill import drill, finish, make

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run makes."""
    return finish(make(tmp_path_factory.mktemp("whole"))[1], 1)


@pytest.mark.parametrize("of", [1, 3])
def test_killed_at_several_moments_the_traces_are_the_same(whole, tmp_path, of):
    result = drill(tmp_path / "run", of, kills=5, seed=0, expected=whole)
    assert result["the same"] and result["kills"] == 5, result
