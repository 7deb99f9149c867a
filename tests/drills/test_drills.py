"""The fault drills on a private Slurm cluster, each a test. Half an hour: `bash tests/run.sh -m
drill`.
"""

import pytest

from drills.slurm_drills import DRILLS, hold
from kit import slurm_cluster

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason="needs slurm-wlm and munge"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("drills")


@pytest.mark.parametrize("name", DRILLS)
def test_a_disturbed_round_ends_with_the_weights_of_the_undisturbed_one(root, name):
    found = hold(name, root)
    assert found["bit_identical"], found
