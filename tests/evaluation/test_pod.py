"""Several processes whose devices the mesh has in another order than theirs, as on a TPU pod."""

import os
import socket
import subprocess
import sys

import pytest

from tests.faults.runs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("damaged", "said"), [(-1, "equal"), (6, "record 6 is corrupt")])
def test_each_image_has_its_own_scores_and_damage_ends_all(damaged, said):
    """Record 6 is read by one of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = [
        [sys.executable, "-m", "tests.evaluation.pod", str(port), str(process), str(damaged)]
        for process in (0, 1)
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    started = [
        subprocess.Popen(each, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for each in commands
    ]
    told = [process.communicate(timeout=120)[0] for process in started]
    assert all(said in each for each in told), told
