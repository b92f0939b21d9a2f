"""A speedrun for depth: the fewest seconds to a test accuracy, with networks of eight layers.

    python experiments/speedrun.py                       # 88 % on the embedded images, a minute
    python experiments/speedrun.py --dataset fashion_mnist --seeds 40    # 93.5 %, for a GPU
    python experiments/speedrun.py --dataset cifar10 --seeds 40          # 94 %, for a GPU
    python experiments/speedrun.py --ablate              # what each technique gains
    python experiments/speedrun.py --without muon --steps 1500

Rules: a convolutional network of at least eight layers with weights, and the training images alone.
The clock starts with uint8 images in the host's memory and compiled programs, and stops when the
test accuracy is known. The target is reached where the 95 % interval of the mean accuracy over the
seeds lies at or above it. "From python" is the time of a process of its own, imports and
compilation included. The records are in docs/results/records.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.command_line import parse, run_command
from deepjax.errors import InputError, require
from deepjax.io import write_text
from deepjax.progress import display
from deepjax.provenance import provenance
from deepjax.study.speedrun import RECIPES, TECHNIQUES, Speedrun, Technique, compile_speedrun
from deepjax.study.stats.intervals import mean_interval


@dataclasses.dataclass(frozen=True)
class Options:
    """Train to the target with several seeds; print accuracy and seconds with their intervals."""

    dataset: Literal["fashion_mnist_small", "fashion_mnist", "cifar10"] = "fashion_mnist_small"
    """The data set; the first is in the package, the others are prepared by `deepjax data`."""
    seeds: int = 5
    """Trainings, after one that is not counted."""
    without: tuple[Technique, ...] = ()
    """Techniques of the recipe to omit."""
    also: tuple[Technique, ...] = ()
    """Techniques to use that the recipe omits."""
    steps: int = 0
    """Training steps; 0: the recipe's."""
    ablate: bool = False
    """Train without each technique in turn too, and with each that the recipe omits."""
    from_python: bool = True
    """Measure a process of its own too, with an empty and then with a warm compilation cache."""
    once: bool = False
    """Train one seed and print its accuracy; what a process of its own does."""
    data_dir: str | None = None
    """Folder of prepared data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    out: Path | None = None
    """File of the record, as JSON."""

    def __post_init__(self) -> None:
        require(self.seeds >= 2, "seeds", self.seeds, "2 or more, for an interval")
        require(self.steps >= 0, "steps", self.steps, "0 (the recipe's) or more")
        usual = RECIPES[self.dataset].techniques
        for name, given, allowed in (
            ("without", set(self.without), usual),
            ("also", set(self.also), TECHNIQUES - usual),
        ):
            require(given <= allowed, name, " ".join(sorted(given)), " ".join(sorted(allowed)))

    @property
    def techniques(self) -> frozenset[str]:
        """The techniques that are used."""
        return RECIPES[self.dataset].techniques - set(self.without) | set(self.also)


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    began = time.monotonic()
    enable_compilation_cache()
    if options.once:
        accuracy, _ = compiled(options, options.techniques).train(seed=0)
        print(f"{accuracy:.2f} %")
        return
    techniques = options.techniques
    variants = {"": techniques}
    if options.ablate:
        variants |= {f"without {name}": techniques - {name} for name in sorted(techniques)}
        others = sorted(TECHNIQUES - techniques)
        variants |= {f"with {name}": techniques | {name} for name in others}
    title = f"speedrun of {options.dataset}"
    total = len(variants) * (options.seeds + 1)
    found = {}
    with display(title, {title: total}, unit="training") as report:
        for i, (name, used) in enumerate(variants.items()):
            trained = compiled(options, used)
            runs = []
            for seed in range(options.seeds + 1):  # the first compiles what is left
                runs.append(trained.train(seed))
                report(title, i * (options.seeds + 1) + seed + 1, total, name)
            found[name] = [dict(zip(("accuracy", "seconds"), run, strict=True)) for run in runs[1:]]
    seconds = from_python(options) if options.from_python else {}
    device = jax.devices()[0].device_kind
    record = {
        "dataset": options.dataset,
        "target": RECIPES[options.dataset].target,
        "steps": options.steps or RECIPES[options.dataset].steps,
        "techniques": sorted(techniques),
        "runs": found.pop(""),
        "variants": found,
        "from_python": seconds,
        "date": time.strftime("%Y-%m-%d"),
    } | provenance(time.monotonic() - began, f"{len(jax.devices())} x {device}")
    print(describe(record))
    if options.out is not None:
        write_text(options.out, json.dumps(record, indent=1) + "\n")


def compiled(options: Options, techniques: frozenset[str]) -> Speedrun:
    """The programs of the options with these techniques."""
    return compile_speedrun(options.dataset, techniques, options.steps, options.data_dir)


def from_python(options: Options) -> dict[str, float]:
    """Seconds from `python` to the result of one training, with two caches."""
    command = [sys.executable, __file__, "--once", "--dataset", options.dataset]
    command += ["--steps", str(options.steps)]
    for flag, names in (("--without", options.without), ("--also", options.also)):
        command += [flag, *names] if names else []
    command += ["--data-dir", options.data_dir] if options.data_dir else []
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty cache", "warm cache"):
            began = time.perf_counter()
            environment = os.environ | {"XDG_CACHE_HOME": cache}
            done = subprocess.run(  # noqa: S603  # this script
                command, env=environment, stdout=subprocess.DEVNULL, check=False
            )
            if done.returncode:
                raise InputError("the process of its own failed; its message is above")
            seconds[name] = time.perf_counter() - began
    return seconds


def describe(record: Mapping[str, Any]) -> str:
    """The record in Markdown."""
    accuracy, low = summary(record["runs"], "accuracy", 2, " %")
    reached = "reached" if low >= record["target"] else "not reached"
    seeds = len(record["runs"])
    lines = [
        f"{record['dataset']} to {record['target']:g} %, {seeds} seeds, {record['steps']} steps: "
        f"accuracy {accuracy}, the target is {reached}.",
        "", "| | seconds |", "| --- | --- |",
        f"| training | {summary(record['runs'], 'seconds', 2)[0]} |",
    ]  # fmt: skip
    lines += [f"| from python, {name} | {s:.1f} |" for name, s in record["from_python"].items()]
    if record["variants"]:
        lines += ["", "| | accuracy | seconds |", "| --- | --- | --- |"]
        for name, runs in record["variants"].items():
            cells = summary(runs, "accuracy", 2, " %")[0], summary(runs, "seconds", 2)[0]
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{record['hardware']}; {record['versions']}"])


def summary(
    runs: Sequence[Mapping[str, float]], name: str, digits: int, unit: str = ""
) -> tuple[str, float]:
    """The mean over seeds with its 95 % interval, and the interval's lower end."""
    interval = mean_interval([run[name] for run in runs])
    low, high = interval.bounds()
    mean = f"{interval.effect:.{digits}f}{unit}"
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]", low


if __name__ == "__main__":
    run_command(lambda: main(parse(Options)))
