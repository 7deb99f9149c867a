"""Ten steps of every phase: their losses, beside those that are stored. A refactor must not move
them.

  python tests/golden_losses.py [--write]   a minute; --write stores what it finds: say why
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from abscot.common.process import leave
from abscot.generation.trace_jobs import generate, open_job
from abscot.method.phases import PHASES
from kit import training_run
from kit.tiny_run import KeyedEngine, training_of

STORED = Path(__file__).with_suffix(".json")
RELATIVE = 2e-4  # other CPUs add in other orders


def losses(root: Path) -> dict[str, list[float]]:
    """phase -> losses of its first ten steps, fp32, one ZeRO-3 rank; phase B starts from A, the
    baselines from the base.
    """
    from abscot.training.train_phase import train

    recipe, run = training_run.make(
        root, ranks=1, dtype="fp32", epochs=2, phase_epochs=dict.fromkeys(PHASES, 2)
    )
    recipe = dataclasses.replace(recipe, trackers=[])
    found = {}
    for name, phase in PHASES.items():
        if name == "B":
            generate(open_job(training_of(recipe, run, 1, "B")), engine=KeyedEngine())
        train(training_of(recipe, run, 1, name))
        found[name] = [
            step["loss"] for step in json.loads(run.train_log(phase.tag(1)).read_text())["steps"]
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    found = losses(Path(tempfile.mkdtemp(prefix="abscot-golden-")) / "run")
    if write:
        STORED.write_text(
            json.dumps({name: [round(x, 7) for x in row] for name, row in found.items()}, indent=1)
            + "\n"
        )
        return 0
    stored, moved = json.loads(STORED.read_text()), []
    for name, row in found.items():
        moved += [
            f"{name} step {step}: {x:.7f}, stored {y:.7f}"
            for step, (x, y) in enumerate(zip(row, stored[name], strict=True))
            if abs(x - y) > RELATIVE * abs(y)
        ]
    print("\n".join(moved) or f"all losses of {', '.join(found)} are the stored ones")
    return int(bool(moved))


if __name__ == "__main__":
    leave(main())
