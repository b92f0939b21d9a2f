"""Benchmark contenders in processes of their own, timed in interleaved rounds; their ratios."""

import contextlib
import json
import os
import shlex
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binom

from deepjax.errors import InputError
from deepjax.training.config import write_text

HERE = Path(__file__).parent
Server = subprocess.Popen


@contextlib.contextmanager
def contender_process(
    python: str, script: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Server]:
    """The process of a script of this folder that serves blocks; ends with its workers."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    line = [python, str(HERE / script), *arguments]
    whole = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment)
    with subprocess.Popen(line, env=whole, **pipes) as server:  # noqa: S603  # our own scripts
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Its stdin is closed, so it ends by itself, with its worker processes.
                server.communicate(timeout=30)
            server.kill()


def read_message(server: Server) -> Any:
    """The next JSON message of a process; raises InputError when it has ended."""
    line = server.stdout.readline() if server.stdout else ""
    if not line:
        raise InputError(
            "a contender's process ended; its message is above (there is none where the system "
            "killed it for memory)"
        )
    return json.loads(line)


def time_rounds(servers: Mapping[str, Server], rounds: int) -> dict[str, list[float]]:
    """Images per second of each block, in rounds; every other round runs in reverse order."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for i in range(rounds):
        for name in list(servers)[:: 1 if i % 2 == 0 else -1]:
            with contextlib.suppress(BrokenPipeError):  # read_message() raises
                print(name, file=servers[name].stdin, flush=True)
            rates[name].append(float(read_message(servers[name])))
    return rates


def summary(mine: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """The median rate; the median ratio to another contender in the same rounds, with interval."""
    low, middle, high = ratio_interval(mine, own)
    return {"images_per_second": statistics.median(mine), "ratio": middle, "interval": [low, high]}


def ratio_interval(mine: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios mine / others with its 95 % interval: (low, median, high).

    The interval is between order statistics (sign test). With fewer than six rounds it is from the
    minimum to the maximum, with less coverage.
    """
    ratios = sorted(a / b for a, b in zip(mine, others, strict=True))
    outside = max(0, int(binom.ppf(0.025, len(ratios), 0.5)) - 1)
    return ratios[outside], statistics.median(ratios), ratios[-1 - outside]


def write_result(result: Any, out: Path | None) -> None:
    """Write a result as JSON, if a path is given."""
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")


def format_command(script: str, options: Mapping[str, Any], default: Any) -> str:
    """A command in Markdown, with the options that differ from the default's."""
    words = ["python", f"experiments/benchmarks/{script}"]
    for name, value in options.items():
        usual = getattr(default, name)
        value = tuple(value) if isinstance(value, list) else value  # as JSON has it
        if value in (usual, None):
            continue
        flag = "--" + name.replace("_", "-")
        values = value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
        words += [flag.replace("--", "--no-") if value is False else flag, *map(str, values)]
    return f"`{shlex.join(words)}`"


def format_ratio(ratio: float, interval: Sequence[float]) -> str:
    """1.23 [1.20, 1.31]."""
    return f"{ratio:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
