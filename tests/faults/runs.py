"""The run into which faults are injected, as a command and in this process.

Both have one device, so their results are bitwise identical.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

from deepjax.training import CompiledTraining, RunOptions, TrainConfig, compile_training, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.metrics.metrics_log import TIMES, read_rows

ROOT = Path(__file__).parents[2]
CONFIG = TrainConfig(model="cifar_plain20", width=2, batch_size=240, epochs=3)  # 5 steps an epoch
OPTIONS = RunOptions(save_every=2)
FLAGS = [
    "--model",
    "cifar_plain20",
    "--width",
    "2",
    "--batch-size",
    "240",
    "--epochs",
    "3",
    "--save-every",
    "2",
]
CACHE = {  # a second start need not compile
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".data" / "faults-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def start(
    out: Path | str, *flags: str, script: str = "experiments/train.py", **environment: str
) -> subprocess.Popen[str]:
    """The run as a process of its own, on one CPU device unless the environment says otherwise."""
    variables = (
        os.environ
        | CACHE
        | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONFAULTHANDLER": "1"}
        | environment
    )
    command = [sys.executable, str(ROOT / script), *FLAGS, "--output-dir", str(out), *flags]
    return subprocess.Popen(
        command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Exit code and stderr of a process; one that hangs is killed, and its code is -999."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -999, "hung"
    return process.returncode, said


@functools.cache
def programs(config: TrainConfig = CONFIG) -> CompiledTraining:
    """Compiled once for all runs in this process."""
    return compile_training(config, OPTIONS)


def complete(
    out: Path | str, config: TrainConfig = CONFIG, said: list[str] | None = None
) -> list[str]:
    """Carry the run on to its end in this process; returns what was said, also in `said`."""
    said = [] if said is None else said
    train(config, out, OPTIONS, programs=programs(config), say=said.append)
    return said


def outcome(out: Path) -> tuple[object, ...]:
    """What must not depend on interruptions: digest, logs without times, no partial folders."""
    rows = [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_rows(out / "metrics.jsonl")
    ]
    return digest(out), rows, sorted(path.name for path in (out / "checkpoints").glob("*.partial"))


def reference(work: Path, config: TrainConfig = CONFIG) -> tuple[object, ...]:
    """The outcome of an uninterrupted run, made once."""
    out = work / f"reference-{config.epochs}"
    complete(out, config)
    return outcome(out)
