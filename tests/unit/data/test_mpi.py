"""MPI is imported only under a launcher."""

import os
import subprocess
import sys

from abscot.recipe.load import ROOT


def test_without_a_launcher_mpi_is_not_imported(tmp_path):
    code = (
        "import sys; from abscot.data import prepare, mpi; from abscot.pipeline.launchers import "
        "mpi_launch; mpi.Ranks(*mpi_launch()); sys.exit(bool({'mpi4py', 'torch'} & {*sys.modules}))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "SLURM_"))}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean).returncode == 0
