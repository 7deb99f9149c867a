"""Two trainings on one run, with DeepSpeed's ranks as they are."""

import psutil
import pytest

from kit.training_run import finish, make, start, trained, wait_for, weights

pytestmark = pytest.mark.engine


def leases(run) -> list:
    return list((run.root / ".leases").glob("*.json"))


def test_the_second_of_two_trainings_is_refused_and_the_first_goes_on(tmp_path):
    recipe, run = make(tmp_path / "two", epochs=8)
    first = start(recipe, run)
    wait_for(lambda: leases(run))
    ranks = psutil.Process(first.pid).children(recursive=True)
    for rank in ranks:  # or it may be done before the second has come so far
        rank.suspend()
    code, output = finish(start(recipe, run))
    for rank in ranks:
        rank.resume()
    assert code == 2, output
    assert output.count("error: ") == 1 and "Traceback" not in output
    assert f"{run.root}: another process works on this run (pid " in output
    code, output = finish(first)
    assert code == 0, output
    assert leases(run) == []
    _, alone = trained(tmp_path / "alone", epochs=8)
    there, here = weights(alone), weights(run)
    assert all(here[name].equal(there[name]) for name in there)


def test_a_training_that_lost_its_lease_ends_and_can_be_started_again(tmp_path):
    recipe, run = make(tmp_path / "lost", epochs=200)
    process = start(recipe, run)
    wait_for(lambda: leases(run))
    leases(run)[0].unlink()
    code, output = finish(process)
    assert code != 0 and "gone, so taken over" in output
    assert not (run.checkpoints("pi1_phaseA") / "export").exists()
    recipe.train.epochs = 1
    run.plan_of("pi1_phaseA").unlink(missing_ok=True)
    code, output = finish(start(recipe, run))
    assert code == 0, output
