"""Train the small networks that are part of the package, and write them there.

    python experiments/make_trained_networks.py --reuse-runs-from runs    # after `make studies`
    python experiments/make_trained_networks.py --only googlenet_heads --output-dir trained
    deepjax evaluate --weights deepjax/evaluation/trained/plain44 --dataset fashion_mnist_small

Each is one run of a study in its preset "small": the first judged seed. Without these runs it is
trained, one process per core with one thread each, about 20 minutes in all on two cores; the same
command resumes. A network that the output directory has already is left as it is. Per network:
model.safetensors, deepjax.json and README.md, as `deepjax export` writes them; metrics.jsonl, the
log of the run; provenance.json.
"""

import dataclasses
import functools
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from deepjax.command_line import parse, run_command
from deepjax.data.label_names import label_names
from deepjax.errors import unknown_name_error
from deepjax.evaluation.agreement import final_row
from deepjax.evaluation.export.folder import Origin, export_network
from deepjax.evaluation.models import PreprocessingOverrides, from_run
from deepjax.evaluation.trained.networks import FOLDER, PROVENANCE
from deepjax.io import write_text
from deepjax.paths import run_directory, user_path
from deepjax.progress import display
from deepjax.provenance import provenance
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import packaged_rates
from deepjax.study.arms.runs import Runner
from deepjax.study.study import FIRST_SEED, trained_arms
from deepjax.study.workers import TaskReport, default_jobs, worker_pool
from deepjax.training.metrics.metrics_log import METRICS
from deepjax.training.network import network_fields
from deepjax.training.run_directory.command import changed_options

ROOT = Path(__file__).parents[1]
# Name: the study and the arm.
NETWORKS = {
    "plain20": ("degradation", "plain20"),
    "plain44": ("degradation", "plain44"),
    "resnet20": ("degradation", "resnet20"),
    "resnet44": ("degradation", "resnet44"),
    "googlenet": ("auxiliary_heads", "no_norm"),
    "googlenet_heads": ("auxiliary_heads", "no_norm_heads"),
}
_METRICS = (
    *("train_error", "train_loss", "train_images"),
    *("test_error", "test_loss", "test_images", "step"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the package's small networks and write them."""

    only: tuple[str, ...] = ()
    """Names of networks; default all."""
    output_dir: Path = FOLDER
    """Parent of the folders, one a network."""
    runs: Path = Path("runs/trained_networks")
    """Parent of the run directories."""
    reuse_runs_from: Path | None = None
    """Parent of study directories: a finished run of the same configuration there is copied."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in NETWORKS:
                raise unknown_name_error("network", name, NETWORKS)


def main(options: Options) -> None:
    """Train and export what the output directory does not have."""
    out = user_path(options.output_dir, "output_dir")
    runs = run_directory(options.runs, "runs")
    given = options.reuse_runs_from
    reuse = run_directory(given, "reuse_runs_from") if given else None
    names = options.only or tuple(NETWORKS)
    missing = [name for name in names if not (out / name).exists()]
    steps = {name: declared_arm(*NETWORKS[name]).config.total_steps for name in missing}
    tasks = [functools.partial(train_network, name, runs, reuse) for name in missing]
    with display("networks", steps) as report, worker_pool(default_jobs()) as run_all:
        run_all(tasks, report)
    for name in names:
        if name in missing:
            write_network(name, runs, out / name)
        size = sum(path.stat().st_size for path in (out / name).iterdir())
        print(f"{out / name}: {size:,} bytes{'' if name in missing else ', exists'}")


def declared_arm(study: str, arm: str) -> TrainedArm:
    """An arm of a study's preset "small", at the learning rate that its pilots selected."""
    if str(ROOT) not in sys.path:  # for a command there is the folder of the scripts alone
        sys.path.append(str(ROOT))
    declared = importlib.import_module(f"experiments.{study}").STUDY
    preset = declared.presets["small"]
    return trained_arms(declared, preset, packaged_rates(study, "small"))[arm]


def train_network(name: str, runs: Path, reuse: Path | None, report: TaskReport) -> None:
    """Train a network with the first judged seed, or copy its run, in a worker process."""
    arm = declared_arm(*NETWORKS[name])
    steps = arm.config.total_steps

    def of_network(task: str, done: int, total: int) -> None:
        report(name, done, total)

    Runner(arm, runs, None, reuse).run(arm.rate, FIRST_SEED, of_network, 0, steps)
    report(name, steps, steps)


def write_network(name: str, runs: Path, folder: Path) -> None:
    """Export a finished run with its log."""
    study, declared = NETWORKS[name]
    arm = declared_arm(study, declared)
    run = arm.run_dir(runs, arm.rate, FIRST_SEED)
    member = from_run(run, None, PreprocessingOverrides(), network=arm.config.model, make=arm.make)
    config = arm.run_config(arm.rate, FIRST_SEED)
    network, made = import_path(arm)
    final: Mapping[str, Any] = final_row(run) or {}
    origin = Origin(
        network_fields(config) | made,
        {k: v for k, v in changed_options(config).items() if k != "model"},
        {key: final[key] for key in _METRICS},
        "apache-2.0",
    )
    source = f"study {study}, arm {declared}, {run.name}"
    labels = tuple(label_names(member.dataset))
    dataset = dataclasses.replace(member.dataset, label_names=labels)
    member = dataclasses.replace(member, name=network, source=source, dataset=dataset)
    export_network(member, origin, folder)
    shutil.copyfile(run / METRICS, folder / METRICS)
    written = {"commit": commit()} | provenance(0.0, jax.devices()[0].device_kind)
    del written["wall time"]  # of training, unknown where the run is copied
    write_text(folder / PROVENANCE, json.dumps(written, indent=2) + "\n")


def import_path(arm: TrainedArm) -> tuple[str, dict[str, Any]]:
    """The name of an arm's network, and the fields that its maker sets."""
    if not isinstance(arm.make, functools.partial):
        return arm.config.model, {}
    made: Any = arm.make.func
    return f"{made.__module__}:{made.__qualname__}", dict(arm.make.keywords)


def commit() -> str:
    """The commit of this checkout; "unknown" outside of one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    run_command(lambda: main(parse(Options)))
