"""What the compiled step communicates does not grow with the devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "experiments" / "benchmarks" / "scale_collectives.py"
WIDTH = 2
# Batch norms of the plain network of 20 layers: one of the stem, six in each of three stages.
CHANNELS = WIDTH * (1 + 6 * (1 + 2 + 4))


def of_devices(count: int) -> dict:
    """What a process with so many simulated devices compiles."""
    flags = ["--model", "cifar_plain20", "--width", str(WIDTH), "--devices", str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *flags], env=environment, check=True, stdout=subprocess.PIPE
    )
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_each_sum_is_reduced_once_on_2_to_16_devices():
    """Four bytes for each parameter's gradient, for mean and mean square of each channel of a batch
    norm, and for three sums of metrics.
    """
    rows = [of_devices(count) for count in (2, 4, 8, 16)]
    assert [row["devices"] for row in rows] == [2, 4, 8, 16]
    for row in rows:
        assert row["collectives"] == rows[0]["collectives"]
        values = row["parameters"] + 2 * CHANNELS + 3
        assert round(1e6 * row["megabytes"]) == 4 * values
